// Vectors with gaps, and products in double to hold results against.
#pragma once

#include <mpi_router/core/views.hpp>

#include <support/random.hpp>

#include <vector>

namespace test_support {

/// A vector with gaps, which nobody may write.
template <class S>
struct strided {
  std::vector<S> all;
  index_t size, stride;
  strided(index_t n, index_t s, S value = S(9))
      : all(static_cast<std::size_t>(n * s), S(77)), size(n), stride(s) {
    for (index_t i = 0; i < n; ++i) view()[i] = value;
  }
  strided(random_source& random, index_t n, index_t s) : strided(n, s) {
    for (index_t i = 0; i < n; ++i) view()[i] = static_cast<S>(random.normal());
  }
  mpi_router::vector_view<S> view() { return {all.data(), size, stride}; }
  mpi_router::vector_view<const S> read() { return view(); }
  bool gaps_untouched() {
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (static_cast<index_t>(i) % stride != 0 && all[i] != S(77)) return false;
    }
    return true;
  }
};

/// y = A x in double.
template <class T, class V>
[[nodiscard]] std::vector<double> product(const mpi_router::matrix_view<const T>& a, const V& x) {
  std::vector<double> y(static_cast<std::size_t>(a.rows()));
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      y[static_cast<std::size_t>(f)] += mpi_router::widen<double>(a(f, d)) * static_cast<double>(x[d]);
    }
  }
  return y;
}
[[nodiscard]] std::vector<double> lifted(const auto& a, const std::vector<double>& y) {
  return product(a.transposed(), mpi_router::vector_view<const double>(y));
}
}  // namespace test_support
