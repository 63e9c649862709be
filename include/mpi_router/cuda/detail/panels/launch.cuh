// The launches of the forward over stored columns.
#pragma once

#include <mpi_router/cuda/detail/panels/arguments.cuh>
#include <mpi_router/cuda/detail/panels/kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, panel_depth depth>
[[nodiscard]] auto panel_kernel_of(int lanes) {
  switch (lanes) {
    case 8: return panel_step_kernel<T, 8, depth, panel_line>;
    case 4: return panel_step_kernel<T, 4, depth, panel_line>;
    case 2: return panel_step_kernel<T, 2, depth, panel_line>;
    default: return panel_step_kernel<T, panel_least_lanes(depth), depth, panel_line>;
  }
}

/// The forward over weights whose columns are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void panel_step(const context& ctx, const panel_plan& plan, const batch<const T>& weights,
                const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
                const finish_args& finish) {
  const panel_step_args<T> args{sweep_of(plan, weights, shape, out, fused, at_rest), finish};
  const launch_shape grid = shape_of(plan, fused);
  const auto run = [&](auto kernel) { launch("panel_step_kernel", ctx, grid, kernel, args); };
  if constexpr (is_pair<T>) {
    plan.lanes == 8 ? run(panel_step_kernel<T, 8, panel_depth::deep, panel_line>)
                    : run(panel_step_kernel<T, panel_less_lanes, panel_depth::deep, panel_line>);
  } else if (plan.depth == panel_depth::deep && plan.lanes == 8 &&
             plan.part.team > 1) {  // its neighbour reads what lies beside
    run(panel_step_kernel<T, 8, panel_depth::deep, panel_team_line>);
  } else if (plan.depth == panel_depth::deep) {
    run(panel_kernel_of<T, panel_depth::deep>(plan.lanes));
  } else if (plan.depth == panel_depth::even) {
    run(panel_kernel_of<T, panel_depth::even>(plan.lanes));
  } else {
    run(panel_kernel_of<T, panel_depth::low>(plan.lanes));
  }
}

MPIROUTER_CUDA_DETAIL_END
