// A packed matrix element by element, in double: for weights out of the range of float, and for vectors with
// gaps.
#pragma once

#include <mpi_router/core/packed_format.hpp>
#include <mpi_router/core/vector_loops.hpp>

#include <cmath>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Of elements code · 2^exponent, the products in double, u summed in float. Tens of times slower than the
/// kernels. O(F·D), nothing is allocated.
template <class View>
class packed_elements {
 public:
  explicit packed_elements(const View& a, int exponent = 0) noexcept
      : a_(a), factor_(std::ldexp(1.0, exponent)) {}

  /// The exponent of the largest finite magnitude, in the sense of std::ilogb; 0 where there is none.
  [[nodiscard]] int exponent() const noexcept {
    largest_magnitude<double> largest;
    for (index_t f = 0; f < a_.rows; ++f) {
      for (index_t d = 0; d < a_.cols; ++d) {
        largest.see(at(f, d));
      }
    }
    return largest.exponent();
  }

  /// u = x 2^x_exponent M; returns the energy.
  [[nodiscard]] float apply(const vector_view<const float>& x, const vector_view<float>& u,
                            int x_exponent = 0) const noexcept {
    const double x_factor = std::ldexp(1.0, x_exponent);
    detail::fill_zero(u);
    double energy = 0;
    for (index_t f = 0; f < a_.rows; ++f) {
      const double y = dot(f, x) * x_factor;
      axpy(y, f, u);
      energy += y * y;
    }
    return static_cast<float>(energy);
  }
  void project(const vector_view<const float>& x, const vector_view<float>& y) const noexcept {
    for (index_t f = 0; f < a_.rows; ++f) {
      y[f] = static_cast<float>(dot(f, x));
    }
  }
  void lift(const vector_view<const float>& y, const vector_view<float>& u) const noexcept {
    detail::fill_zero(u);
    for (index_t f = 0; f < a_.rows; ++f) {
      axpy(double{y[f]}, f, u);
    }
  }

 private:
  [[nodiscard]] double at(index_t f, index_t d) const noexcept {
    return packed_format<View>::at(a_, f, d) * factor_;
  }
  [[nodiscard]] double dot(index_t f, const vector_view<const float>& x) const noexcept {
    double sum = 0;
    for (index_t d = 0; d < a_.cols; ++d) {
      sum += at(f, d) * double{x[d]};
    }
    return sum;
  }
  void axpy(double y, index_t f, const vector_view<float>& u) const noexcept {
    for (index_t d = 0; d < a_.cols; ++d) {
      u[d] += static_cast<float>(y * at(f, d));
    }
  }

  const View& a_;
  double factor_;
};

}  // namespace detail::kernels

MPIROUTER_END
