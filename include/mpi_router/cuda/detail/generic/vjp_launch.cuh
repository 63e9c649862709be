// The launches of the backward on the generic path.
#pragma once

#include <mpi_router/cuda/detail/generic/launch.cuh>
#include <mpi_router/cuda/detail/generic/vjp_kernel.cuh>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, class G, vjp_mode mode>
void generic_vjp(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                 const any_matrix& rows, const dual_source& dual, const batch<G>& gradient,
                 const gradient_factors& factors, const generic_vjp_memory& memory) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  const auto experts = static_cast<unsigned>(shape.num_experts);
  constexpr bool again = sizeof(T) == 8;  // an f32 direction is too short for f64 weights
  if (again) {
    generic_step<T>(ctx, weights, shape, rows, memory.y, memory.u, memory.energy);
  }
  launch("dual_kernel", ctx, {experts, generic_threads}, dual_kernel<>, dual, again ? memory.u : nullptr,
         hidden, memory.dual);
  contract_args<T> project{weights,
                           weights.ffn,
                           weights.hidden,
                           ffn,
                           hidden,
                           {rows, any_matrix(memory.dual, hidden)},
                           {memory.y, memory.w}};
  contract<T, 2>(ctx, shape.num_experts, project);
  contract_args<T> lift{weights,
                        weights.hidden,
                        weights.ffn,
                        hidden,
                        ffn,
                        {any_matrix(memory.w, ffn), {}},
                        {memory.u, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, lift);
  const status* const statuses = dual.saved.statuses;
  if constexpr (mode == vjp_mode::factored) {
    const auto narrow = [&](const double* from, float* to, int extent) {
      if (to != nullptr) {
        const int tall = (extent + generic_threads - 1) / generic_threads;
        launch("narrow_kernel", ctx,
               {experts, generic_threads, 0, 1,
                static_cast<unsigned>(tall < most_generic_rows ? tall : most_generic_rows)},
               narrow_kernel<>, from, to, statuses, extent);
      }
    };
    narrow(memory.y, factors.projection, ffn);
    narrow(memory.w, factors.dual_projection, ffn);
    narrow(memory.dual, factors.dual_row, hidden);
  } else {
    const outer_args<G> args{gradient, rows, memory.y, memory.w, memory.dual, statuses, ffn, hidden};
    const int tall = ffn > hidden ? ffn : hidden;
    launch("outer_kernel", ctx,
           {experts, generic_threads, 0, 1,
            static_cast<unsigned>(tall < most_generic_rows ? tall : most_generic_rows)},
           outer_kernel < G, mode == vjp_mode::accumulate >, args);
  }
}

MPIROUTER_CUDA_DETAIL_END
