// How a block of ggml's K-quants is decoded, 256 elements whose parts have small scales of their own.
#pragma once

#include <mpi_router/io/packed/ggml_blocks.hpp>

MPIROUTER_BEGIN
namespace packed::detail {

/// d · sc · q − dmin · mn of Q4_K and Q5_K: of each 32 bytes the low halves are one part, the high ones the
/// next. code(part, i, q) adds what lies elsewhere.
template <Accumulator S, class Code>
MPIROUTER_ALWAYS_INLINE void decode_k(const std::byte* in, const std::byte* qs, S* out,
                                      const Code& code) noexcept {
  const S d = read_f16(in);
  const S dmin = read_f16(in, 1);
  const k_scales parts(in + 4);
  for (index_t part = 0; part < 8; ++part) {
    const S scale = d * static_cast<S>(parts.scale(part));
    const S minimum = dmin * static_cast<S>(parts.minimum(part));
    const std::byte* const q = qs + 32 * (part / 2);
    const int shift = part % 2 == 0 ? 0 : 4;
    for (index_t i = 0; i < 32; ++i) {
      out[32 * part + i] = scale * static_cast<S>(code(part, i, byte_at(q, i) >> shift & 15)) - minimum;
    }
  }
}
template <>
struct block<ggml_type::q4_k> : block_base<ggml_type::q4_k> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    decode_k(in, in + 16, out, [](index_t, index_t, int q) { return q; });
  }
};
/// The fifth bit of element i of a part is bit `part` of byte i.
template <>
struct block<ggml_type::q5_k> : block_base<ggml_type::q5_k> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    decode_k(in, in + 48, out, [high = in + 16](index_t part, index_t i, int q) {
      return q | (byte_at(high, i) >> part & 1) << 4;
    });
  }
};

/// d · sc · (q − 32), sc for each 16 elements: four bits in ql, two in qh; parts of 32, four in each half.
template <>
struct block<ggml_type::q6_k> : block_base<ggml_type::q6_k> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const std::byte* const qh = in + 128;
    const std::byte* const scales = in + 192;
    const S d = read_f16(in + 208);
    for (index_t part = 0; part < 16; ++part) {  // of 16 elements
      const index_t half = part / 8;
      const index_t quarter = part % 8 / 2;
      const std::byte* const low = in + 64 * half + 32 * (quarter % 2) + 16 * (part % 2);
      const std::byte* const high = qh + 32 * half + 16 * (part % 2);
      const S scale = d * static_cast<S>(signed_at(scales, part));
      const int shift = quarter < 2 ? 0 : 4;
      for (index_t i = 0; i < 16; ++i) {
        const int q = (byte_at(low, i) >> shift & 15) | (byte_at(high, i) >> (2 * quarter) & 3) << 4;
        out[16 * part + i] = scale * static_cast<S>(q - 32);
      }
    }
  }
};

/// d · sc · q − dmin · mn: in 32 bytes lie four parts of 32, two bits each; sc and mn, four bits each,
/// for 16.
template <>
struct block<ggml_type::q2_k> : block_base<ggml_type::q2_k> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in + 80);
    const S dmin = read_f16(in + 80, 1);
    for (index_t part = 0; part < 16; ++part) {
      const int s = byte_at(in, part);
      const S scale = d * static_cast<S>(s & 15);
      const S minimum = dmin * static_cast<S>(s >> 4);
      const std::byte* const qs = in + 16 + 32 * (part / 8) + 16 * (part % 2);
      const index_t shift = 2 * (part % 8 / 2);
      for (index_t i = 0; i < 16; ++i) {
        out[16 * part + i] = scale * static_cast<S>(byte_at(qs, i) >> shift & 3) - minimum;
      }
    }
  }
};

/// d · (sc − 32) · q, where q is two bits, less 4 unless its bit in hmask is set; sc has four bits in the
/// first eight bytes of the scales and two in the last four.
template <>
struct block<ggml_type::q3_k> : block_base<ggml_type::q3_k> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const std::byte* const scales = in + 96;
    const S d = read_f16(in + 108);
    for (index_t part = 0; part < 16; ++part) {
      const int low = byte_at(scales, part % 8) >> (part < 8 ? 0 : 4) & 15;
      const int high = byte_at(scales, 8 + part % 4) >> (2 * (part / 4)) & 3;
      const S scale = d * static_cast<S>((low | high << 4) - 32);
      const std::byte* const qs = in + 32 + 32 * (part / 8) + 16 * (part % 2);
      const std::byte* const hmask = in + 16 * (part % 2);
      const index_t shift = 2 * (part % 8 / 2);
      for (index_t i = 0; i < 16; ++i) {
        const int third = byte_at(hmask, i) >> (part / 2) & 1;
        const int q = (byte_at(qs, i) >> shift & 3) - 4 * (1 - third);
        out[16 * part + i] = scale * static_cast<S>(q);
      }
    }
  }
};

}  // namespace packed::detail
MPIROUTER_END
