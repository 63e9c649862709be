// Blocks of ggml as floats, eight columns at a time.
#pragma once

#include <mpi_router/cuda/detail/decoded/codes.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <>
struct packed_rows<mxfp4_blocks_view> {
  const mxfp4_blocks_view& a;
  byte_pointer blocks;
  byte_pointer none;

  struct columns {
    static constexpr bool has_minimum = false;
    struct bytes {
      uint2 codes;
      unsigned scale;
    };
    const mxfp4_blocks_view& a;
    byte_pointer block;
    int first;  // of the sixteen bytes of codes
    int shift;

    [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
      const byte_pointer at = block + row_offset(row, static_cast<unsigned>(a.row_bytes));
      return {load_eight_bytes(at + 1 + first, 1), at[0]};
    }
    [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& from,
                                                                   float (&out)[decoded_columns]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // two of a word, two bytes apart
        const unsigned word = (i < 2 ? from.codes.x : from.codes.y) >> (shift + 8 * (i % 2));
        const float2 pair = decode_e2m1(word);
        out[i / 2 * 4 + i % 2] = pair.x;
        out[i / 2 * 4 + i % 2 + 2] = pair.y;
      }
      return {power_of_code(from.scale), 0.0F};
    }
  };
  [[nodiscard]] __device__ __forceinline__ columns columns_at(int column) const {
    return {a, blocks + column / 32 * 17, column % 16, column % 32 < 16 ? 0 : 4};
  }
};

template <>
struct packed_rows<q8_0_view> {
  const q8_0_view& a;
  byte_pointer blocks;
  byte_pointer none;

  struct columns {
    static constexpr bool has_minimum = false;
    struct bytes {
      unsigned codes[4];  // in pairs, for blocks begin at multiples of 2
      unsigned scale;
    };
    const q8_0_view& a;
    byte_pointer block;
    int first;
    int alignment;

    [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
      const byte_pointer from = block + row_offset(row, static_cast<unsigned>(a.row_bytes));
      const byte_pointer at = from + 2 + first;
      return {{load_two_bytes(at, alignment), load_two_bytes(at + 2, alignment),
               load_two_bytes(at + 4, alignment), load_two_bytes(at + 6, alignment)},
              load_two_bytes(from, alignment)};
    }
    [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& from,
                                                                   float (&out)[decoded_columns]) const {
      decode_bytes(from.codes[0] | from.codes[1] << 16, out);
      decode_bytes(from.codes[2] | from.codes[3] << 16, out + 4);
      return {half_of(from.scale), 0.0F};
    }
  };
  [[nodiscard]] __device__ __forceinline__ columns columns_at(int column) const {
    return {a, blocks + column / 32 * 34, column % 32, alignment_of(blocks, a.row_bytes)};
  }
};

template <>
struct packed_rows<q4_k_view> {
  const q4_k_view& a;
  byte_pointer blocks;
  byte_pointer none;

  struct columns {
    static constexpr bool has_minimum = true;
    struct bytes {
      uint2 codes;
      unsigned scales;            // d and dmin
      unsigned char six_bits[3];  // where the scale and the minimum of 32 columns are
    };
    const q4_k_view& a;
    byte_pointer block;
    int part;  // of 32 columns, that share a scale and a minimum
    int first;
    int alignment;

    [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
      const byte_pointer at = block + row_offset(row, static_cast<unsigned>(a.row_bytes));
      const byte_pointer six = at + 4;  // of the first four parts scales, then minima; then of the last four
      return {load_eight_bytes(at + first, alignment),
              load_four_bytes(at, alignment),
              {six[part < 4 ? part : part + 4], six[part < 4 ? part + 4 : part - 4], six[part]}};
    }
    [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& from,
                                                                   float (&out)[decoded_columns]) const {
      const unsigned char(&six)[3] = from.six_bits;
      const unsigned scale = part < 4 ? six[0] & 63U : (six[0] & 15U) | six[1] >> 6 << 4;
      const unsigned minimum = part < 4 ? six[1] & 63U : six[0] >> 4 | six[2] >> 6 << 4;
      const int shift = part % 2 == 0 ? 0 : 4;
#pragma unroll
      for (int i = 0; i < decoded_columns; ++i) {  // behind the bits of 2^23 a code is a float
        const unsigned word = (i < 4 ? from.codes.x : from.codes.y) >> shift & 0x0f0f0f0fU;
        const unsigned bits = __byte_perm(word, 0x4b000000U, 0x7650U + static_cast<unsigned>(i % 4));
        out[i] = __uint_as_float(bits) - 8388608.0F;
      }
      return {half_of(from.scales) * static_cast<float>(scale),
              half_of(from.scales >> 16) * static_cast<float>(minimum)};
    }
  };
  [[nodiscard]] __device__ __forceinline__ columns columns_at(int column) const {
    const int part = column % 256 / 32;
    return {a, blocks + column / 256 * 144, part, 16 + part / 2 * 32 + column % 32,
            alignment_of(blocks, a.row_bytes)};
  }
};

MPIROUTER_CUDA_DETAIL_END
