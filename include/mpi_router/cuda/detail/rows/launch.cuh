// The launches of the forward over stored rows.
#pragma once

#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/rows/arguments.cuh>
#include <mpi_router/cuda/detail/rows/kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, int vectors, copier by>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  launch("row_step_kernel", ctx, shape_of(plan, args.sweep.fused),
         row_step_kernel<T, vectors, tile_rows(forward_vectors_in_flight, vectors), by>, args);
}
template <class T, int vectors>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  if (has_tma(ctx)) {
    launch_row_step<T, vectors, copier::tma>(ctx, plan, args);
  } else {
    launch_row_step<T, vectors, copier::threads>(ctx, plan, args);
  }
}

/// The forward over weights whose rows are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void row_step(const context& ctx, const row_plan& plan, const batch<const T>& weights,
              const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
              const finish_args& finish) {
  const row_step_args<T> args{sweep_of(plan, weights, shape, out, fused), at_rest, finish};
  switch (plan.vectors) {
    case 1: launch_row_step<T, 1>(ctx, plan, args); break;
    case 2: launch_row_step<T, 2>(ctx, plan, args); break;
    case 4: launch_row_step<T, 4>(ctx, plan, args); break;
    default:
      if constexpr (sizeof(T) == 4) {
        launch_row_step<T, 8>(ctx, plan, args);
      }
  }
}

MPIROUTER_CUDA_DETAIL_END
