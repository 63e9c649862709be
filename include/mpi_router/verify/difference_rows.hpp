// The difference of two matrices, row by row, whatever each of them is stored as.
#pragma once

#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/core/views.hpp>

#include <span>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN

/// A view, [F, D], as MatrixRows. Build it with as_rows(). load_row: O(D).
template <Scalar T>
class rows_of_view {
 public:
  explicit rows_of_view(matrix_view<const T> a) : a_(a) {}
  [[nodiscard]] index_t rows() const noexcept { return a_.rows(); }
  [[nodiscard]] index_t cols() const noexcept { return a_.cols(); }

  template <Accumulator S>
  void load_row(index_t f, S* out) const {
    for (index_t d = 0; d < cols(); ++d) {
      if constexpr (sizeof(T) <= sizeof(S)) {
        out[d] = widen<S>(a_(f, d));
      } else {
        out[d] = narrow<S>(a_(f, d));
      }
    }
  }

 private:
  matrix_view<const T> a_;
};

/// What has rows, as it is, and a view as MatrixRows.
template <MatrixRowsIn<double> Rows>
[[nodiscard]] Rows as_rows(Rows rows) {
  return rows;
}
/// The rows of a matrix in memory, decoded.
template <Scalar T>
[[nodiscard]] rows_of_view<std::remove_const_t<T>> as_rows(const matrix_view<T>& a) {
  return rows_of_view<std::remove_const_t<T>>(a);
}

/// B − A of two matrices [F, D], each decoded to double: a model of MatrixRows, except that the
/// caller's scratch of 2 D doubles lets one thread at a time load a row. It holds copies of A and B (a few
/// spans, for packed weights). Throws usage_error where the shapes differ or the scratch has another size.
///
///   std::vector<double> scratch(3 * d);
///   const std::span<double> all(scratch);
///   const difference_rows change(as_rows(a), as_rows(b), all.first(2 * d));
///   auto op = gram_of_rows<double>(change, all.last(d));
template <MatrixRowsIn<double> A, MatrixRowsIn<double> B>
class difference_rows {
 public:
  difference_rows(A a, B b, std::span<double> scratch)
      : a_(std::move(a)), b_(std::move(b)), scratch_(scratch) {
    core::expect(a_.rows() == b_.rows() && a_.cols() == b_.cols(), "difference_rows: [", a_.rows(), ", ",
                 a_.cols(), "] and [", b_.rows(), ", ", b_.cols(), "]");
    core::expect(static_cast<index_t>(scratch.size()) == 2 * cols(), "difference_rows: rows of ", cols(),
                 " elements need a scratch of ", 2 * cols(), ", not ", scratch.size());
  }

  [[nodiscard]] index_t rows() const { return b_.rows(); }
  [[nodiscard]] index_t cols() const { return b_.cols(); }

  void load_row(index_t f, double* out) const {
    b_.load_row(f, out);
    a_.load_row(f, scratch_.data());
    for (index_t d = 0; d < cols(); ++d) {
      out[d] -= scratch_[static_cast<std::size_t>(d)];
    }
  }
  /// Rounded once.
  void load_row(index_t f, float* out) const {
    double* const row = scratch_.data() + cols();
    load_row(f, row);
    for (index_t d = 0; d < cols(); ++d) {
      out[d] = narrow<float>(row[d]);
    }
  }

 private:
  A a_;
  B b_;
  std::span<double> scratch_;
};

MPIROUTER_END
