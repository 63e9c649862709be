// What the launches over stored rows make of a plan.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/plan/device_facts.hpp>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/rows/sweep.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

[[nodiscard]] inline launch_shape shape_of(const row_plan& plan, bool fused) {
  return {static_cast<unsigned>(plan.part.blocks),
          static_cast<unsigned>(plan.ring.groups * plan.group_threads), plan.shared_bytes,
          static_cast<unsigned>(fused ? plan.cluster : 1)};
}

/// use<vectors, by>() for the vectors of the plan, up to `most`, and for who fills rings on the device.
template <int most, int vectors = 1, class Use>
void with_constants(const context& ctx, const row_plan& plan, const Use& use) {
  if (plan.vectors > vectors) {
    if constexpr (vectors < most) {
      with_constants<most, 2 * vectors>(ctx, plan, use);
    }
  } else if (has_tma(ctx)) {
    use.template operator()<vectors, copier::tma>();
  } else {
    use.template operator()<vectors, copier::threads>();
  }
}

template <class T>
[[nodiscard]] row_sweep_args<T> sweep_of(const row_plan& plan, const batch<const T>& weights,
                                         const expert_shape& shape, const partial_sums& out, bool fused) {
  return {{weights, 0, plan.pitch * static_cast<int>(sizeof(T))},
          {static_cast<int>(shape.ffn_dim), static_cast<int>(shape.hidden_dim), plan.rows,
           plan.part.tiles_per_expert},
          plan.part,
          out,
          plan.group_threads,
          plan.ring,
          fused};
}

MPIROUTER_CUDA_DETAIL_END
