// One matrix in every storage that a view can name, so that a law is tested on all of them.
#pragma once

#include <mpi_router/core/views.hpp>

#include <array>
#include <cstddef>
#include <limits>
#include <string_view>
#include <vector>

namespace test_support {

using mpi_router::index_t;

enum class layout : unsigned char {
  row_major,
  column_major,
  padded_rows,
  padded_columns,
  both_strided,
  reversed
};
inline constexpr std::array all_layouts{layout::row_major,      layout::column_major, layout::padded_rows,
                                        layout::padded_columns, layout::both_strided, layout::reversed};

[[nodiscard]] constexpr std::string_view to_string(layout l) noexcept {
  switch (l) {
    case layout::row_major: return "row_major";
    case layout::column_major: return "column_major";
    case layout::padded_rows: return "padded_rows";
    case layout::padded_columns: return "padded_columns";
    case layout::both_strided: return "both_strided";
    case layout::reversed: return "reversed";
  }
  return "unknown";
}

/// Owns a rows × cols matrix of T in a given layout. What lies between the elements is NaN, so that whoever
/// reads it is found out. `shift` leaves that many elements before the first: data that no vector is aligned
/// to.
template <mpi_router::Scalar T>
class stored_matrix {
 public:
  stored_matrix(index_t rows, index_t cols, layout l, index_t shift = 0) : rows_(rows), cols_(cols) {
    switch (l) {
      case layout::row_major: set(cols, 1); break;
      case layout::column_major: set(1, rows); break;
      case layout::padded_rows: set(cols + 3, 1); break;
      case layout::padded_columns: set(1, rows + 3); break;
      case layout::both_strided: set(2 * cols + 1, 2); break;
      case layout::reversed: set(-cols, 1); break;
    }
    if (rows == 0 || cols == 0) return;
    const index_t row_reach = row_stride_ * (rows - 1);
    const index_t col_reach = col_stride_ * (cols - 1);
    first_ = shift + (row_reach < 0 ? -row_reach : 0);
    const index_t size = shift + (row_reach < 0 ? -row_reach : row_reach) + col_reach + 1;
    elements_.assign(static_cast<std::size_t>(size),
                     mpi_router::narrow<T>(std::numeric_limits<mpi_router::accumulator_t<T>>::quiet_NaN()));
  }

  /// A copy of `values` (row after row, any type that converts to the accumulator of T), rounded to T.
  template <class U>
  stored_matrix(const std::vector<U>& values, index_t rows, index_t cols, layout l, index_t shift = 0)
      : stored_matrix(rows, cols, l, shift) {
    const auto out = view();
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < cols; ++j) {
        out(i, j) = mpi_router::narrow<T>(
            static_cast<mpi_router::accumulator_t<T>>(values[static_cast<std::size_t>(i * cols + j)]));
      }
    }
  }

  [[nodiscard]] mpi_router::matrix_view<T> view() {
    return {elements_.data() + first_, rows_, cols_, row_stride_, col_stride_};
  }
  [[nodiscard]] mpi_router::matrix_view<const T> view() const {
    return {elements_.data() + first_, rows_, cols_, row_stride_, col_stride_};
  }

 private:
  void set(index_t row_stride, index_t col_stride) {
    row_stride_ = row_stride;
    col_stride_ = col_stride;
  }

  std::vector<T> elements_;
  index_t rows_;
  index_t cols_;
  index_t row_stride_ = 0;
  index_t col_stride_ = 1;
  index_t first_ = 0;
};

}  // namespace test_support
