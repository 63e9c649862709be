// What a number is: concepts of storage types and of the type that sums of them are taken in; from one to the
// other.
#pragma once

#include <mpi_router/core/storage_traits.hpp>

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

}  // namespace core

/// A storage type: f64, f32, bf16, f16, or one that storage_traits was specialised for. No integers.
template <class T>
concept Scalar = requires { typename storage_traits<std::remove_const_t<T>>::accumulator; };

/// The element of what is written.
template <class T>
concept WritableScalar = Scalar<T> && !std::is_const_v<T>;

/// A type that sums are taken in.
template <class S>
concept Accumulator = std::same_as<S, float> || std::same_as<S, double>;

/// The type in which values of T are summed: double for f64, float for the rest.
template <Scalar T>
using accumulator_t = typename storage_traits<std::remove_const_t<T>>::accumulator;

/// Stored value to accumulator: exact.
template <Accumulator S, Scalar T>
  requires(sizeof(T) <= sizeof(S))
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr S widen(const T& x) noexcept {
  return static_cast<S>(storage_traits<T>::widen(x));
}

/// Accumulator to stored value, rounded once, to nearest even.
template <Scalar T, Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T narrow(S x) noexcept {
  if constexpr (sizeof(T) < sizeof(accumulator_t<T>) && sizeof(accumulator_t<T>) < sizeof(S)) {
    return storage_traits<T>::narrow(core::double_to_odd_float(x));
  } else {
    return storage_traits<T>::narrow(static_cast<accumulator_t<T>>(x));
  }
}

/// True unless x is NaN or infinite. Looks at the bits, so it also holds under -ffast-math.
template <Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite(const T& x) noexcept {
  return core::is_finite_bits(storage_traits<T>::widen(x));
}

MPIROUTER_END_TYPES
