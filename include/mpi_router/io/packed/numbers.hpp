// The small numbers that packed weights are made of: E2M1, E4M3, E5M2, E8M0, and the grids of scales beside
// them.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/scalar.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

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
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float read_f16(const std::byte* bytes, index_t i = 0) noexcept {
  return binary16(read<std::uint16_t>(bytes, i));
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float read_bf16(const std::byte* bytes, index_t i = 0) noexcept {
  return widen<float>(read<bf16>(bytes, i));
}

/// out[i] = value(codes[i]) for i < count, most of them in runs of a constant length, which compilers
/// vectorise without knowing count.
template <class Code, Accumulator S, class Value>
MPIROUTER_ALWAYS_INLINE void decode_each(const Code* __restrict codes, index_t count, S* __restrict out,
                                         const Value& value) noexcept {
  constexpr index_t run = 64;  // bytes: the widest register
  const index_t whole = count - count % run;
  for (index_t first = 0; first < whole; first += run) {
    for (index_t i = 0; i < run; ++i) {
      out[first + i] = value(static_cast<std::uint8_t>(codes[first + i]));
    }
  }
  for (index_t i = whole; i < count; ++i) {
    out[i] = value(static_cast<std::uint8_t>(codes[i]));
  }
}

/// value(x) in the place of each of count numbers, most of them in runs of a constant length, as above.
template <Accumulator S, class Value>
MPIROUTER_ALWAYS_INLINE void change_each(S* values, index_t count, const Value& value) noexcept {
  constexpr index_t run = 16;  // floats: the widest register
  const index_t whole = count - count % run;
  for (index_t first = 0; first < whole; first += run) {
    for (index_t i = 0; i < run; ++i) {
      values[first + i] = value(values[first + i]);
    }
  }
  for (index_t i = whole; i < count; ++i) {
    values[i] = value(values[i]);
  }
}

/// How many parts of `size` hold `count`, the last one perhaps not full. size > 0.
[[nodiscard]] constexpr index_t parts_of(index_t count, index_t size) noexcept {
  return count / size + (count % size != 0 ? 1 : 0);
}

/// Throws usage_error unless `bytes` is rows × row_bytes; `what` is whose, [rows, cols] what they hold.
inline void expect_bytes(std::string_view what, std::span<const std::byte> bytes, index_t rows, index_t cols,
                         index_t row_bytes) {
  core::expect(rows >= 0 && cols >= 0, what, ": negative extent in [", rows, ", ", cols, "]");
  const bool fits = row_bytes == 0 || rows <= std::numeric_limits<index_t>::max() / row_bytes;
  core::expect(fits && static_cast<index_t>(bytes.size()) == rows * row_bytes, what, ": [", rows, ", ", cols,
               "] takes ", rows, " x ", row_bytes, " bytes, but there are ", bytes.size());
}

/// Bytes of a row of `cols` codes, each of `bits`, that fills whole units of `unit_bits`. Throws usage_error
/// where index_t cannot count its bits.
[[nodiscard]] inline index_t bytes_of_row(std::string_view what, index_t cols, index_t bits,
                                          index_t unit_bits = 8) {
  core::expect(cols >= 0 && cols <= std::numeric_limits<index_t>::max() / 64, what, ": ", cols,
               " columns cannot be");
  return parts_of(cols * bits, unit_bits) * (unit_bits / 8);
}

/// What scales are stored as; `one` is the scale of weights that have none.
enum class scale_type : unsigned char { f32, bf16, f16, e4m3, e8m0, one };

/// Bytes of one scale. Throws usage_error for what is none of the types.
[[nodiscard]] constexpr index_t size_of(scale_type type) {
  switch (type) {
    case scale_type::f32: return 4;
    case scale_type::bf16:
    case scale_type::f16: return 2;
    case scale_type::e4m3:
    case scale_type::e8m0: return 1;
    case scale_type::one: return 0;
  }
  core::unknown_value("scale_type", type);
}

/// A grid [rows, cols] of scales, row-major, in the bytes of a file.
class scales {
 public:
  scales() = default;
  /// Throws usage_error unless `bytes` is as long as the grid; there are none for `one`.
  scales(scale_type type, std::span<const std::byte> bytes, index_t rows, index_t cols)
      : bytes_(bytes.data()), rows_(rows), cols_(cols), type_(type) {
    expect_bytes("scales", bytes, rows, cols, bytes_of_row("scales", cols, 8 * size_of(type)));
  }

  [[nodiscard]] scale_type type() const noexcept { return type_; }
  [[nodiscard]] const std::byte* bytes() const noexcept { return bytes_; }
  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }

  /// The scale at 0 <= r < rows(), 0 <= c < cols(), exactly.
  [[nodiscard]] float at(index_t r, index_t c) const noexcept {
    const index_t i = r * cols_ + c;
    switch (type_) {
      case scale_type::f32: return read<float>(bytes_, i);
      case scale_type::bf16: return read_bf16(bytes_, i);
      case scale_type::f16: return read_f16(bytes_, i);
      case scale_type::e4m3: return e4m3fn(read<std::uint8_t>(bytes_, i));
      case scale_type::e8m0: return e8m0(read<std::uint8_t>(bytes_, i));
      case scale_type::one: break;
    }
    return 1.0F;
  }

  /// Throws usage_error unless the grid is [rows, cols].
  void expect_grid(std::string_view what, index_t rows, index_t cols) const {
    core::expect(rows_ == rows && cols_ == cols, what, ": needs scales [", rows, ", ", cols,
                 "], but they are [", rows_, ", ", cols_, "]");
  }

 private:
  const std::byte* bytes_ = nullptr;
  index_t rows_ = 0;
  index_t cols_ = 0;
  scale_type type_ = scale_type::one;
};

}  // namespace packed
MPIROUTER_END
