// The launches of the backward over weights that are read twice, in vectors.
#pragma once

#include <mpi_router/cuda/detail/generic/vector_launch.cuh>
#include <mpi_router/cuda/detail/generic/vector_vjp_kernel.cuh>
#include <mpi_router/cuda/detail/generic/vjp_launch.cuh>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Ā = y z̄ᵀ + w rᵀ, or that added, along the gradient's contiguous axis.
template <vjp_mode mode, class G>
void write_outer_in_vectors(const context& ctx, const expert_shape& shape, const batch<G>& gradient,
                            const scaled_operands& of, const status* statuses) {
  const bool by_neurons = gradient.hidden == 1;
  vector_outer_args<G> args{gradient, by_neurons ? gradient.ffn : gradient.hidden,
                            static_cast<int>(by_neurons ? shape.ffn_dim : shape.hidden_dim),
                            static_cast<int>(by_neurons ? shape.hidden_dim : shape.ffn_dim)};
  const scaled_vectors of_neurons[2] = {of.projection, of.dual_projection};
  const scaled_vectors of_columns[2] = {of.dual, of.row};
  for (int k = 0; k < 2; ++k) {
    args.by_row[k] = by_neurons ? of_neurons[k] : of_columns[k];
    args.by_column[k] = by_neurons ? of_columns[k] : of_neurons[k];
  }
  args.statuses = statuses;
  constexpr int width = vector_width<G>;
  for (args.row_threads = 1; args.row_threads < generic_threads && args.row_threads * width < args.columns;) {
    args.row_threads *= 2;
  }
  const index_t tiles = (args.columns + args.row_threads * width - 1) / (args.row_threads * width);
  const index_t chunks = (args.rows + outer_rows - 1) / outer_rows;
  launch_for_experts("vector_outer_kernel", ctx, shape.num_experts, static_cast<unsigned>(tiles * chunks),
                     vector_outer_kernel < G, mode == vjp_mode::accumulate >, args);
}

/// Leaves y, w, z̄ and r̄ = w A in `memory`, and what `mode` says of Ā.
template <class T, class G, vjp_mode mode>
void vjp_in_two_reads(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                      const any_matrix& rows, const dual_source& dual, const batch<G>& gradient,
                      const gradient_factors& factors, const generic_vjp_memory& memory,
                      const scaled_operands& scaled) {
  vjp_of_products(vector_products<T>{ctx, weights, shape, scaled}, rows, dual, nullptr,
                  mode == vjp_mode::factored, factors, memory);
  if constexpr (mode != vjp_mode::factored) {
    if constexpr (has_vectors<G>) {
      if (gradient.hidden == 1 || gradient.ffn == 1) {
        scale(ctx, shape, any_matrix(memory.y, shape.ffn_dim), shape.ffn_dim, scaled.projection);
        return write_outer_in_vectors<mode>(ctx, shape, gradient, scaled, dual.saved.statuses);
      }
    }
    write_outer<mode>(ctx, shape, rows, gradient, memory, dual.saved.statuses);
  }
}

MPIROUTER_CUDA_DETAIL_END
