#pragma once

#include <mpi_router/cuda/types.hpp>

namespace gpu_check {
void check_forward(const mpi_router::cuda::context& ctx, int effort);
void check_backward(const mpi_router::cuda::context& ctx, int effort);
void check_gating(const mpi_router::cuda::context& ctx, int effort);
void check_edges(const mpi_router::cuda::context& ctx, int effort);
void check_gram(const mpi_router::cuda::context& ctx, int effort);
void check_refusals(const mpi_router::cuda::context& ctx);
}  // namespace gpu_check
