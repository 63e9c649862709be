// Numbers and norms with their scale taken out, so that the method works wherever its input can be stored.
#pragma once

#include <mpi_router/core/vector_loops.hpp>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

MPIROUTER_BEGIN_TYPES

/// value · 2^exponent: what may lie outside of the range of S. A plain number is one.
template <Accumulator S>
struct scaled {
  S value{0};
  int exponent = 0;

  constexpr scaled() = default;
  MPIROUTER_ALWAYS_INLINE constexpr scaled(S number, int power = 0) noexcept
      : value(number), exponent(power) {}

  /// As a number of S: infinite or 0 where S cannot hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S unscaled() const noexcept { return std::ldexp(value, exponent); }
  /// The same number with |value| in [1, 2), so that products and quotients stay in range. What is zero or
  /// not finite stays as it is.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled normalized() const noexcept {
    if (value == S{0} || !is_finite(value)) return *this;
    const int power = std::ilogb(value);
    return {std::ldexp(value, -power), exponent + power};
  }
  MPIROUTER_ALWAYS_INLINE friend scaled operator*(scaled a, scaled b) noexcept {
    return {a.value * b.value, a.exponent + b.exponent};
  }
  MPIROUTER_ALWAYS_INLINE friend scaled operator/(scaled a, scaled b) noexcept {
    return {a.value / b.value, a.exponent - b.exponent};
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// A vector times a number: its element i is factor · x_i. The power of two of the factor is applied in two
/// halves, so that it may itself be out of range.
template <Accumulator S, class T = S>
class scaled_vector {
 public:
  scaled_vector(const vector_view<const T>& x, const scaled<S>& factor) noexcept
      : scaled_vector(factor.normalized(), x) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator[](index_t i) const noexcept {
    return widen<S>(x_[i]) * first_ * second_;
  }

 private:
  scaled_vector(const scaled<S>& factor, const vector_view<const T>& x) noexcept
      : x_(x),
        first_(std::ldexp(factor.value, factor.exponent / 2)),
        second_(std::ldexp(S{1}, factor.exponent - factor.exponent / 2)) {}

  vector_view<const T> x_;
  S first_;
  S second_;
};

/// f(element) with element(i) = x_i in S, and without the stride where that is 1, so that loops vectorise.
template <Accumulator S, class T, class F>
[[nodiscard]] auto with_elements(const vector_view<T>& x, const F& f) noexcept {
  return x.is_contiguous() ? f([data = x.data()](index_t i) { return widen<S>(data[i]); })
                           : f([&x](index_t i) { return widen<S>(x[i]); });
}

/// The bits of the largest magnitude of n elements: NaN and infinity come out above every number, also under
/// -ffast-math.
template <Accumulator S, class Element>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto largest_magnitude_bits(index_t n,
                                                                  const Element& element) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude = static_cast<bits>(~bits{0}) >> 1;
  bits largest{0};
  for (index_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::bit_cast<bits>(element(i)) & magnitude);
  }
  return largest;
}
template <Accumulator S>
[[nodiscard]] auto largest_magnitude_bits(const vector_view<const S>& x) noexcept {
  return with_elements<S>(x,
                          [&x](const auto& element) { return largest_magnitude_bits<S>(x.size(), element); });
}

enum class magnitude : unsigned char { zero, finite, non_finite };

/// ‖x‖ with its scale taken out: value in [1, 2√n) for a finite x that is not zero.
template <Accumulator S>
struct scaled_norm {
  scaled<S> norm;
  magnitude kind = magnitude::zero;
};

template <Accumulator S, class Element>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled_norm<S> norm_of(index_t n, const Element& element) noexcept {
  const auto bits = largest_magnitude_bits<S>(n, element);
  const auto largest = std::bit_cast<S>(bits);
  if (!is_finite(largest)) {
    return {largest, magnitude::non_finite};
  }
  if (bits == 0) {
    return {};
  }
  const int exponent = std::ilogb(largest);
  const power_of_two<S> unscale(-exponent);
  const S squares = sum_terms<S>(n, [&](index_t i) {
    const S value = unscale(element(i));
    return value * value;
  });
  return {{std::sqrt(squares), exponent}, magnitude::finite};
}
template <Accumulator S, class T>
[[nodiscard]] scaled_norm<S> norm(const vector_view<T>& x) noexcept {
  return with_elements<S>(x, [&x](const auto& element) { return norm_of<S>(x.size(), element); });
}

/// out = factor · x; out may be x itself.
template <Accumulator S>
void scale_into(const std::type_identity_t<vector_view<const S>>& x, const vector_view<S>& out,
                const std::type_identity_t<scaled<S>>& factor) noexcept {
  // What two finite factors do not reach: a third, lest an infinite one makes NaN of a zero.
  constexpr int most = 2 * (std::numeric_limits<S>::max_exponent - 1);
  if (const scaled<S> whole = factor.normalized(); whole.exponent > most) {
    scale_into(x, out, {whole.value, whole.exponent - most});
    return scale_into(out, out, {S{1}, most});
  }
  const scaled_vector<S> product(x, factor);
  for (index_t i = 0; i < x.size(); ++i) {
    out[i] = product[i];
  }
}

}  // namespace detail
MPIROUTER_END
