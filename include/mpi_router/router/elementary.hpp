// The exponential and the logarithm that scores need, in a form that compilers vectorise: the loops of a gate
// take most of their time in them. float here; double goes to the standard library.
#pragma once

#include <mpi_router/manifold/scaled.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

MPIROUTER_BEGIN
namespace detail {

/// +∞ by its bits: with -ffast-math a compiler may refuse its name.
template <Accumulator S>
inline constexpr S infinite =
    std::bit_cast<S>(static_cast<std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>>(
        std::same_as<S, float> ? 0x7f800000U : 0x7ff0000000000000U));

/// By the bits, so that it holds under -ffast-math.
template <Accumulator S>
[[nodiscard]] bool has_nan(const vector_view<const S>& x) noexcept {
  return largest_magnitude_bits(x) > std::bit_cast<decltype(largest_magnitude_bits(x))>(infinite<S>);
}
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_nan(S x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude_mask = static_cast<bits>(~bits{0}) >> 1;
  return (std::bit_cast<bits>(x) & magnitude_mask) > std::bit_cast<bits>(infinite<S>);
}

/// NaN, as an infinite bias can make of a score, counts as −∞: every key has its place in the order.
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S as_key(S x) noexcept {
  return is_nan(x) ? -infinite<S> : x;
}

template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_minus_infinity(S x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  return std::bit_cast<bits>(x) == std::bit_cast<bits>(-infinite<S>);
}

/// `negative` where the sign bit of x is set, `otherwise` where not: by bits, since a branch would keep a
/// loop from being vectorised.
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S by_sign(S x, S negative, S otherwise) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::int32_t, std::int64_t>;
  const bits mask = std::bit_cast<bits>(x) >> (8 * sizeof(S) - 1);
  return std::bit_cast<S>((std::bit_cast<bits>(negative) & mask) | (std::bit_cast<bits>(otherwise) & ~mask));
}

/// eˣ for x ≤ 0, −∞ included; within 2 units in the last place where the result is normal.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float exp_of_nonpositive(float x) noexcept {
  // x = n log 2 + t with |t| ≤ log 2 / 2; eᵗ by its series, 2ⁿ by its bits, in two halves for
  // results that are subnormal. Below e⁻¹⁰⁴ everything rounds to zero; the bits of magnitudes are in the
  // order of their values.
  const auto magnitude_bits =
      std::min(std::bit_cast<std::int32_t>(x) & 0x7fffffff, std::bit_cast<std::int32_t>(104.0F));
  const float at = -std::bit_cast<float>(magnitude_bits);
  const auto n = static_cast<std::int32_t>(at * 1.44269504F - 0.5F);
  const auto whole = static_cast<float>(n);
  const float t = (at - whole * 0.693359375F) + whole * 2.12194440e-4F;
  float p = 1.0F / 5040.0F;
  p = p * t + 1.0F / 720.0F;
  p = p * t + 1.0F / 120.0F;
  p = p * t + 1.0F / 24.0F;
  p = p * t + 1.0F / 6.0F;
  p = p * t + 0.5F;
  p = p * t * t + t + 1.0F;
  const std::int32_t half = n / 2;
  const auto power = [](std::int32_t exponent) { return std::bit_cast<float>((exponent + 127) * (1 << 23)); };
  return p * power(half) * power(n - half);
}
[[nodiscard]] inline double exp_of_nonpositive(double x) noexcept { return std::exp(x); }

/// log(1 + e) for e in [0, 1], to a few units in the last place however small e is.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float log1p_of_unit(float e) noexcept {
  const float s = e / (2.0F + e);  // log(1 + e) = 2 artanh s, s ≤ 1/3
  const float square = s * s;
  float p = 1.0F / 13.0F;
  p = p * square + 1.0F / 11.0F;
  p = p * square + 1.0F / 9.0F;
  p = p * square + 1.0F / 7.0F;
  p = p * square + 0.2F;
  p = p * square + 1.0F / 3.0F;
  return 2.0F * (s + s * square * p);
}
[[nodiscard]] inline double log1p_of_unit(double e) noexcept { return std::log1p(e); }

/// The largest element, −∞ for none. Sixteen lanes, so that it need not be taken one by one.
template <Accumulator S>
[[nodiscard]] S largest_of(const S* x, index_t n) noexcept {
  constexpr index_t width = 16;
  std::array<S, width> lane;
  lane.fill(-infinite<S>);
  const auto take = [&lane](index_t k, S value) {
    S& held = lane[static_cast<std::size_t>(k)];
    held = value > held ? value : held;
  };
  const index_t whole = n - n % width;
  for (index_t i = 0; i < whole; i += width) {
    for (index_t k = 0; k < width; ++k) {
      take(k, x[i + k]);
    }
  }
  for (index_t i = whole; i < n; ++i) {
    take(0, x[i]);
  }
  S largest = lane[0];
  for (const S value : lane) {
    largest = value > largest ? value : largest;
  }
  return largest;
}

}  // namespace detail
MPIROUTER_END
