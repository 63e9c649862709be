// How one block of each ggml type but the K-quants (ggml_k_blocks.hpp) is decoded: the layouts and formulas
// of ggml's own dequantisation, products and differences in its order, in f32 as there or in double.
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

}  // namespace packed::detail
MPIROUTER_END
