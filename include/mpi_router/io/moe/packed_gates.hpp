// The gate matrix of an expert as it is packed, for callers that do not need it decoded.
#pragma once

#include <mpi_router/io/moe/gate_layout.hpp>
#include <mpi_router/io/moe/layer.hpp>
#include <mpi_router/io/packed/views.hpp>

#include <optional>

MPIROUTER_BEGIN

/// A gate matrix A, [F, D], among the rows of a packed weight, which it must not outlive. MatrixRows that
/// decode to float and, as the products of codes and scales as they are, to double.
class packed_gate {
 public:
  packed_gate(const packed::any_matrix& matrix, index_t first, index_t step, index_t rows)
      : matrix_(&matrix), first_(first), step_(step), rows_(rows) {}

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const { return matrix_->cols(); }
  template <Accumulator S>
  void load_row(index_t f, S* out) const {
    matrix_->load_row(first_ + f * step_, out);
  }
  /// As backends decode it in registers; empty where there is no such view.
  [[nodiscard]] std::optional<packed::any_view> view() const {
    return packed::view_of(*matrix_, first_, rows_, step_);
  }

 private:
  const packed::any_matrix* matrix_;
  index_t first_;
  index_t step_;
  index_t rows_;
};

/// The gate of a block as it is packed. Empty where it is not packed, where its rows lie along F, as in
/// [N, D, F], or in two matrices.
[[nodiscard]] inline std::optional<packed_gate> packed_gate_of(const gate_block& block) {
  if (!block.tensor->is_packed() || !detail::moe::ffn_comes_first(block.layout)) {
    return std::nullopt;
  }
  const bool is_interleaved = block.layout == gate_layout::n2fd_interleaved;
  const bool is_second = (block.half == fused_half::up) != (block.layout == gate_layout::n2fd_up_first);
  const index_t each = block.ffn_dim * (detail::moe::is_fused(block.layout) ? 2 : 1);
  const auto [matrix, begin] = block.tensor->matrix_with(block.index * each, each);
  if (matrix == nullptr || matrix->cols() != block.hidden_dim) {
    return std::nullopt;
  }
  const index_t skip = !is_second ? 0 : is_interleaved ? 1 : block.ffn_dim;
  return packed_gate(*matrix, begin + skip, is_interleaved ? 2 : 1, block.ffn_dim);
}

MPIROUTER_END
