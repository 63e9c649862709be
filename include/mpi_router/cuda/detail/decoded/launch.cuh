// The launches of the read of weights that are decoded as they are read.
#pragma once

#include <mpi_router/cuda/detail/decoded/kernel.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/device/scaled_vectors.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <int probes, class Rows>
void read_decoded(const context& ctx, const decoded_plan& plan, const decoded_args<Rows>& args) {
  const launch_shape shape{static_cast<unsigned>(plan.part.blocks), static_cast<unsigned>(plan.threads)};
  switch (plan.pieces) {
    case 1: return launch("decoded_kernel", ctx, shape, decoded_kernel<Rows, probes, 1>, args);
    case 2: return launch("decoded_kernel", ctx, shape, decoded_kernel<Rows, probes, 2>, args);
    default: return launch("decoded_kernel", ctx, shape, decoded_kernel<Rows, probes, 8>, args);
  }
}

/// The images of the rows, in slots.
template <class Rows>
[[nodiscard]] decoded_images decoded_step(const context& ctx, const decoded_plan& plan, const Rows& rows,
                                          const expert_shape& shape, const any_matrix& router) {
  scale(ctx, shape, router, shape.hidden_dim, plan.row);
  const decoded_args<Rows> args{rows,
                                static_cast<int>(shape.ffn_dim),
                                static_cast<int>(shape.hidden_dim),
                                plan.part,
                                {plan.row, {}},
                                plan.sums,
                                {}};
  read_decoded<1>(ctx, plan, args);
  return {{plan.sums, plan.part}};
}

/// r̄ = z̄ M in slots, of z̄ in plan.dual_rows, and y and w in f64.
template <class Rows>
[[nodiscard]] decoded_images decoded_vjp(const context& ctx, const decoded_plan& plan, const Rows& rows,
                                         const expert_shape& shape, const any_matrix& router) {
  scale(ctx, shape, router, shape.hidden_dim, plan.row);
  scale(ctx, shape, any_matrix(plan.dual_rows, shape.hidden_dim), shape.hidden_dim, plan.dual);
  const decoded_args<Rows> args{rows,
                                static_cast<int>(shape.ffn_dim),
                                static_cast<int>(shape.hidden_dim),
                                plan.part,
                                {plan.row, plan.dual},
                                plan.sums,
                                {plan.projections[0], plan.projections[1]}};
  read_decoded<2>(ctx, plan, args);
  return {{plan.sums, plan.part}};
}

MPIROUTER_CUDA_DETAIL_END
