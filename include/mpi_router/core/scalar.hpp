// What a number is: the storage types and the type that sums of them are taken in.
#pragma once

#include <mpi_router/core/config.hpp>

#include <bit>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

namespace core {

// Bit patterns, so that the tests for NaN and infinity survive -ffast-math.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite_bits(float x) noexcept {
  return (std::bit_cast<std::uint32_t>(x) & 0x7f800000U) != 0x7f800000U;
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite_bits(double x) noexcept {
  return (std::bit_cast<std::uint64_t>(x) & 0x7ff0000000000000ULL) != 0x7ff0000000000000ULL;
}

// Cut to what float can hold, with a last bit of 1 where anything was cut off: a second rounding, to fewer
// bits, then ends where one rounding would.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float double_to_odd_float(double x) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const auto exponent = (bits >> 52) & 0x7ffU;
  if (exponent == 0x7ffU || exponent < 875U) {  // not finite, or below 2^-148: 0 in every smaller type
    return static_cast<float>(x);
  }
  const auto too_many = exponent < 897U ? 926U - exponent : 29U;  // more for what is subnormal as a float
  const auto one = std::uint64_t{1} << too_many;
  const auto cut = bits & (one - 1U);
  return static_cast<float>(std::bit_cast<double>((bits - cut) | (cut != 0U ? one : 0U)));
}

// Round to nearest, ties to even; NaN stays NaN (made quiet).
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint16_t float_to_bf16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  }
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float bf16_to_float(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint16_t float_to_f16(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = (bits >> 16) & 0x8000U;
  const auto magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) {
    return static_cast<std::uint16_t>(sign | 0x7e00U | ((magnitude >> 13) & 0x3ffU));
  }
  if (magnitude >= 0x477ff000U) {  // rounds to 2^16 or more: infinity
    return static_cast<std::uint16_t>(sign | 0x7c00U);
  }
  if (magnitude < 0x38800000U) {  // subnormal in half precision: shift the full significand down
    const auto exponent = magnitude >> 23;
    if (exponent < 102U) {  // below half of the smallest subnormal
      return static_cast<std::uint16_t>(sign);
    }
    const auto significand = (magnitude & 0x7fffffU) | 0x800000U;
    const auto shift = 126U - exponent;
    const auto half = 1U << (shift - 1U);
    const auto odd = (significand >> shift) & 1U;
    return static_cast<std::uint16_t>(sign | ((significand + half - 1U + odd) >> shift));
  }
  const auto rounded = magnitude + 0xfffU + ((magnitude >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float f16_to_float(std::uint16_t bits) noexcept {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U) {
    return std::bit_cast<float>(sign | 0x7f800000U | ((magnitude & 0x3ffU) << 13));
  }
  if (magnitude >= 0x400U) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000U));
  }
  const float value = static_cast<float>(magnitude) * 0x1p-24F;
  return sign != 0U ? -value : value;
}

}  // namespace core

/// bfloat16 storage: 8 exponent and 7 significand bits. Arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit bf16(float x) noexcept : bits(core::float_to_bf16(x)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::bf16_to_float(bits);
  }
};

/// IEEE binary16 storage: 5 exponent and 10 significand bits. Arithmetic is done in float.
struct f16 {
  std::uint16_t bits = 0;
  f16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit f16(float x) noexcept : bits(core::float_to_f16(x)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::f16_to_float(bits);
  }
};

/// How the bits of a storage type are laid out: what a vectorised load needs to know.
enum class storage_format : unsigned char { f64, f32, bf16, f16 };

/// Specialise this to let another type be the element of a view (backend/eigen.hpp does so for
/// Eigen::bfloat16 and Eigen::half). `accumulator` is float or double; the type converts to and from it.
template <class T>
struct scalar_traits;
template <>
struct scalar_traits<double> {
  using accumulator = double;
  static constexpr storage_format format = storage_format::f64;
};
template <>
struct scalar_traits<float> {
  using accumulator = float;
  static constexpr storage_format format = storage_format::f32;
};
template <>
struct scalar_traits<bf16> {
  using accumulator = float;
  static constexpr storage_format format = storage_format::bf16;
};
template <>
struct scalar_traits<f16> {
  using accumulator = float;
  static constexpr storage_format format = storage_format::f16;
};

/// A storage type: f64, f32, bf16, f16, or one that scalar_traits was specialised for. No integers.
template <class T>
concept Scalar = requires { typename scalar_traits<std::remove_const_t<T>>::accumulator; };

/// The element of what is written.
template <class T>
concept WritableScalar = Scalar<T> && !std::is_const_v<T>;

/// A type that sums are taken in.
template <class S>
concept Accumulator = std::same_as<S, float> || std::same_as<S, double>;

/// The type in which values of T are summed: double for f64, float for the rest.
template <Scalar T>
using accumulator_t = typename scalar_traits<std::remove_const_t<T>>::accumulator;

/// Stored value to accumulator: exact.
template <Accumulator S, Scalar T>
  requires(sizeof(T) <= sizeof(S))
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr S widen(const T& x) noexcept {
  return static_cast<S>(static_cast<accumulator_t<T>>(x));
}

/// Accumulator to stored value, rounded once, to nearest even.
template <Scalar T, Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T narrow(S x) noexcept {
  if constexpr (sizeof(T) < sizeof(accumulator_t<T>) && sizeof(accumulator_t<T>) < sizeof(S)) {
    return static_cast<T>(core::double_to_odd_float(x));
  } else {
    return static_cast<T>(static_cast<accumulator_t<T>>(x));
  }
}

/// True unless x is NaN or infinite. Looks at the bits, so it also holds under -ffast-math.
template <Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite(const T& x) noexcept {
  return core::is_finite_bits(static_cast<accumulator_t<T>>(x));
}

MPIROUTER_END_TYPES
