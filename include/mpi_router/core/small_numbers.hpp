// The small numbers that packed weights are made of: E2M1, E4M3, E5M2, E8M0, binary16, and numbers at any
// address.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

static_assert(std::endian::native == std::endian::little,
              "packed weights are little-endian, and so must the host be");

MPIROUTER_BEGIN
namespace packed {

// No branches, no tables and no choices, so that compilers vectorise loops over them; no float that is
// subnormal on the way, so that they hold where those are flushed to zero.

/// All bits where x, taken as signed, is negative; else none.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint32_t if_negative(std::uint32_t x) noexcept {
  return static_cast<std::uint32_t>(static_cast<std::int32_t>(x) >> 31);
}
/// The bits of `then` where the mask has ones, those of `otherwise` where it has none.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint32_t choose(std::uint32_t mask, std::uint32_t then,
                                                                     std::uint32_t otherwise) noexcept {
  return (then & mask) | (otherwise & ~mask);
}
/// The bits of n · unit, n of a few bits.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint32_t bits_of_multiple(std::uint32_t n,
                                                                               float unit) noexcept {
  return std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<std::int32_t>(n)) * unit);
}

/// E2M1 (OCP MX): 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives. The lower four bits count.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e2m1(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 7U;
  const std::uint32_t below_one = if_negative(0U - magnitude) & 0x3f000000U;  // 0 or ½
  const std::uint32_t bits = choose(if_negative(magnitude - 2U), below_one, (magnitude << 22) + 0x3f000000U);
  return std::bit_cast<float>(bits | (code & 8U) << 28);
}

/// 2 · E2M1, a small integer, in eight bits alone; 0 for both zeros.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::int8_t twice_e2m1(std::uint8_t code) noexcept {
  const auto m = static_cast<std::uint8_t>(code & 7U);  // 5, 6 and 7 are 1, 2 and 5 more than themselves
  const auto more = static_cast<std::uint8_t>(((m + 3U) >> 3) + ((m + 2U) >> 3) + 3U * ((m + 1U) >> 3));
  const auto sign = static_cast<std::uint8_t>(0U - (code >> 3 & 1U));
  return static_cast<std::int8_t>(((m + more) ^ sign) - sign);
}

/// E4M3 without infinities ("fn"): bias 7, largest 448, NaN where all seven bits of the magnitude are set.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e4m3fn(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU;
  const std::uint32_t bits = choose(if_negative(magnitude - 8U), bits_of_multiple(magnitude & 7U, 0x1p-9F),
                                    (magnitude << 20) + 0x3c000000U);
  const std::uint32_t nan = if_negative(0x7eU - magnitude) & 0x7fc00000U;
  return std::bit_cast<float>(bits | nan | (code & 0x80U) << 24);
}

/// IEEE binary16, infinities and NaN included.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float binary16(std::uint16_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fffU;
  const std::uint32_t not_finite = if_negative(0x7bffU - magnitude) & 0x38000000U;
  const std::uint32_t bits =
      choose(if_negative(magnitude - 0x400U), bits_of_multiple(magnitude & 0x3ffU, 0x1p-24F),
             (magnitude << 13) + 0x38000000U + not_finite);
  return std::bit_cast<float>(bits | (code & 0x8000U) << 16);
}

/// E5M2: the upper half of an IEEE binary16.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e5m2(std::uint8_t code) noexcept {
  return binary16(static_cast<std::uint16_t>(code << 8));
}

/// NaN for 0x80, where a negative zero would be, which "fnuz" has not; else `number`.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float without_negative_zero(std::uint8_t code,
                                                                            float number) noexcept {
  const std::uint32_t nan = if_negative((code ^ 0x80U) - 1U) & 0x7fc00000U;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(number) | nan);
}

/// E4M3 "fnuz": bias 8, largest 240, no infinities.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e4m3fnuz(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU;
  const std::uint32_t bits = choose(if_negative(magnitude - 8U), bits_of_multiple(magnitude, 0x1p-10F),
                                    (magnitude << 20) + 0x3b800000U);
  return without_negative_zero(code, std::bit_cast<float>(bits | (code & 0x80U) << 24));
}

/// E5M2 "fnuz": bias 16, largest 57344, no infinities.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e5m2fnuz(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU;
  const std::uint32_t bits = choose(if_negative(magnitude - 4U), bits_of_multiple(magnitude, 0x1p-17F),
                                    (magnitude << 21) + 0x37800000U);
  return without_negative_zero(code, std::bit_cast<float>(bits | (code & 0x80U) << 24));
}

/// E8M0, a power of two: 2^(code − 127), NaN for 255.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float e8m0(std::uint8_t code) noexcept {
  const std::uint32_t smallest = 0x00400000U;  // 2^-127
  return std::bit_cast<float>(code == 255U ? 0x7fc00000U
                              : code == 0U ? smallest
                                           : static_cast<std::uint32_t>(code) << 23);
}

/// The i-th T of little-endian bytes that may lie at any address.
template <class T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE T read(const std::byte* bytes, index_t i = 0) noexcept {
  T value;
  std::memcpy(&value, bytes + i * static_cast<index_t>(sizeof(T)), sizeof(T));
  return value;
}
/// The i-th f16 of bytes of any alignment.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float read_f16(const std::byte* bytes, index_t i = 0) noexcept {
  return binary16(read<std::uint16_t>(bytes, i));
}
/// The i-th bf16 of bytes of any alignment.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float read_bf16(const std::byte* bytes, index_t i = 0) noexcept {
  return widen<float>(read<bf16>(bytes, i));
}

/// The six-bit numbers of a block of ggml's Q4_K and Q5_K, in twelve bytes: eight scales, then eight minima.
struct k_scales {
  std::byte number[16];

  MPIROUTER_ALWAYS_INLINE explicit k_scales(const std::byte* in) noexcept {
    // Of the last four of each kind the lower four bits are in the third word, the upper two in the first or
    // the second, four numbers side by side.
    const auto scales = read<std::uint32_t>(in);
    const auto minima = read<std::uint32_t>(in + 4);
    const auto lower = read<std::uint32_t>(in + 8);
    const std::uint32_t words[4] = {
        scales & 0x3f3f3f3fU, (lower & 0x0f0f0f0fU) | (scales >> 2 & 0x30303030U),  //
        minima & 0x3f3f3f3fU, (lower >> 4 & 0x0f0f0f0fU) | (minima >> 2 & 0x30303030U)};
    std::memcpy(number, words, sizeof number);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE int scale(index_t part) const noexcept {
    return static_cast<int>(number[part]);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE int minimum(index_t part) const noexcept {
    return static_cast<int>(number[8 + part]);
  }
};

/// How many parts of `size` hold `count`, the last one perhaps not full. size > 0.
[[nodiscard]] constexpr index_t parts_of(index_t count, index_t size) noexcept {
  return count / size + (count % size != 0 ? 1 : 0);
}

}  // namespace packed
MPIROUTER_END
