// Panels of 16-bit columns in tiles of 16 × 16, the operands of the tensor cores.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// How a warp's part of a panel lies in the ring, so that neither the copies of 16 bytes nor the loads of
/// tiles meet in a bank: the pieces of a row in an order that is another in each of 8 rows.
template <int lanes>
struct panel_tiles {
  static constexpr int side = 16;
  static constexpr int warp_rows = 32 / lanes;              // of one pass
  static constexpr int tile_passes = side / warp_rows;      // of a tile
  static constexpr int across = lanes * 8 / side;           // tiles side by side
  static constexpr int pass_bytes = panel_threads * vector_bytes;

  /// The order of the pieces in row x of a tile.
  [[nodiscard]] __device__ __forceinline__ static int order(int x) {
    return lanes == 8 ? x % 8 : x % 8 / 2;
  }
  /// The slot of this thread's piece in its row of an even pass, and how far beyond it that of an odd one
  /// lies.
  [[nodiscard]] __device__ __forceinline__ static int own() {
    const int thread = static_cast<int>(threadIdx.x);
    return thread ^ order(thread % 32 / lanes);
  }
  [[nodiscard]] __device__ __forceinline__ static int flip(int p) {
    return lanes == 8 && p % 2 != 0 ? 4 - 2 * (own() & 4) : 0;
  }
  /// Bytes from the warp's first piece of a tile's first pass to piece `piece` of row x. Those of the tile n to
  /// the right: ^ n · 32.
  [[nodiscard]] __device__ __forceinline__ static int offset(int x, int piece) {
    const int at = x % warp_rows * lanes + (piece ^ order(x));
    return x / warp_rows * pass_bytes + at * vector_bytes;
  }
};
/// Where each thread has to do with its own pieces alone.
template <>
struct panel_tiles<0> {
  [[nodiscard]] __device__ __forceinline__ static int own() { return static_cast<int>(threadIdx.x); }
  [[nodiscard]] __device__ __forceinline__ static int flip(int) { return 0; }
};

using tile_bits = unsigned[4];  // a thread's eight of 256 elements

/// A tile as the operand with rows, or with columns in place of them: each thread gives the address of 8 elements
/// of a row.
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

/// A float is the sum of three bf16s, exactly, its highest 8 bits, the next and the last: the columns 0 to 2
/// of B hold these, the others zero.
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
