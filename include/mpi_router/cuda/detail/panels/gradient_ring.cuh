// What a gradient is added to, on its way through shared memory, and how a thread's part of it lies.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/plan/old_copies.hpp>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The ring of what a gradient is added to: a thread's own elements of one pass after the other.
template <class G, int width, panel_depth depth>
class old_ring {
 public:
  static constexpr int vectors = width * static_cast<int>(sizeof(G)) / vector_bytes;  // of a pass
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr old_copies order() {
    return {panel_passes(depth), panel_doubled(depth), panel_old_slots / (vectors > 0 ? vectors : 1)};
  }

  __device__ __forceinline__ explicit old_ring(unsigned char* memory)
      : own_(reinterpret_cast<uint4*>(memory) + threadIdx.x) {}
  /// Starts the copy of the ith pass to be lifted: its vectors `apart` from there on, `left` elements of
  /// which there are.
  __device__ __forceinline__ void copy(int i, const G* from, int apart, int left) const {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      copy_async_16(own_ + slot(i, v), from + v * apart, v * apart < left);
    }
  }
  /// The ith pass, when it has arrived.
  __device__ __forceinline__ void load(int i, uint4 (&bits)[vectors]) const {
    static_assert(order().reaches_all());
    wait_for_few_copy_groups(order().pending(i));
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      bits[v] = own_[slot(i, v)];
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ static int slot(int i, int v) {
    return (i % order().ahead * vectors + v) * panel_threads;
  }
  uint4* own_;
};

/// How a thread's `width` elements of a row lie in a gradient. Where they take two vectors, it swaps one with
/// its neighbour's, so that the two of them write whole sectors of memory at a time.
template <class G, int width>
struct gradient_share {
  static constexpr bool swaps = width * sizeof(G) == 2 * vector_bytes;
  static constexpr int piece = swaps ? width / 2 : width;
  static constexpr int apart = swaps ? width : vector_width<G>;  // elements from a vector to the next

  /// Where its pieces begin, from its first element on.
  [[nodiscard]] __device__ __forceinline__ static int first() {
    return swaps ? -piece * static_cast<int>(threadIdx.x % 2) : 0;
  }
  __device__ __forceinline__ static void swap(float (&x)[width]) {
    if constexpr (swaps) {
      const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
      for (int k = 0; k < piece; ++k) {
        const float got = __shfl_xor_sync(0xffffffffU, odd ? x[k] : x[piece + k], 1);
        x[k] = odd ? got : x[k];
        x[piece + k] = odd ? x[piece + k] : got;
      }
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
