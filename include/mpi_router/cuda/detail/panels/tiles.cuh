// Products of tiles by the tensor cores: operands in bf16, sums in float.
#pragma once

#include <mpi_router/core/config.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

using tile_bits = unsigned[4];  // a thread's eight of 256 elements

/// A tile as the operand with rows, or with columns in place of them: each thread gives the address of 8
/// elements of a row.
__device__ __forceinline__ void load_tile(std::uint32_t at, tile_bits& a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void load_tile_transposed(std::uint32_t at, tile_bits& a) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(at)
               : "memory");
}
/// sum += A B of a tile A in bf16 and a B of 16 × 8.
__device__ __forceinline__ void multiply_tile(const tile_bits& a, const unsigned (&b)[2], float (&sum)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// A float of 2^-110 or more is the sum of three bf16s, exactly, its highest 8 bits, the next and the last;
/// of a smaller one less than 2^-133 is lost. The columns 0 to 2 of B hold these, the others zero.
class bf16_part {
 public:
  __device__ __forceinline__ explicit bf16_part(int which)
      : first_(which > 0 ? high : 0U), second_(which > 1 ? high : 0U), none_(which > 2) {}
  /// This part of two floats.
  [[nodiscard]] __device__ __forceinline__ unsigned operator()(float x, float y) const {
    return __byte_perm(__float_as_uint(rest(x)), __float_as_uint(rest(y)), 0x7632U);
  }

 private:
  static constexpr unsigned high = 0xffff0000U;
  [[nodiscard]] __device__ __forceinline__ float rest(float x) const {
    x = none_ ? 0.0F : x;
    x -= __uint_as_float(__float_as_uint(x) & first_);
    return x - __uint_as_float(__float_as_uint(x) & second_);
  }
  unsigned first_;
  unsigned second_;
  bool none_;
};

MPIROUTER_CUDA_DETAIL_END
