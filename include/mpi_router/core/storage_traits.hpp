// What a storage type must say of itself, bf16 and f16 among them: all that a new one takes is its struct and
// one specialisation of storage_traits. Scalar code, vector registers and GPUs follow from the layout of its
// bits.
#pragma once

#include <mpi_router/core/config.hpp>

#include <cstdint>
#include <string_view>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

namespace core {

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint32_t format_code(unsigned exponent_bits,
                                                                          unsigned significand_bits,
                                                                          bool has_infinity = true) noexcept {
  return exponent_bits | significand_bits << 8 | (has_infinity ? 1U : 0U) << 16;
}

}  // namespace core

/// How the bits of a storage type are laid out: what a load needs to know. The value says all of it, so that
/// there are more formats than these names (make_storage_format).
enum class storage_format : std::uint32_t {
  f64 = core::format_code(11, 52),
  f32 = core::format_code(8, 23),
  bf16 = core::format_code(8, 7),
  f16 = core::format_code(5, 10)
};

/// A format of one sign bit, so many exponent bits (8 at most, biased by half their range) and significand
/// bits. The largest exponent is kept for infinities and NaN as in IEEE 754; or, without infinities, the
/// pattern of all ones is NaN and every other a number, as in E4M3 of the Open Compute Project ("FN").
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr storage_format make_storage_format(
    unsigned exponent_bits, unsigned significand_bits, bool has_infinity = true) noexcept {
  return static_cast<storage_format>(core::format_code(exponent_bits, significand_bits, has_infinity));
}

namespace core {

/// A storage_format, read.
struct bit_layout {
  unsigned exponent_bits;
  unsigned significand_bits;
  bool has_infinity;

  MPIROUTER_HOST_DEVICE constexpr explicit bit_layout(storage_format format) noexcept
      : exponent_bits(static_cast<std::uint32_t>(format) & 0xffU),
        significand_bits(static_cast<std::uint32_t>(format) >> 8 & 0xffU),
        has_infinity((static_cast<std::uint32_t>(format) >> 16 & 1U) != 0) {}

  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr unsigned bytes() const noexcept {
    return (1 + exponent_bits + significand_bits) / 8;
  }
  /// The bits of a float's significand that are cut.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr unsigned cut() const noexcept {
    return 23 - significand_bits;
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t sign() const noexcept {
    return 1U << (exponent_bits + significand_bits);
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t bias() const noexcept {
    return (1U << (exponent_bits - 1)) - 1;
  }
  /// What an exponent of this format lacks to one of float, where float has it.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t rebase() const noexcept {
    return (127 - bias()) << 23;
  }
  /// The least pattern of a magnitude that is no number: infinity, or the NaN of a format that has none.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t beyond() const noexcept {
    return has_infinity ? ((1U << exponent_bits) - 1) << significand_bits : sign() - 1;
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t quiet_nan() const noexcept {
    return has_infinity ? beyond() | 1U << (significand_bits - 1) : beyond();
  }
  /// The least number but zero, a power of two, as a float.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr float smallest() const noexcept {
    return __builtin_bit_cast(float, (128 - bias() - significand_bits) << 23);
  }
};

// On bit patterns, so that NaN and infinity survive -ffast-math; by the compiler's own bit cast, for
// std::bit_cast is not available in device code.

/// The value of a stored pattern: exact. For formats that float contains.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr float widen_bits(std::uint32_t bits, bit_layout l) noexcept {
  if (l.exponent_bits == 8) {
    return __builtin_bit_cast(float, bits << l.cut());
  }
  const std::uint32_t sign = (bits & l.sign()) << (31 - l.exponent_bits - l.significand_bits);
  const std::uint32_t magnitude = bits & (l.sign() - 1);
  if (magnitude >= l.beyond()) {
    return __builtin_bit_cast(float, sign | 0x7f800000U | magnitude << l.cut());  // all ones are NaN, too
  }
  if (magnitude >> l.significand_bits != 0) {
    return __builtin_bit_cast(float, sign | ((magnitude << l.cut()) + l.rebase()));
  }
  const float value = static_cast<float>(magnitude) * l.smallest();
  return sign != 0 ? -value : value;
}

/// The nearest stored pattern, ties to even; what is too large becomes infinite, or NaN in a format without
/// infinities. NaN stays NaN (made quiet).
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t narrow_bits(float x, bit_layout l) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const std::uint32_t half_less = (1U << (l.cut() - 1)) - 1U + ((bits >> l.cut()) & 1U);
  const bool is_nan = magnitude > 0x7f800000U;
  if (l.exponent_bits == 8) {
    return is_nan ? bits >> l.cut() | l.quiet_nan() : (bits + half_less) >> l.cut();
  }
  const std::uint32_t sign = bits >> (31 - l.exponent_bits - l.significand_bits) & l.sign();
  if (is_nan) {
    return sign | l.quiet_nan() | (magnitude & 0x7fffffU) >> l.cut();
  }
  if (magnitude < l.rebase() + 0x800000U) {  // subnormal: shift the significand down
    const std::uint32_t exponent = magnitude >> 23;
    const std::uint32_t shift = 151 - l.bias() - l.significand_bits - exponent;
    if (shift > 24) {  // below half of the smallest
      return sign;
    }
    const std::uint32_t significand = (magnitude & 0x7fffffU) | 0x800000U;
    const std::uint32_t half = 1U << (shift - 1);
    const std::uint32_t odd = (significand >> shift) & 1U;
    return sign | ((significand + half - 1U + odd) >> shift);
  }
  const std::uint32_t code = (magnitude + half_less - l.rebase()) >> l.cut();
  return sign | (code < l.beyond() ? code : l.beyond());
}

}  // namespace core

/// bfloat16 storage: 8 exponent and 7 significand bits. Arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit bf16(float x) noexcept
      : bits(static_cast<std::uint16_t>(core::narrow_bits(x, core::bit_layout(storage_format::bf16)))) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::widen_bits(bits, core::bit_layout(storage_format::bf16));
  }
};

/// IEEE binary16 storage: 5 exponent and 10 significand bits. Arithmetic is done in float.
struct f16 {
  std::uint16_t bits = 0;
  f16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit f16(float x) noexcept
      : bits(static_cast<std::uint16_t>(core::narrow_bits(x, core::bit_layout(storage_format::f16)))) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::widen_bits(bits, core::bit_layout(storage_format::f16));
  }
};

/// A few formats, in order.
template <storage_format... Formats>
struct storage_formats {};
/// Those that libraries of kernels are compiled for (mpi_router::dispatch); other formats go by the headers.
using compiled_formats =
    storage_formats<storage_format::f64, storage_format::f32, storage_format::bf16, storage_format::f16>;

/// What is known of a storage type. Specialise it to let another type be the element of a view:
///
///   accumulator   float or double, in which its values are summed
///   format        how its bits are laid out; backends take a type of the same format for the same
///   widen(x)      its value, exact
///   narrow(sum)   the nearest stored value, ties to even
///   name          what files (safetensors) and messages call it
///
/// Derive from bits_storage where the type is a struct of its `bits`, from converted_storage where it
/// converts to and from its accumulator (Eigen::bfloat16 and Eigen::half). Elements that share a scale have
/// no value of their own: such matrices go row by row (MatrixRows, core/matrix_rows.hpp), as operators.
template <class T>
struct storage_traits;

/// Of a struct T whose member `bits` is an unsigned integer of as many bits as the format has.
template <class T, storage_format Format>
struct bits_storage {
  using accumulator = float;
  static constexpr storage_format format = Format;
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr float widen(T x) noexcept {
    return core::widen_bits(x.bits, core::bit_layout(Format));
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr T narrow(float x) noexcept {
    T stored{};
    stored.bits = static_cast<decltype(T::bits)>(core::narrow_bits(x, core::bit_layout(Format)));
    return stored;
  }
};
/// Of a type that converts to and from S.
template <class T, class S, storage_format Format>
struct converted_storage {
  using accumulator = S;
  static constexpr storage_format format = Format;
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr S widen(const T& x) noexcept {
    return static_cast<S>(x);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr T narrow(S x) noexcept { return static_cast<T>(x); }
};

template <>
struct storage_traits<double> : converted_storage<double, double, storage_format::f64> {
  static constexpr std::string_view name = "F64";
};
template <>
struct storage_traits<float> : converted_storage<float, float, storage_format::f32> {
  static constexpr std::string_view name = "F32";
};
template <>
struct storage_traits<bf16> : bits_storage<bf16, storage_format::bf16> {
  static constexpr std::string_view name = "BF16";
};
template <>
struct storage_traits<f16> : bits_storage<f16, storage_format::f16> {
  static constexpr std::string_view name = "F16";
};

MPIROUTER_END_TYPES
