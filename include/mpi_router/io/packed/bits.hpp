// Codes of two to eight bits out of a dense stream, the least significant bit first.
#pragma once

#include <mpi_router/io/packed/numbers.hpp>

#include <algorithm>
#include <array>

MPIROUTER_BEGIN
namespace packed {

/// Codes are unpacked in runs of this many: they fill whole 32-bit words whatever their width.
inline constexpr index_t codes_of_run = 32;
using code_run = std::array<std::uint8_t, static_cast<std::size_t>(codes_of_run)>;

/// Byte i holds code 2i in its low half and 2i + 1 in its high one.
inline void unpack_nibbles(const std::byte* in, index_t bytes, std::uint8_t* codes) noexcept {
  for (index_t i = 0; i < bytes; ++i) {
    const auto byte = static_cast<std::uint8_t>(in[i]);
    codes[2 * i] = byte & 15U;
    codes[2 * i + 1] = static_cast<std::uint8_t>(byte >> 4);
  }
}

/// A run of 32 codes from 4 · Bits bytes, eight codes from each Bits of them.
template <std::size_t Bits>
void unpack_run(const std::byte* in, code_run& codes) noexcept {
  constexpr std::uint64_t mask = (std::uint64_t{1} << Bits) - 1;
  for (std::size_t part = 0; part < codes.size() / 8; ++part) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, in + part * Bits, Bits);
    for (std::size_t k = 0; k < 8; ++k) {
      codes[8 * part + k] = static_cast<std::uint8_t>(eight >> (k * Bits) & mask);
    }
  }
}
template <>
inline void unpack_run<4>(const std::byte* in, code_run& codes) noexcept {
  unpack_nibbles(in, codes_of_run / 2, codes.data());
}
template <>
inline void unpack_run<8>(const std::byte* in, code_run& codes) noexcept {
  std::memcpy(codes.data(), in, codes.size());
}

/// unpack_run() for a width of 1 to 8 bits.
inline void unpack_run(const std::byte* in, index_t bits, code_run& codes) noexcept {
  switch (bits) {
    case 1: return unpack_run<1>(in, codes);
    case 2: return unpack_run<2>(in, codes);
    case 3: return unpack_run<3>(in, codes);
    case 4: return unpack_run<4>(in, codes);
    case 5: return unpack_run<5>(in, codes);
    case 6: return unpack_run<6>(in, codes);
    case 7: return unpack_run<7>(in, codes);
    default: return unpack_run<8>(in, codes);
  }
}

/// Calls use(first, count, codes) for every run of a row: codes[i] is that of column first + i. The row is
/// `count` codes of `bits` in whole 32-bit words.
template <class Use>
void for_each_run(const std::byte* row, index_t count, index_t bits, Use use) noexcept {
  code_run codes;
  const index_t run_bytes = 4 * bits;
  for (index_t first = 0; first < count; first += codes_of_run, row += run_bytes) {
    const index_t here = std::min(codes_of_run, count - first);
    if (here == codes_of_run) {
      unpack_run(row, bits, codes);
    } else {  // the row ends before the run does
      std::array<std::byte, 32> end{};
      std::memcpy(end.data(), row, static_cast<std::size_t>(4 * parts_of(here * bits, 32)));
      unpack_run(end.data(), bits, codes);
    }
    use(first, here, codes.data());
  }
}

/// Calls use(first, count, g) for the parts of the columns [first, first + count) that lie in one group each.
template <class Use>
void for_each_group(index_t first, index_t count, index_t group, Use use) noexcept {
  const index_t end = first + count;
  while (first < end) {
    const index_t g = first / group;
    const index_t here = std::min(end, (g + 1) * group) - first;
    use(first, here, g);
    first += here;
  }
}

}  // namespace packed
MPIROUTER_END
