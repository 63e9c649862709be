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

/// use<vectors, rows, by>() for the vectors of the plan, up to `most`, for its tiles, whole ones or half ones
/// within the limits of `tile`, and for who fills rings on the device.
template <int most, tile_limits tile, int vectors = 1, class Use>
void with_constants(const context& ctx, const row_plan& plan, const Use& use) {
  constexpr int rows = tile_rows(tile, vectors);
  const auto with_rows = [&]<int count>() {
    if (has_tma(ctx)) {
      use.template operator()<vectors, count, copier::tma>();
    } else {
      use.template operator()<vectors, count, copier::threads>();
    }
  };
  if (plan.vectors > vectors) {
    if constexpr (vectors < most) {
      with_constants<most, tile, 2 * vectors>(ctx, plan, use);
    }
  } else if (plan.rows == rows) {
    with_rows.template operator()<rows>();
  } else if constexpr (has_halves(tile, vectors, most)) {
    with_rows.template operator()<half_of(rows)>();
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
