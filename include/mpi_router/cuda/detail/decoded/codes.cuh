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
[[nodiscard]] __device__ __forceinline__ unsigned scale_bits(byte_pointer row, fp8_scale type, int at,
                                                             int alignment) {
  return type == fp8_scale::f32    ? load_four_bytes(row + 4 * at, alignment)
         : type == fp8_scale::e8m0 ? row[at]
                                   : load_two_bytes(row + 2 * at, alignment);
}
[[nodiscard]] __device__ __forceinline__ float scale_of(unsigned bits, fp8_scale type) {
  return type == fp8_scale::f32    ? __uint_as_float(bits)
         : type == fp8_scale::e8m0 ? power_of_code(bits)
         : type == fp8_scale::f16  ? half_of(bits)
                                   : __uint_as_float(bits << 16);
}

/// Four E4M3 numbers, by the conversion of sm_89 and newer, times a scale.
__device__ __forceinline__ void decode_e4m3(unsigned four, float scale, float* out) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto pair = static_cast<__nv_fp8x2_storage_t>(four >> 16 * i);
    const float2 x = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
    out[2 * i] = x.x * scale;
    out[2 * i + 1] = x.y * scale;
  }
}
/// Four signed bytes times a scale: behind the bits of 2^23 a byte is a float.
__device__ __forceinline__ void decode_bytes(unsigned four, float scale, float* out) {
  const unsigned biased = four ^ 0x80808080U;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned bits = __byte_perm(biased, 0x4b000000U, 0x7650U + static_cast<unsigned>(i));
    out[i] = (__uint_as_float(bits) - 8388736.0F) * scale;
  }
}
/// The numbers of half a byte in the bits from `shift` on of each byte, E2M1, times a scale: as an f16 they
/// are 2^14 too small.
__device__ __forceinline__ void decode_e2m1(unsigned four, int shift, float scale, float* out) {
  const unsigned codes = four >> shift;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned code = codes >> 8 * i;
    const auto half = static_cast<unsigned short>((code & 7U) << 9 | (code & 8U) << 12);
    out[i] = __half2float(__ushort_as_half(half)) * 16384.0F * scale;
  }
}

/// One expert's rows, of packed weights in view `a`: fetch(row, column) loads the bytes of eight columns from
/// `column` on, a multiple of eight, and looks at none of them, so that many loads are under way at once;
/// decode(bytes, column, out) makes floats of them, zeros beyond D.
template <class View>
struct packed_rows;

template <>
struct packed_rows<fp8_view> {
  struct bytes {
    uint2 codes;
    unsigned scale;
  };
  const fp8_view& a;
  byte_pointer codes;
  byte_pointer scales;
  int alignment;
  int scale_alignment;
  int row_shift;  // of the division by the rows of a block, -1 where that is no power of two
  int col_shift;

  __device__ __forceinline__ packed_rows(const fp8_view& view, byte_pointer codes_at, byte_pointer scales_at)
      : a(view),
        codes(codes_at),
        scales(scales_at),
        alignment(alignment_of(codes_at, view.row_bytes)),
        scale_alignment(alignment_of(scales_at, view.scale_row_bytes)),
        row_shift(shift_of(view.block_rows)),
        col_shift(shift_of(view.block_cols)) {}
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row, int column) const {
    const byte_pointer at = codes + row * a.row_bytes + column;
    const int left = static_cast<int>(a.cols) - column;
    return {left < decoded_columns ? gather_bytes(at, left) : load_eight_bytes(at, alignment),
            scale_bits(scales + block_of(row, row_shift, a.block_rows) * a.scale_row_bytes, a.scale_type,
                       block_of(column, col_shift, a.block_cols), scale_alignment)};
  }
  __device__ __forceinline__ void decode(const bytes& from, int column, float (&out)[decoded_columns]) const {
    const float scale = scale_of(from.scale, a.scale_type);
    decode_e4m3(from.codes.x, scale, out);
    decode_e4m3(from.codes.y, scale, out + 4);
    const int left = static_cast<int>(a.cols) - column;
    if (left < decoded_columns) {  // zero times a scale that is not finite
#pragma unroll
      for (int i = 0; i < decoded_columns; ++i) out[i] = i < left ? out[i] : 0.0F;
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ static int shift_of(index_t size) {
    return size > 0x3fffffff ? 31 : (size & (size - 1)) == 0 ? __ffs(static_cast<int>(size)) - 1 : -1;
  }
  [[nodiscard]] __device__ __forceinline__ static int block_of(int at, int shift, index_t size) {
    return shift < 0 ? at / static_cast<int>(size) : at >> shift;
  }
};

template <>
struct packed_rows<mxfp4_view> {
  struct bytes {
    unsigned codes;
    unsigned scale;
  };
  const mxfp4_view& a;
  byte_pointer codes;
  byte_pointer scales;
  int alignment;

  __device__ __forceinline__ packed_rows(const mxfp4_view& view, byte_pointer codes_at,
                                         byte_pointer scales_at)
      : a(view), codes(codes_at), scales(scales_at), alignment(alignment_of(codes_at, view.row_bytes)) {}
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row, int column) const {
    return {load_four_bytes(codes + row * a.row_bytes + column / 2, alignment),
            scales[row * a.scale_row_bytes + column / 32]};
  }
  __device__ __forceinline__ void decode(const bytes& from, int, float (&out)[decoded_columns]) const {
    const float scale = power_of_code(from.scale);
    float low[4];
    float high[4];
    decode_e2m1(from.codes, 0, scale, low);
    decode_e2m1(from.codes, 4, scale, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = low[i];
      out[2 * i + 1] = high[i];
    }
  }
};

template <>
struct packed_rows<mxfp4_blocks_view> {
  struct bytes {
    uint2 codes;
    unsigned scale;
  };
  const mxfp4_blocks_view& a;
  byte_pointer blocks;

  __device__ __forceinline__ packed_rows(const mxfp4_blocks_view& view, byte_pointer at, byte_pointer)
      : a(view), blocks(at) {}
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row, int column) const {
    const byte_pointer block = blocks + row * a.row_bytes + column / 32 * 17;
    return {load_eight_bytes(block + 1 + column % 16, 1), block[0]};
  }
  __device__ __forceinline__ void decode(const bytes& from, int column, float (&out)[decoded_columns]) const {
    const int shift = column % 32 < 16 ? 0 : 4;
    const float scale = power_of_code(from.scale);
    decode_e2m1(from.codes.x, shift, scale, out);
    decode_e2m1(from.codes.y, shift, scale, out + 4);
  }
};

template <>
struct packed_rows<q8_0_view> {
  struct bytes {
    unsigned codes[4];  // in pairs, for blocks begin at multiples of 2
    unsigned scale;
  };
  const q8_0_view& a;
  byte_pointer blocks;
  int alignment;

  __device__ __forceinline__ packed_rows(const q8_0_view& view, byte_pointer at, byte_pointer)
      : a(view), blocks(at), alignment(alignment_of(at, view.row_bytes)) {}
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row, int column) const {
    const byte_pointer block = blocks + row * a.row_bytes + column / 32 * 34;
    const byte_pointer at = block + 2 + column % 32;
    return {{load_two_bytes(at, alignment), load_two_bytes(at + 2, alignment),
             load_two_bytes(at + 4, alignment), load_two_bytes(at + 6, alignment)},
            load_two_bytes(block, alignment)};
  }
  __device__ __forceinline__ void decode(const bytes& from, int, float (&out)[decoded_columns]) const {
    const float scale = half_of(from.scale);
    decode_bytes(from.codes[0] | from.codes[1] << 16, scale, out);
    decode_bytes(from.codes[2] | from.codes[3] << 16, scale, out + 4);
  }
};

template <>
struct packed_rows<q4_k_view> {
  struct bytes {
    uint2 codes;
    unsigned scales;            // d and dmin
    unsigned char six_bits[3];  // of a part of 32 columns: where its scale and its minimum are
  };
  const q4_k_view& a;
  byte_pointer blocks;
  int alignment;

  __device__ __forceinline__ packed_rows(const q4_k_view& view, byte_pointer at, byte_pointer)
      : a(view), blocks(at), alignment(alignment_of(at, view.row_bytes)) {}
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row, int column) const {
    const byte_pointer block = blocks + row * a.row_bytes + column / 256 * 144;
    const int part = part_of(column);
    const byte_pointer six = block + 4;  // of the first four parts scales, then minima; then of the last four
    return {load_eight_bytes(block + 16 + part / 2 * 32 + column % 32, alignment),
            load_four_bytes(block, alignment),
            {six[part < 4 ? part : part + 4], six[part < 4 ? part + 4 : part - 4], six[part]}};
  }
  __device__ __forceinline__ void decode(const bytes& from, int column, float (&out)[decoded_columns]) const {
    const int part = part_of(column);
    const unsigned char(&six)[3] = from.six_bits;
    const unsigned scale = part < 4 ? six[0] & 63U : (six[0] & 15U) | six[1] >> 6 << 4;
    const unsigned minimum = part < 4 ? six[1] & 63U : six[0] >> 4 | six[2] >> 6 << 4;
    const float d = half_of(from.scales) * static_cast<float>(scale);
    const float least = half_of(from.scales >> 16) * static_cast<float>(minimum);
    const int shift = part % 2 == 0 ? 0 : 4;
#pragma unroll
    for (int i = 0; i < decoded_columns; ++i) {  // behind the bits of 2^23 a code is a float
      const unsigned word = (i < 4 ? from.codes.x : from.codes.y) >> shift & 0x0f0f0f0fU;
      const unsigned bits = __byte_perm(word, 0x4b000000U, 0x7650U + static_cast<unsigned>(i % 4));
      out[i] = (__uint_as_float(bits) - 8388608.0F) * d - least;
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ static int part_of(int column) { return column % 256 / 32; }
};

MPIROUTER_CUDA_DETAIL_END
