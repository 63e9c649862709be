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

/// Factored: what is in f64, [N, extent] with rows `pitch` apart, in f32, unless it is not wanted.
template <class = void>
void narrow(const context& ctx, index_t experts, const double* from, int pitch, float* to,
            const status* statuses, int extent) {
  if (to != nullptr && experts > 0 && extent > 0) {
    const int rows = (extent + generic_threads - 1) / generic_threads;
    launch("narrow_kernel", ctx, shape_of_rows(experts, rows), narrow_kernel<>, from, pitch, to, statuses,
           extent);
  }
}
template <class = void>
void narrow(const context& ctx, index_t experts, const double* from, float* to, const status* statuses,
            int extent) {
  narrow(ctx, experts, from, extent, to, statuses, extent);
}

/// Ā = y z̄ᵀ + w rᵀ, or that added, element by element in f64.
template <vjp_mode mode, class G>
void write_outer(const context& ctx, const expert_shape& shape, const any_matrix& rows,
                 const batch<G>& gradient, const generic_vjp_memory& memory, const status* statuses) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  const outer_args<G> args{gradient, rows, memory.y, memory.w, memory.dual, statuses, ffn, hidden, hidden};
  launch("outer_kernel", ctx, shape_of_rows(shape.num_experts, ffn > hidden ? ffn : hidden), outer_kernel < G,
         mode == vjp_mode::accumulate >, args);
}

/// Leaves y, w, z̄ and r̄ = w A in `memory`, and the factors if these are what is wanted of Ā. `image`: z in
/// f64 up to a factor, if the saved direction is too short.
template <class Products>
void vjp_of_products(const Products& of, const any_matrix& rows, const dual_source& dual, const double* image,
                     bool factored, const gradient_factors& factors, const generic_vjp_memory& memory) {
  const int ffn = static_cast<int>(of.shape.ffn_dim);
  const int hidden = static_cast<int>(of.shape.hidden_dim);
  const index_t experts = of.shape.num_experts;
  launch("dual_kernel", of.ctx, {static_cast<unsigned>(experts), generic_threads}, dual_kernel<>, dual, image,
         hidden, memory.dual);
  of.template project<2>({rows, any_matrix(memory.dual, hidden)}, {memory.y, memory.w});
  of.lift(memory.w, memory.u);
  if (factored) {
    const status* const statuses = dual.saved.statuses;
    narrow(of.ctx, experts, memory.y, factors.projection, statuses, ffn);
    narrow(of.ctx, experts, memory.w, factors.dual_projection, statuses, ffn);
    narrow(of.ctx, experts, memory.dual, factors.dual_row, statuses, hidden);
  }
}

/// Leaves y, w, z̄ and u = w A in `memory`, and what `mode` says of Ā.
template <class T, class G, vjp_mode mode>
void generic_vjp(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                 const any_matrix& rows, const dual_source& dual, const batch<G>& gradient,
                 const gradient_factors& factors, const generic_vjp_memory& memory) {
  const plain_products<T> products{ctx, weights, shape};
  const bool again = sizeof(T) == 8 && dual.of_all;  // an f32 direction is too short for f64 weights
  if (again) {
    generic_step(products, rows, memory.y, memory.u, memory.energy, memory.exponents);
  }
  vjp_of_products(products, rows, dual, again ? memory.u : nullptr, mode == vjp_mode::factored, factors,
                  memory);
  if constexpr (mode != vjp_mode::factored) {
    write_outer<mode>(ctx, shape, rows, gradient, memory, dual.saved.statuses);
  }
}

MPIROUTER_CUDA_DETAIL_END
