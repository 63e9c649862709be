// What the launches over stored columns make of a plan.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/panels/sweep.cuh>
#include <mpi_router/cuda/detail/plan/panel_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

[[nodiscard]] inline launch_shape shape_of(const panel_plan& plan, bool fused) {
  return {static_cast<unsigned>(plan.part.blocks * plan.part.team * plan.row_blocks), panel_threads,
          plan.shared_bytes, static_cast<unsigned>(plan.row_blocks * (fused ? plan.members : 1))};
}
template <class T>
[[nodiscard]] panel_sweep_args<T> sweep_of(const panel_plan& plan, const batch<const T>& weights,
                                           const expert_shape& shape, const partial_sums& out, bool fused,
                                           bool at_rest) {
  return {weights,
          static_cast<int>(shape.ffn_dim),
          static_cast<int>(shape.hidden_dim),
          plan.passes,
          plan.row_blocks,
          plan.part,
          out,
          fused,
          at_rest};
}

MPIROUTER_CUDA_DETAIL_END
