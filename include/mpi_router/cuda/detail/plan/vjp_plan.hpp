// Which way a backward takes, and its scratch.
#pragma once

#include <mpi_router/cuda/detail/plan/panel_plan.hpp>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>
#include <mpi_router/cuda/detail/plan/vjp_mode.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What the backward over stored rows asks of a plan.
template <class T, class G>
[[nodiscard]] constexpr row_demand vjp_demand(vjp_mode mode) {
  const bool with_old = mode == vjp_mode::accumulate && old_in_ring<T, G>;
  return {sizeof(T), with_old ? int{sizeof(G)} : 0, vjp_most_columns, vjp_tile(mode)};
}

/// What the backward over stored columns asks of a plan.
template <class T, class G>
[[nodiscard]] constexpr panel_demand panel_vjp_demand(vjp_mode mode, bool in_pairs) {
  const bool with_old = needs_old<T, G>(mode, in_pairs);
  const bool factored = mode == vjp_mode::factored;
  return {(in_pairs ? 2 : 1) * static_cast<int>(sizeof(T)),
          in_pairs,
          2,
          factored,
          factored && in_panel_tiles<T> && !in_pairs,
          with_old ? panel_old_slots : 0};
}

/// The scratch of two reads, and of the generic path, which rows of f64 take.
struct generic_vjp_memory {
  double* y = nullptr;       // [N, F]
  double* w = nullptr;       // [N, F]
  double* dual = nullptr;    // [N, D]
  double* u = nullptr;       // [N, D]
  double* energy = nullptr;  // [N]
  step_exponents exponents;

  void take(arena& memory, const expert_shape& shape) {
    y = memory.take<double>(shape.num_experts * shape.ffn_dim);
    w = memory.take<double>(shape.num_experts * shape.ffn_dim);
    dual = memory.take<double>(shape.num_experts * shape.hidden_dim);
    u = memory.take<double>(shape.num_experts * shape.hidden_dim);
    energy = memory.take<double>(shape.num_experts);
    exponents.take(memory, shape.num_experts);
  }
};

/// How the backward walks the weights (by rows or by panels, in one read; by vectors in two; or else by the
/// generic kernels), and its scratch. T and G: of weights and gradient.
template <class T, class G>
struct backward_path {
  row_plan rows;
  panel_plan panels;
  partial_sums sums;
  bool in_pairs = false;    // panels of columns that lie two apart
  bool in_vectors = false;  // two reads, along the contiguous axis
  generic_vjp_memory generic;
  scaled_operands scaled;  // of two reads
  std::size_t bytes = 0;

  /// Without data it only counts.
  backward_path(const context& ctx, const expert_shape& shape, const expert_strides& strides,
                const expert_strides& gradient, vjp_mode mode, void* data) {
    if (shape.num_experts == 0 || shape.ffn_dim == 0 || shape.hidden_dim == 0) {
      return;
    }
    arena memory(data);
    if (has_vectors<T> && has_vectors<G>) {
      if (strides.hidden == 1 && gradient.hidden == 1) {
        rows = make_row_plan(ctx, shape, vjp_demand<T, G>(mode));
      } else if (strides.ffn == gradient.ffn) {
        in_pairs = has_pairs(strides, sizeof(T)) && has_pairs(gradient, sizeof(G));
        if (in_pairs || strides.ffn == 1) {
          panels = make_panel_plan(ctx, shape, panel_vjp_demand<T, G>(mode, in_pairs));
        }
      }
    }
    arena products = memory;
    generic.take(products, shape);
    if (rows.vectors > 0) {
      sums = take_partial_sums(memory, rows.part, rows.pitch);
    } else if (panels.lanes > 0) {
      sums = take_partial_sums(memory, panels.part, panels.pitch);
    } else if (has_vectors<T> && has_contiguous_axis(strides, sizeof(T))) {
      in_vectors = true;
      scaled.take(products, shape, true);
    }
    memory.reach(products);
    bytes = memory.used();
  }
};

MPIROUTER_CUDA_DETAIL_END
