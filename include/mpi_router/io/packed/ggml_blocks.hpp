// How one block of each ggml type is decoded: the layouts and formulas of ggml's own dequantisation, products
// and differences in its order, in f32 as there or in double.
//
// q is a code, d and dmin are the block's f16 scales, sc and mn the small scales of its parts.
#pragma once

#include <mpi_router/io/packed/ggml_types.hpp>
#include <mpi_router/io/packed/numbers.hpp>

MPIROUTER_BEGIN
namespace packed::detail {

/// A type's block: `decode` writes `elements` numbers from `bytes` bytes.
template <ggml_type Type>
struct block_base {
  static constexpr ggml_type type = Type;
  static constexpr index_t elements = ggml_block_of(Type).elements;
  static constexpr index_t bytes = ggml_block_of(Type).bytes;
};
template <ggml_type Type>
struct block;

[[nodiscard]] MPIROUTER_ALWAYS_INLINE int byte_at(const std::byte* in, index_t i) noexcept {
  return static_cast<int>(in[i]);
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE int signed_at(const std::byte* in, index_t i) noexcept {
  return static_cast<std::int8_t>(in[i]);
}

template <>
struct block<ggml_type::f32> : block_base<ggml_type::f32> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    *out = read<float>(in);
  }
};
template <>
struct block<ggml_type::f16> : block_base<ggml_type::f16> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    *out = read_f16(in);
  }
};
template <>
struct block<ggml_type::bf16> : block_base<ggml_type::bf16> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    *out = read_bf16(in);
  }
};

/// d · q, q signed bytes.
template <>
struct block<ggml_type::q8_0> : block_base<ggml_type::q8_0> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    for (index_t i = 0; i < elements; ++i) {
      out[i] = static_cast<S>(signed_at(in, 2 + i)) * d;
    }
  }
};

/// Sixteen bytes whose low halves are the first sixteen codes and whose high halves the others: value(i,
/// code).
template <Accumulator S, class Value>
MPIROUTER_ALWAYS_INLINE void decode_halves(const std::byte* __restrict in, S* __restrict out,
                                           const Value& value, index_t bytes = 16) noexcept {
  for (index_t i = 0; i < bytes; ++i) {
    out[i] = value(i, byte_at(in, i) & 15);
  }
  for (index_t i = 0; i < bytes; ++i) {
    out[bytes + i] = value(bytes + i, byte_at(in, i) >> 4);
  }
}

/// d · (q − 8).
template <>
struct block<ggml_type::q4_0> : block_base<ggml_type::q4_0> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    decode_halves(in + 2, out, [d](index_t, int q) { return static_cast<S>(q - 8) * d; });
  }
};
/// d · q + m.
template <>
struct block<ggml_type::q4_1> : block_base<ggml_type::q4_1> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    const S m = read_f16(in, 1);
    decode_halves(in + 4, out, [d, m](index_t, int q) { return static_cast<S>(q) * d + m; });
  }
};
/// d · (q − 16), the fifth bit of element i in bit i of four bytes.
template <>
struct block<ggml_type::q5_0> : block_base<ggml_type::q5_0> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    const auto high = read<std::uint32_t>(in + 2);
    decode_halves(in + 6, out, [d, high](index_t i, int q) {
      return static_cast<S>((q | static_cast<int>(high >> i & 1U) << 4) - 16) * d;
    });
  }
};
/// d · q + m, the fifth bits as above.
template <>
struct block<ggml_type::q5_1> : block_base<ggml_type::q5_1> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    const S m = read_f16(in, 1);
    const auto high = read<std::uint32_t>(in + 4);
    decode_halves(in + 8, out, [d, m, high](index_t i, int q) {
      return static_cast<S>(q | static_cast<int>(high >> i & 1U) << 4) * d + m;
    });
  }
};

/// IQ4's sixteen levels, finer near zero.
inline constexpr std::array<std::int8_t, 16> iq4_levels{-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float iq4_level(int q) noexcept {
  return static_cast<float>(iq4_levels[static_cast<std::size_t>(q)]);
}

/// d · level[q].
template <>
struct block<ggml_type::iq4_nl> : block_base<ggml_type::iq4_nl> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    decode_halves(in + 2, out, [d](index_t, int q) { return d * iq4_level(q); });
  }
};
/// d · (sc − 32) · level[q], sc of 6 bits for each 32 elements: four in scales_l, two in scales_h.
template <>
struct block<ggml_type::iq4_xs> : block_base<ggml_type::iq4_xs> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S d = read_f16(in);
    const int scales_h = read<std::uint16_t>(in, 1);
    for (index_t part = 0; part < 8; ++part) {
      const int low = byte_at(in, 4 + part / 2) >> (4 * (part % 2)) & 15;
      const int sc = (low | (scales_h >> (2 * part) & 3) << 4) - 32;
      const S scale = d * static_cast<S>(sc);
      decode_halves(in + 8 + 16 * part, out + 32 * part,
                    [scale](index_t, int q) { return scale * iq4_level(q); });
    }
  }
};

/// E2M1(q) · 2^(e − 127).
template <>
struct block<ggml_type::mxfp4> : block_base<ggml_type::mxfp4> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    const S half = e8m0(static_cast<std::uint8_t>(in[0])) * S{0.5};
    decode_halves(in + 1, out, [half](index_t, int q) {
      return static_cast<S>(twice_e2m1(static_cast<std::uint8_t>(q))) * half;
    });
  }
};
/// An unsigned E4M3 as ggml reads it: the sign is no part of it, and NaN is 0.
[[nodiscard]] inline float ue4m3(std::uint8_t code) noexcept {
  const bool is_nan = (code & 0x7fU) == 0x7fU;
  return code == 0x7fU ? 0.0F : is_nan ? 480.0F : e4m3fn(code & 0x7fU);
}
/// E2M1(q) · sc, sc for each 16 elements.
template <>
struct block<ggml_type::nvfp4> : block_base<ggml_type::nvfp4> {
  template <Accumulator S>
  static void decode(const std::byte* in, S* out) noexcept {
    for (index_t part = 0; part < 4; ++part) {
      const S half = ue4m3(static_cast<std::uint8_t>(in[part])) * S{0.5};
      decode_halves(
          in + 4 + 8 * part, out + 16 * part,
          [half](index_t, int q) { return static_cast<S>(twice_e2m1(static_cast<std::uint8_t>(q))) * half; },
          8);
    }
  }
};

/// The eight scales and minima of Q4_K and Q5_K, six bits each in twelve bytes.
struct k_scale {
  int scale;
  int minimum;
};
[[nodiscard]] inline k_scale k_scale_at(const std::byte* s, index_t j) noexcept {
  if (j < 4) {
    return {byte_at(s, j) & 63, byte_at(s, j + 4) & 63};
  }
  return {(byte_at(s, j + 4) & 15) | (byte_at(s, j - 4) >> 6) << 4,
          byte_at(s, j + 4) >> 4 | (byte_at(s, j) >> 6) << 4};
}

/// d · sc · q − dmin · mn of Q4_K and Q5_K: of each 32 bytes the low halves are one part, the high ones the
/// next. code(part, i, q) adds what lies elsewhere.
template <Accumulator S, class Code>
MPIROUTER_ALWAYS_INLINE void decode_k(const std::byte* in, const std::byte* qs, S* out,
                                      const Code& code) noexcept {
  const S d = read_f16(in);
  const S dmin = read_f16(in, 1);
  for (index_t part = 0; part < 8; ++part) {
    const k_scale s = k_scale_at(in + 4, part);
    const S scale = d * static_cast<S>(s.scale);
    const S minimum = dmin * static_cast<S>(s.minimum);
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
