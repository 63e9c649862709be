// The launches of the forward over stored rows.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/rows/kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, int vectors, copier by>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  launch(
      "row_step_kernel", ctx,
      {static_cast<unsigned>(plan.part.blocks), static_cast<unsigned>(plan.ring.groups * plan.group_threads),
       plan.shared_bytes, static_cast<unsigned>(args.fused ? plan.cluster : 1)},
      row_step_kernel<T, vectors, tile_rows(forward_vectors_in_flight, vectors), by>, args);
}
template <class T, int vectors>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  if (has_engine(ctx)) {
    launch_row_step<T, vectors, copier::engine>(ctx, plan, args);
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
  const row_step_args<T> args{{weights, 0, plan.pitch * static_cast<int>(sizeof(T))},
                              {static_cast<int>(shape.ffn_dim), static_cast<int>(shape.hidden_dim), plan.rows,
                               plan.part.tiles_per_expert},
                              plan.part,
                              out,
                              plan.group_threads,
                              plan.ring,
                              fused,
                              at_rest,
                              finish};
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
