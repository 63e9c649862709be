// The launches of the backward over stored rows.
#pragma once

#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>
#include <mpi_router/cuda/detail/rows/arguments.cuh>
#include <mpi_router/cuda/detail/rows/vjp_kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// r̄ and, as `mode` says, Ā or its factors. `grad_router` may be null (without data).
template <class T, class G, vjp_mode mode>
void row_vjp(const context& ctx, const row_plan& plan, const batch<const T>& weights,
             const expert_shape& shape, const any_matrix& rows, const dual_source& dual,
             const any_matrix& grad_router, const batch<G>& gradient, const gradient_factors& factors,
             const partial_sums& sums) {
  const int weights_pitch = plan.pitch * static_cast<int>(sizeof(T));
  const row_vjp_args<T, G> args{
      sweep_of(plan, weights, shape, sums, plan.cluster > 0),
      {gradient.as_const(), weights_pitch * plan.rows, plan.pitch * static_cast<int>(sizeof(G))},
      gradient,
      factors,
      rows,
      dual,
      grad_router};
  constexpr int most_vectors = vjp_most_columns / vector_width<T>;
  with_constants<most_vectors, vjp_tile(mode)>(ctx, plan, [&]<int vectors, int rows, copier by>() {
    launch("row_vjp_kernel", ctx, shape_of(plan, args.sweep.fused),
           row_vjp_kernel<T, G, vectors, rows, mode, by>, args);
  });
}

MPIROUTER_CUDA_DETAIL_END
