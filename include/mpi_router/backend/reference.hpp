// Plain loops over any view: the default backend, and the oracle of every test.
#pragma once

#include <mpi_router/core/vector_loops.hpp>

#include <algorithm>
#include <array>

MPIROUTER_BEGIN

namespace detail {

/// Whether walking along a row touches memory in larger steps than walking down a column.
template <class T>
[[nodiscard]] bool stored_by_columns(const matrix_view<const T>& a) noexcept {
  const auto distance = [](index_t stride) { return stride < 0 ? -stride : stride; };
  return distance(a.row_stride()) < distance(a.col_stride());
}

/// u = xAᵀA, returns ‖Ax‖². One read of A from memory: row by row, or by panels of columns that stay in
/// cache.
template <Accumulator S, class T, class Load, class LoadX>
[[nodiscard]] S gram_apply(const matrix_view<const T>& a, const vector_view<const S>& x,
                           const vector_view<S>& u, Load load, LoadX load_x) noexcept {
  fill_zero(u);
  S energy{0};
  if (!stored_by_columns(a)) {
    for (index_t f = 0; f < a.rows(); ++f) {
      const auto row = a.row(f);
      const S y = dot(row, x, load, load_x);
      axpy(y, row, u, load);
      energy += y * y;
    }
    return energy;
  }
  constexpr index_t panel = 64;
  std::array<S, panel> y_storage;
  for (index_t first = 0; first < a.rows(); first += panel) {
    const index_t count = std::min(panel, a.rows() - first);
    const auto columns = a.middle_rows(first, count).transposed();  // D rows of `count` contiguous elements
    const vector_view<S> y(y_storage.data(), count);
    fill_zero(y);
    for (index_t d = 0; d < columns.rows(); ++d) {
      axpy(load_x(x[d]), columns.row(d), y, load);
    }
    for (index_t d = 0; d < columns.rows(); ++d) {
      u[d] += dot(columns.row(d), vector_view<const S>(y), load, as_stored{});
    }
    energy += dot(vector_view<const S>(y), vector_view<const S>(y), as_stored{}, as_stored{});
  }
  return energy;
}

/// The exponent of the largest finite magnitude among the elements, in the sense of std::ilogb; 0 where there
/// is none.
template <Accumulator S, class T>
[[nodiscard]] int largest_exponent(const matrix_view<const T>& a) noexcept {
  largest_magnitude<S> largest;
  const auto m = stored_by_columns(a) ? a.transposed() : a;
  for (index_t f = 0; f < m.rows(); ++f) {
    largest.see(m.row(f));
  }
  return largest.exponent();
}

}  // namespace detail

/// The reference backend: any strides, any storage type, sums in S (float or double), one thread, no
/// scratch. O(F·D) time, A is read from memory once. Deterministic: the order of the sums depends on the
/// shape and layout alone.
struct reference {
  /// u = xM with M = AᵀA; returns the energy ‖Ax‖². A is [F, D], x and u have D elements.
  template <Scalar T, Accumulator S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    return detail::gram_apply(a, x, u, detail::as_stored{}, detail::as_stored{});
  }

  /// The projection y = A x. x has D elements, y has F.
  template <Scalar T, Accumulator S>
  void project(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) const {
    multiply(a, x, y);
  }

  /// u = y A. y has F elements, u has D.
  template <Scalar T, Accumulator S>
  void lift(matrix_view<const T> a, vector_view<const S> y, vector_view<S> u) const {
    multiply(a.transposed(), y, u);
  }

  /// As apply, with A and x each divided by a power of two near their largest magnitude first, so that no
  /// product leaves the range of S: xM = u · 2^image_exponent.
  template <Scalar T, Accumulator S>
  scaled_energy<S> apply_scaled(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    const int a_exponent = detail::largest_exponent<S>(a);
    return detail::scaled_gram<S>(a_exponent, x, [&](int x_exponent) {
      return detail::gram_apply(a, x, u, detail::power_of_two<S>(-a_exponent),
                                detail::power_of_two<S>(-x_exponent));
    });
  }

 private:
  template <Scalar T, Accumulator S>
  static void multiply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) {
    if (detail::stored_by_columns(a)) {
      detail::fill_zero(y);
      for (index_t d = 0; d < a.cols(); ++d) {
        detail::axpy(x[d], a.transposed().row(d), y, detail::as_stored{});
      }
    } else {
      for (index_t f = 0; f < a.rows(); ++f) {
        y[f] = detail::dot(a.row(f), x, detail::as_stored{}, detail::as_stored{});
      }
    }
  }
};

MPIROUTER_END
