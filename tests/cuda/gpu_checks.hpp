#pragma once

#include <algorithm>
#include <mpi_router/cuda/types.hpp>
#include <vector>

namespace gpu_check {

/// The present device made less, so that calls go the ways of others.
struct forced_device {
  const char* like;
  mpi_router::cuda::context ctx;
};
[[nodiscard]] inline std::vector<forced_device> forced_devices(const mpi_router::cuda::context& ctx) {
  const auto like = [&ctx](const char* name, int capability, int multiprocessors, int shared_kib) {
    forced_device d{name, ctx};
    d.ctx.capability = std::min(ctx.capability, capability);
    d.ctx.multiprocessors = std::min(ctx.multiprocessors, multiprocessors);
    d.ctx.shared_memory = std::min(ctx.shared_memory, static_cast<std::size_t>(shared_kib) * 1024);
    for (int log = 0; log < 4; ++log) {
      d.ctx.clusters[log] = std::min(ctx.clusters[log], multiprocessors >> log);
    }
    return d;
  };
  return {like("the path of sm_80", 80, ctx.multiprocessors, 163),
          like("the path of sm_80, with all shared memory", 80, ctx.multiprocessors, 227),
          like("sm_86 and sm_89, a large one", 80, 84, 99),
          like("sm_86 and sm_89, a small one", 80, 20, 99),
          like("sm_120", ctx.capability, 70, 99),
          like("sm_90 with less shared memory", ctx.capability, 114, 163)};
}
void check_forward(const mpi_router::cuda::context& ctx, int effort);
void check_backward(const mpi_router::cuda::context& ctx, int effort);
void check_gating(const mpi_router::cuda::context& ctx, int effort);
void check_edges(const mpi_router::cuda::context& ctx, int effort);
void check_gram(const mpi_router::cuda::context& ctx, int effort);
void check_refusals(const mpi_router::cuda::context& ctx);
void check_decoded(const mpi_router::cuda::context& ctx, int effort);
}  // namespace gpu_check
