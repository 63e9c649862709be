// Where the rows of a run of packed rows of the flat [N·F, D] lie, expert by expert.
#pragma once

#include <mpi_router/core/packed_format.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A run that begins with row `skipped` of its first expert. Each expert has scales of its own.
template <class View>
struct packed_run {
  View first;  // the first row, and the strides
  index_t skipped;
  index_t ffn;

  /// Neurons that share scales.
  [[nodiscard]] index_t block_rows() const {
    if constexpr (requires { first.block_rows; }) {
      return first.block_rows;
    } else {
      return 1;
    }
  }
  [[nodiscard]] index_t expert_bytes() const { return ffn * first.row_bytes; }
  /// Of the scales, where these lie apart.
  [[nodiscard]] index_t scale_expert_bytes() const {
    if constexpr (requires { first.scales; }) {
      return packed::parts_of(ffn, block_rows()) * first.scale_row_bytes;
    } else {
      return 0;
    }
  }
  /// `rows` of the k-th expert that something is here of, from the first here on.
  [[nodiscard]] View of(index_t k, index_t rows) const {
    View a = first;
    a.rows = rows;
    const auto move = [k](const void*& at, index_t expert, index_t before) {
      if (k > 0) at = static_cast<const unsigned char*>(at) + k * expert - before;
    };
    if constexpr (requires { a.scales; }) {
      move(a.codes, expert_bytes(), skipped * first.row_bytes);
      move(a.scales, scale_expert_bytes(), skipped / block_rows() * first.scale_row_bytes);
    } else {
      move(a.blocks, expert_bytes(), skipped * first.row_bytes);
    }
    return a;
  }
};

MPIROUTER_CUDA_DETAIL_END
