// Which way a backward takes, and its scratch.
#pragma once

#include <mpi_router/cuda/detail/plan/row_plan.hpp>

MPIROUTER_CUDA_BEGIN
namespace detail {

enum class vjp_mode { factored, write, accumulate };

/// 16-byte vectors of a tile that a thread works on: fewer where the old gradient travels through the ring as
/// well.
[[nodiscard]] constexpr int vjp_vectors_in_flight(vjp_mode mode) {
  return mode == vjp_mode::accumulate ? vjp_vectors_with_old : vjp_vectors_alone;
}

/// Whether the gradient that is added to travels through the ring with the weights: where a thread's columns
/// of it fill vectors.
template <class T, class G>
constexpr bool old_in_ring = sizeof(G) >= sizeof(T);

/// What the backward over stored rows asks of a plan.
template <class T, class G>
[[nodiscard]] constexpr row_demand vjp_demand(vjp_mode mode) {
  const bool with_old = mode == vjp_mode::accumulate && old_in_ring<T, G>;
  return {sizeof(T), with_old ? int{sizeof(G)} : 0, vjp_most_columns, vjp_vectors_in_flight(mode)};
}

/// The scratch of the plain path.
struct plain_vjp_memory {
  double* y = nullptr;       // [N, F]
  double* w = nullptr;       // [N, F]
  double* dual = nullptr;    // [N, D]
  double* u = nullptr;       // [N, D]
  double* energy = nullptr;  // [N]

  void take(arena& memory, const expert_shape& shape) {
    y = memory.take<double>(shape.num_experts * shape.ffn_dim);
    w = memory.take<double>(shape.num_experts * shape.ffn_dim);
    dual = memory.take<double>(shape.num_experts * shape.hidden_dim);
    u = memory.take<double>(shape.num_experts * shape.hidden_dim);
    energy = memory.take<double>(shape.num_experts);
  }
};

/// How the backward walks the weights (by rows, or else plainly), and its scratch. T and G: of weights and
/// gradient.
template <class T, class G>
struct backward_path {
  row_plan rows;
  partial_sums sums;
  plain_vjp_memory plain;
  std::size_t bytes = 0;

  /// Without data it only counts.
  backward_path(const context& ctx, const expert_shape& shape, index_t hidden_stride,
                index_t gradient_hidden_stride, vjp_mode mode, void* data) {
    if (shape.num_experts == 0 || shape.ffn_dim == 0 || shape.hidden_dim == 0) {
      return;
    }
    arena memory(data);
    if (sizeof(T) <= 4 && sizeof(G) <= 4 && hidden_stride == 1 && gradient_hidden_stride == 1) {
      rows = make_row_plan(ctx, shape, vjp_demand<T, G>(mode));
    }
    if (rows.vectors > 0) {
      sums = take_partial_sums(memory, rows.part, rows.pitch);
    } else {
      plain.take(memory, shape);
    }
    bytes = memory.used();
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
