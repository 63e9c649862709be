// The launches of the backward over stored columns.
#pragma once

#include <mpi_router/cuda/detail/panels/arguments.cuh>
#include <mpi_router/cuda/detail/panels/factored_kernel.cuh>
#include <mpi_router/cuda/detail/panels/vjp_kernel.cuh>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// r̄ and, as `mode` says, Ā or its factors. `grad_router` may be null (without data).
template <vjp_mode mode, class T, class G>
void panel_vjp(const context& ctx, const panel_plan& plan, const batch<const T>& weights,
               const expert_shape& shape, const any_matrix& rows, const dual_source& dual,
               const any_matrix& grad_router, const batch<G>& gradient, const gradient_factors& factors,
               const partial_sums& sums) {
  const bool fused = plan.members > 0;
  using args_type = panel_vjp_args<T, G>;
  const args_type args{
      sweep_of(plan, weights, shape, sums, fused, false), gradient, factors, rows, dual, grad_router};
  const auto run = [&](const char* name, auto kernel) {
    launch(name, ctx, shape_of(plan, fused), kernel, args);
  };
  if constexpr (mode == vjp_mode::factored && in_panel_tiles<T>) {
    plan.lanes == 8 ? run("panel_factored_kernel", panel_factored_kernel<args_type, 8>)
                    : run("panel_factored_kernel", panel_factored_kernel<args_type, panel_less_lanes>);
  } else {
    plan.lanes == 8 ? run("panel_vjp_kernel", panel_vjp_kernel<T, G, mode, 8>)
                    : run("panel_vjp_kernel", panel_vjp_kernel<T, G, mode, panel_less_lanes>);
  }
}

MPIROUTER_CUDA_DETAIL_END
