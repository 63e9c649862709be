// Problems whose rows lie nearly across all that A sees, and their exact answers in long double, which holds
// the squares of all.
#pragma once

#include <mpi_router/core/views.hpp>

#include <doctest/doctest.h>
#include <support/tolerance.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <vector>

namespace test_across {
using namespace mpi_router;
using namespace test_support;

using wide = long double;
using wides = std::vector<wide>;
static_assert(std::numeric_limits<wide>::max_exponent > 4 * 1074, "squares of the least double");

inline wide dot(const wides& x, const wides& y) {
  wide sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}
inline wide norm(const wides& x) { return std::sqrt(dot(x, x)); }
inline wides plus(wides x, wide factor, const wides& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += factor * y[i];
  return x;
}
inline wides times(wide factor, const wides& x) { return plus(wides(x.size()), factor, x); }

inline constexpr index_t F = 3, D = 5;
inline constexpr wide radius = 3;

/// A sees the first three coordinates; of them the row has little.
struct problem {
  wides a, row;

  problem(int of_a, int of_row, int little) {
    a = {1, 2, -1, 0, 0, 3, 1, 2, 0, 0, -2, 0, 1, 0, 0};
    row = {1, -3, 2, 1, -1};
    for (wide& x : a) x = std::ldexp(x, of_a);
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = std::ldexp(row[i], i < 3 ? little : of_row);
  }
  [[nodiscard]] wides project(const wides& x) const {
    wides y(F);
    for (std::size_t f = 0; f < F; ++f) {
      for (std::size_t d = 0; d < D; ++d) y[f] += a[f * D + d] * x[d];
    }
    return y;
  }
  [[nodiscard]] wides image(const wides& x) const {
    const wides y = project(x);
    wides u(D);
    for (std::size_t f = 0; f < F; ++f) {
      for (std::size_t d = 0; d < D; ++d) u[d] += y[f] * a[f * D + d];
    }
    return u;
  }
  [[nodiscard]] wide rayleigh() const { return dot(image(row), row) / dot(row, row); }
  [[nodiscard]] wide cosine() const { return rayleigh() * norm(row) / norm(image(row)); }
  [[nodiscard]] wides residual() const { return times(1 / norm(row), plus(image(row), -rayleigh(), row)); }
  /// A β that helps a little: a part of σ₁⁴, as far as S can hold it.
  template <class S>
  [[nodiscard]] S small_beta() const {
    const wides u = image(image(row));
    const wide sigma = norm(image(u)) / norm(u);
    return static_cast<S>(std::min(sigma * sigma / 64, static_cast<wide>(std::numeric_limits<S>::max())));
  }
  /// C x/‖x‖ of x = r̂ + ηg.
  [[nodiscard]] wides ascent(wide eta) const {
    const wides x = plus(times(1 / norm(row), row), eta, residual());
    return times(radius / norm(x), x);
  }
};

template <class S>
std::vector<S> in_range(const wides& x) {
  std::vector<S> y(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) y[i] = static_cast<S>(x[i]);
  return y;
}

/// Equal as numbers of S: infinite where the true one is, and to a few steps where it is subnormal.
template <class S>
bool same(S got, wide want) {
  if (std::isinf(static_cast<S>(want))) return got == static_cast<S>(want);
  const wide step = 4 * static_cast<wide>(std::numeric_limits<S>::denorm_min());
  return std::abs(static_cast<wide>(got) - want) <=
         static_cast<wide>(tolerance<S>.identity) * std::abs(want) + step;
}
/// The same in the norm.
template <class V>
bool same_vector(const V& got, const wides& want) {
  using S = std::remove_cvref_t<decltype(got[0])>;
  const wide step = 4 * static_cast<wide>(std::numeric_limits<S>::denorm_min());
  const wide bound = static_cast<wide>(tolerance<S>.identity) * norm(want) + step;
  bool all = true;
  for (std::size_t i = 0; i < want.size(); ++i) {
    all = all && std::abs(static_cast<wide>(got[static_cast<decltype(got.size())>(i)]) - want[i]) <= bound;
  }
  return all;
}

/// f(problem) from rows that are not across at all to those of which A sees the least subnormal number, with
/// weights and rows of other sizes.
template <class S, class Check>
void for_each_problem(const Check& check) {
  const int least = std::numeric_limits<S>::min_exponent - std::numeric_limits<S>::digits;
  const int most = std::numeric_limits<S>::max_exponent;
  for (const int of_a : {-most / 4, 0, most / 4}) {
    for (const int of_row : {-most / 2, 0, std::same_as<S, float> ? most / 3 : most / 2}) {
      for (int little = of_row; little >= least;
           little = little > least + 3 ? (little + least) / 2 : little - 1) {
        CAPTURE(of_a);
        CAPTURE(of_row);
        CAPTURE(little);
        check(problem(of_a, of_row, little));
      }
    }
  }
}

/// A matrix that is seen row by row.
template <class S>
struct stored_rows {
  const S* data;
  [[nodiscard]] static index_t rows() { return F; }
  [[nodiscard]] static index_t cols() { return D; }
  template <class T>
  void load_row(index_t f, T* out) const {
    for (index_t d = 0; d < D; ++d) out[d] = static_cast<T>(data[f * D + d]);
  }
};

}  // namespace test_across
