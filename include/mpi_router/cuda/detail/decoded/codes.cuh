// Packed weights as floats, eight columns at a time: how a thread decodes what it has of a row.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <mpi_router/core/packed_views.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

using byte_pointer = const unsigned char*;

/// Eight bytes, at once where they begin at a multiple of 8.
[[nodiscard]] __device__ __forceinline__ uint2 load_eight_bytes(byte_pointer at, int alignment) {
  if (alignment % 8 == 0) return *reinterpret_cast<const uint2*>(at);
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) words[i / 4] |= unsigned{at[i]} << 8 * (i % 4);
  return make_uint2(words[0], words[1]);
}
/// Four bytes, likewise of a multiple of 4.
[[nodiscard]] __device__ __forceinline__ unsigned load_four_bytes(byte_pointer at, int alignment) {
  if (alignment % 4 == 0) return *reinterpret_cast<const unsigned*>(at);
  return unsigned{at[0]} | unsigned{at[1]} << 8 | unsigned{at[2]} << 16 | unsigned{at[3]} << 24;
}
/// Two bytes, likewise.
[[nodiscard]] __device__ __forceinline__ unsigned load_two_bytes(byte_pointer at, int alignment) {
  if (alignment % 2 == 0) return *reinterpret_cast<const unsigned short*>(at);
  return unsigned{at[0]} | unsigned{at[1]} << 8;
}
/// The first `count` of eight bytes, zeros beyond.
[[nodiscard]] __device__ __noinline__ uint2 gather_bytes(byte_pointer at, int count) {
  unsigned words[2] = {0, 0};
  for (int i = 0; i < count; ++i) words[i / 4] |= unsigned{at[i]} << 8 * (i % 4);
  return make_uint2(words[0], words[1]);
}
/// What an address and a stride are multiples of, up to 8.
[[nodiscard]] __device__ __forceinline__ int alignment_of(const void* base, long long stride) {
  const auto bits = reinterpret_cast<std::uintptr_t>(base) | static_cast<std::uintptr_t>(stride) | 8U;
  return static_cast<int>(bits & (0U - bits));
}

[[nodiscard]] __device__ __forceinline__ float half_of(unsigned bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
/// 2^(code − 127), NaN for 255.
[[nodiscard]] __device__ __forceinline__ float power_of_code(unsigned code) {
  return __uint_as_float(code == 255U ? 0x7fc00000U : code == 0U ? 0x00400000U : code << 23);
}
/// The bits of a scale, and what they mean.
[[nodiscard]] __device__ __forceinline__ unsigned scale_bits(byte_pointer at, fp8_scale type) {
  const int alignment = alignment_of(at, 0);
  return type == fp8_scale::f32    ? load_four_bytes(at, alignment)
         : type == fp8_scale::e8m0 ? at[0]
                                   : load_two_bytes(at, alignment);
}
[[nodiscard]] __device__ __forceinline__ float scale_of(unsigned bits, fp8_scale type) {
  return type == fp8_scale::f32    ? __uint_as_float(bits)
         : type == fp8_scale::e8m0 ? power_of_code(bits)
         : type == fp8_scale::f16  ? half_of(bits)
                                   : __uint_as_float(bits << 16);
}

/// What eight codes have in common: an element is scale · code − minimum.
struct shared_numbers {
  float scale;
  float minimum;
};

/// Four E4M3 numbers, by the conversion of sm_89 and newer.
__device__ __forceinline__ void decode_e4m3(unsigned four, float* out) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(four >> 16 * i);
    const float2 x = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
    out[2 * i] = x.x;
    out[2 * i + 1] = x.y;
  }
}
/// Four signed bytes: behind the bits of 2^23 a byte is a float.
__device__ __forceinline__ void decode_bytes(unsigned four, float* out) {
  const unsigned biased = four ^ 0x80808080U;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned bits = __byte_perm(biased, 0x4b000000U, 0x7650U + static_cast<unsigned>(i));
    out[i] = __uint_as_float(bits) - 8388736.0F;
  }
}
/// The numbers of half a byte, E2M1, in the lower bits of both halves of a word: their bits are those of an
/// f16 that is 2^14 too small.
__device__ __forceinline__ float2 decode_e2m1(unsigned word) {
  const unsigned bits = (word & 0x00070007U) << 9 | (word & 0x00080008U) << 12;
  const __half2 tiny = __halves2half2(__ushort_as_half(static_cast<unsigned short>(bits)),
                                      __ushort_as_half(static_cast<unsigned short>(bits >> 16)));
  return __half22float2(__hmul2(tiny, __float2half2_rn(16384.0F)));
}

/// Bytes from the start of a matrix to a row of it.
[[nodiscard]] __device__ __forceinline__ unsigned long long row_offset(int row, unsigned row_bytes) {
  return static_cast<unsigned long long>(static_cast<unsigned>(row)) * row_bytes;
}

/// One expert's packed rows: columns_at(column) are eight of them, from a multiple of eight on, whose
/// fetch(row) loads the bytes and looks at none, so that many loads are under way at once, and whose
/// decode(bytes, codes) makes floats of them, zeros beyond D.
template <class View>
struct packed_rows;

template <>
struct packed_rows<fp8_view> {
  const fp8_view& a;
  byte_pointer codes;
  byte_pointer scales;

  struct columns {
    static constexpr bool has_minimum = false;
    struct bytes {
      uint2 codes;
      unsigned scale;
    };
    const fp8_view& a;
    byte_pointer codes;
    byte_pointer scales;
    int left;       // columns up to D
    int row_shift;  // of the division by the rows of a block, -1 where that is no power of two
    bool is_plain;  // whole, aligned, with scales in f32

    [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
      const int block = row_shift < 0 ? row / static_cast<int>(a.block_rows) : row >> row_shift;
      const byte_pointer at = codes + row_offset(row, static_cast<unsigned>(a.row_bytes));
      const byte_pointer scale = scales + row_offset(block, static_cast<unsigned>(a.scale_row_bytes));
      if (is_plain) [[likely]] {
        return {*reinterpret_cast<const uint2*>(at), *reinterpret_cast<const unsigned*>(scale)};
      }
      return {left < decoded_columns ? gather_bytes(at, left) : load_eight_bytes(at, alignment_of(at, 0)),
              scale_bits(scale, a.scale_type)};
    }
    [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& from,
                                                                   float (&out)[decoded_columns]) const {
      decode_e4m3(from.codes.x, out);
      decode_e4m3(from.codes.y, out + 4);
      return {is_plain ? __uint_as_float(from.scale) : scale_of(from.scale, a.scale_type), 0.0F};
    }
  };
  [[nodiscard]] __device__ __forceinline__ columns columns_at(int column) const {
    const index_t rows = a.block_rows;
    const index_t block = a.block_cols > most_extent ? 0 : column / static_cast<int>(a.block_cols);
    const int shift = rows > most_extent         ? 31
                      : (rows & (rows - 1)) == 0 ? __ffs(static_cast<int>(rows)) - 1
                                                 : -1;
    const byte_pointer first = codes + column;
    const byte_pointer scale = scales + block * bytes_of(a.scale_type);
    const int left = static_cast<int>(a.cols) - column;
    const bool is_plain = left >= decoded_columns && alignment_of(first, a.row_bytes) % 8 == 0 &&
                          a.scale_type == fp8_scale::f32 && alignment_of(scale, a.scale_row_bytes) % 4 == 0;
    return {a, first, scale, left, shift, is_plain};
  }
  [[nodiscard]] __device__ __forceinline__ static int bytes_of(fp8_scale type) {
    return type == fp8_scale::f32 ? 4 : type == fp8_scale::e8m0 ? 1 : 2;
  }
};

template <>
struct packed_rows<mxfp4_view> {
  const mxfp4_view& a;
  byte_pointer codes;
  byte_pointer scales;

  struct columns {
    static constexpr bool has_minimum = false;
    struct bytes {
      unsigned codes;
      unsigned scale;
    };
    const mxfp4_view& a;
    byte_pointer codes;
    byte_pointer scales;
    int alignment;

    [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
      return {load_four_bytes(codes + row_offset(row, static_cast<unsigned>(a.row_bytes)), alignment),
              scales[row_offset(row, static_cast<unsigned>(a.scale_row_bytes))]};
    }
    [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& from,
                                                                   float (&out)[decoded_columns]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // column i is in the bits from 4 i on
        const float2 pair = decode_e2m1(from.codes >> 4 * i);
        out[i] = pair.x;
        out[i + 4] = pair.y;
      }
      return {power_of_code(from.scale), 0.0F};
    }
  };
  [[nodiscard]] __device__ __forceinline__ columns columns_at(int column) const {
    const byte_pointer first = codes + column / 2;
    return {a, first, scales + column / 32, alignment_of(first, a.row_bytes)};
  }
};

MPIROUTER_CUDA_DETAIL_END
