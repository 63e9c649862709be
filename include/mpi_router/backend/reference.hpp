// Plain loops over any view: the default backend, and the oracle of every test.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

MPIROUTER_BEGIN

namespace detail {

/// 2^exponent as a product of two finite factors, so that it may lie outside the range of S.
template <Accumulator S>
struct power_of_two {
  S first;
  S second;
  explicit power_of_two(int exponent)
      : first(std::ldexp(S{1}, exponent / 2)), second(std::ldexp(S{1}, exponent - exponent / 2)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept { return x * first * second; }
};

struct as_stored {
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept {
    return x;
  }
};

// Eight fixed lanes: the compiler may vectorise without being allowed to reorder, and the rounding error
// grows with D/8 instead of D.
inline constexpr index_t lanes = 8;

template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_lanes(const std::array<S, lanes>& lane) noexcept {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

template <Accumulator S, class T, class Load, class LoadX>
[[nodiscard]] S dot(const vector_view<const T>& a, const vector_view<const S>& x, Load load,
                    LoadX load_x) noexcept {
  std::array<S, lanes> lane{};
  const index_t n = a.size();
  const index_t whole = n - n % lanes;
  const auto run = [&](auto stride_a, auto stride_x) {
    for (index_t i = 0; i < whole; i += lanes) {
      for (index_t k = 0; k < lanes; ++k) {
        lane[static_cast<std::size_t>(k)] +=
            load(widen<S>(a.data()[(i + k) * stride_a])) * load_x(x.data()[(i + k) * stride_x]);
      }
    }
    for (index_t i = whole; i < n; ++i) {
      lane[static_cast<std::size_t>(i - whole)] +=
          load(widen<S>(a.data()[i * stride_a])) * load_x(x.data()[i * stride_x]);
    }
  };
  if (a.is_contiguous() && x.is_contiguous()) {
    run(std::integral_constant<index_t, 1>{}, std::integral_constant<index_t, 1>{});
  } else {
    run(a.stride(), x.stride());
  }
  return sum_lanes(lane);
}

template <Accumulator S, class T, class Load>
void axpy(S alpha, const vector_view<const T>& a, const vector_view<S>& u, Load load) noexcept {
  const auto run = [&](auto stride_a, auto stride_u) {
    for (index_t i = 0; i < a.size(); ++i) {
      u.data()[i * stride_u] += alpha * load(widen<S>(a.data()[i * stride_a]));
    }
  };
  if (a.is_contiguous() && u.is_contiguous()) {
    run(std::integral_constant<index_t, 1>{}, std::integral_constant<index_t, 1>{});
  } else {
    run(a.stride(), u.stride());
  }
}

template <Accumulator S>
void fill_zero(const vector_view<S>& u) noexcept {
  for (index_t i = 0; i < u.size(); ++i) {
    u[i] = S{0};
  }
}

/// out = in, rounded where out is stored in fewer bits than S.
template <Accumulator S, class T, class O>
void copy_into(const vector_view<T>& in, const vector_view<O>& out) noexcept {
  for (index_t i = 0; i < in.size(); ++i) {
    out[i] = narrow<O>(widen<S>(in[i]));
  }
}

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

/// The exponent of the largest magnitude among the elements, in the sense of std::ilogb; 0 where there is
/// none.
template <Accumulator S, class T>
[[nodiscard]] int largest_exponent(const matrix_view<const T>& a) noexcept {
  S largest{0};
  const auto m = stored_by_columns(a) ? a.transposed() : a;
  for (index_t f = 0; f < m.rows(); ++f) {
    for (index_t d = 0; d < m.cols(); ++d) {
      const S value = std::abs(widen<S>(m(f, d)));
      if (is_finite(value)) {
        largest = std::max(largest, value);
      }
    }
  }
  return largest > S{0} ? std::ilogb(largest) : 0;
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
    const int x_exponent =
        detail::largest_exponent<S>(matrix_view<const S>(x.data(), x.size(), 1, x.stride(), 1));
    const S energy = detail::gram_apply(a, x, u, detail::power_of_two<S>(-a_exponent),
                                        detail::power_of_two<S>(-x_exponent));
    return {energy, 2 * a_exponent + x_exponent, 2 * (a_exponent + x_exponent)};
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
