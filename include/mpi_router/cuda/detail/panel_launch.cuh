// The launches of the forward over stored columns.
#pragma once

#include <mpi_router/cuda/detail/panel_step.cuh>
#include <mpi_router/cuda/detail/plan/panel_plan.hpp>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The forward over weights whose columns are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void panel_step(const context& ctx, const panel_plan& plan, const batch<const T>& weights,
                const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
                const finish_args& finish) {
  const panel_step_args<T> args{weights,
                                static_cast<int>(shape.ffn_dim),
                                static_cast<int>(shape.hidden_dim),
                                plan.passes,
                                plan.row_blocks,
                                plan.part,
                                out,
                                fused,
                                at_rest,
                                finish};
  const launch_shape grid{static_cast<unsigned>(plan.part.blocks * plan.part.team * plan.row_blocks),
                          panel_threads, plan.shared_bytes,
                          static_cast<unsigned>(plan.row_blocks * (fused ? plan.members : 1))};
  const auto run = [&](auto kernel) { launch("panel_step_kernel", ctx, grid, kernel, args); };
  if (plan.lanes == 8 && plan.large && plan.part.team > 1) {  // its neighbour reads what lies beside
    run(panel_step_kernel<T, 8, true, 256>);
    return;
  }
  switch (plan.lanes) {
    case 8: run(plan.large ? panel_step_kernel<T, 8, true, 128> : panel_step_kernel<T, 8, false, 128>); break;
    case 4: run(plan.large ? panel_step_kernel<T, 4, true, 128> : panel_step_kernel<T, 4, false, 128>); break;
    case 2: run(plan.large ? panel_step_kernel<T, 2, true, 128> : panel_step_kernel<T, 2, false, 128>); break;
    default: run(plan.large ? panel_step_kernel<T, 1, true, 128> : panel_step_kernel<T, 1, false, 128>);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
