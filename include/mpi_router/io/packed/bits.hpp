// Codes of two to eight bits out of a dense stream, the least significant bit first.
#pragma once

#include <mpi_router/io/packed/numbers.hpp>

#include <algorithm>
#include <array>

MPIROUTER_BEGIN
namespace packed {

/// Codes are unpacked in parts of this many: they fill whole 32-bit words whatever their width, and loops
/// over them are long enough for the widest registers.
inline constexpr index_t codes_of_part = 256;
/// The codes of one part, a byte each.
using code_part = std::array<std::uint8_t, static_cast<std::size_t>(codes_of_part)>;

/// A part from 32 · Bits bytes, eight codes from each Bits of them.
template <std::size_t Bits>
void unpack_part(const std::byte* in, code_part& codes) noexcept {
  constexpr std::uint64_t mask = (std::uint64_t{1} << Bits) - 1;
  for (std::size_t group = 0; group < codes.size() / 8; ++group) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, in + group * Bits, Bits);
    for (std::size_t k = 0; k < 8; ++k) {
      codes[8 * group + k] = static_cast<std::uint8_t>(eight >> (k * Bits) & mask);
    }
  }
}
/// Of four bits: two codes in a byte.
template <>
inline void unpack_part<4>(const std::byte* in, code_part& codes) noexcept {
  std::array<std::uint16_t, static_cast<std::size_t>(codes_of_part / 2)> pairs;  // the two codes of a byte
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto byte = static_cast<std::uint16_t>(in[i]);
    pairs[i] = static_cast<std::uint16_t>((byte & 15U) | (byte & 0xf0U) << 4);
  }
  std::memcpy(codes.data(), pairs.data(), codes.size());
}
/// Of eight bits: as they are.
template <>
inline void unpack_part<8>(const std::byte* in, code_part& codes) noexcept {
  std::memcpy(codes.data(), in, codes.size());
}

/// unpack_part() for a width of 1 to 8 bits.
inline void unpack_part(const std::byte* in, index_t bits, code_part& codes) noexcept {
  switch (bits) {
    case 1: return unpack_part<1>(in, codes);
    case 2: return unpack_part<2>(in, codes);
    case 3: return unpack_part<3>(in, codes);
    case 4: return unpack_part<4>(in, codes);
    case 5: return unpack_part<5>(in, codes);
    case 6: return unpack_part<6>(in, codes);
    case 7: return unpack_part<7>(in, codes);
    default: return unpack_part<8>(in, codes);
  }
}

/// out[d] = value(code of column d) of a row of `count` codes, `bits` wide, in `row_bytes` bytes.
template <Accumulator S, class Value>
void load_codes(const std::byte* row, index_t row_bytes, index_t count, index_t bits, S* out,
                const Value& value) noexcept {
  constexpr index_t part = codes_of_part;
  const index_t part_bytes = part / 8 * bits;
  code_part codes;
  for (; count >= part; count -= part, row += part_bytes, row_bytes -= part_bytes, out += part) {
    unpack_part(row, bits, codes);
    decode_each(codes.data(), part, out, value);
  }
  if (count > 0) {  // the row ends before the part does
    std::array<std::byte, static_cast<std::size_t>(part)> end{};
    std::memcpy(end.data(), row, static_cast<std::size_t>(row_bytes));
    unpack_part(end.data(), bits, codes);
    decode_each(codes.data(), count, out, value);
  }
}

/// Calls use(first, count, g) for the parts of `cols` columns that lie in one group each.
template <class Use>
void for_each_group(index_t cols, index_t group, const Use& use) noexcept {
  for (index_t first = 0, g = 0; first < cols; first += group, ++g) {
    use(first, std::min(group, cols - first), g);
  }
}

namespace detail {

/// What formats have in common that have a scale for each group of a row's columns.
class grouped_matrix {
 public:
  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }
  [[nodiscard]] index_t bits() const noexcept { return bits_; }  ///< of a code
  [[nodiscard]] index_t group() const noexcept { return group_; }
  [[nodiscard]] const packed::scales& scales() const noexcept { return scales_; }

 protected:
  grouped_matrix(index_t rows, index_t cols, index_t bits, index_t group, const packed::scales& scales)
      : rows_(rows), cols_(cols), bits_(bits), group_(group), scales_(scales) {}

  index_t rows_;
  index_t cols_;
  index_t bits_;
  index_t group_;
  packed::scales scales_;
};

}  // namespace detail

}  // namespace packed
MPIROUTER_END
