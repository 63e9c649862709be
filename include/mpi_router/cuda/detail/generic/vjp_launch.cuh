// The launches of the backward on the generic path.
#pragma once

#include <mpi_router/cuda/detail/generic/launch.cuh>
#include <mpi_router/cuda/detail/generic/vjp_kernel.cuh>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Blocks for each expert, where each takes some of `rows`.
[[nodiscard]] inline launch_shape shape_of_rows(index_t experts, int rows) {
  return {static_cast<unsigned>(experts), generic_threads, 0, 1,
          static_cast<unsigned>(rows < most_generic_rows ? rows : most_generic_rows)};
}

/// Factored: what is in f64, [N, extent], in f32, unless it is not wanted.
template <class = void>
void narrow(const context& ctx, index_t experts, const double* from, float* to, const status* statuses,
            int extent) {
  if (to != nullptr) {
    const int rows = (extent + generic_threads - 1) / generic_threads;
    launch("narrow_kernel", ctx, shape_of_rows(experts, rows), narrow_kernel<>, from, to, statuses, extent);
  }
}

/// Leaves y, w, z̄ and u = w A in `memory`, and what `mode` says of Ā.
template <class T, class G, vjp_mode mode>
void generic_vjp(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                 const any_matrix& rows, const dual_source& dual, const batch<G>& gradient,
                 const gradient_factors& factors, const generic_vjp_memory& memory) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  const index_t experts = shape.num_experts;
  const bool again = sizeof(T) == 8 && dual.of_all;  // an f32 direction is too short for f64 weights
  if (again) {
    generic_step<T>(ctx, weights, shape, rows, memory.y, memory.u, memory.energy);
  }
  launch("dual_kernel", ctx, {static_cast<unsigned>(experts), generic_threads}, dual_kernel<>, dual,
         again ? memory.u : nullptr, hidden, memory.dual);
  generic_project<2, T>(ctx, weights, shape, {rows, any_matrix(memory.dual, hidden)}, {memory.y, memory.w});
  generic_lift(ctx, weights, shape, memory.w, memory.u);
  const status* const statuses = dual.saved.statuses;
  if constexpr (mode == vjp_mode::factored) {
    narrow(ctx, experts, memory.y, factors.projection, statuses, ffn);
    narrow(ctx, experts, memory.w, factors.dual_projection, statuses, ffn);
    narrow(ctx, experts, memory.dual, factors.dual_row, statuses, hidden);
  } else {
    const outer_args<G> args{gradient, rows, memory.y, memory.w, memory.dual, statuses, ffn, hidden, hidden};
    launch("outer_kernel", ctx, shape_of_rows(experts, ffn > hidden ? ffn : hidden), outer_kernel < G,
           mode == vjp_mode::accumulate >, args);
  }
}

MPIROUTER_CUDA_DETAIL_END
