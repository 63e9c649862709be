// The launches of the forward over stored rows.
#pragma once

#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/rows/arguments.cuh>
#include <mpi_router/cuda/detail/rows/kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The forward over weights whose rows are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void row_step(const context& ctx, const row_plan& plan, const batch<const T>& weights,
              const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
              const finish_args& finish) {
  const row_step_args<T> args{sweep_of(plan, weights, shape, out, fused), at_rest, finish};
  constexpr int most_vectors = forward_most_columns / vector_width<T>;
  with_constants<most_vectors, forward_tile>(ctx, plan, [&]<int vectors, int rows, copier by>() {
    launch("row_step_kernel", ctx, shape_of(plan, fused), row_step_kernel<T, vectors, rows, by>, args);
  });
}

MPIROUTER_CUDA_DETAIL_END
