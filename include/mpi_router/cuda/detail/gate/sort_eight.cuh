// Sorting networks for eight unsigned keys in registers, largest first: every index is a constant.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The two in order.
__device__ __forceinline__ void put_larger_first(unsigned& a, unsigned& b) {
  const unsigned larger = max(a, b);
  b = min(a, b);
  a = larger;
}
/// Batcher's odd-even merge sort, largest first.
__device__ __forceinline__ void sort_eight(unsigned* k) {
  constexpr int pairs[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6},
                                {5, 7}, {1, 2}, {5, 6}, {0, 4}, {1, 5}, {2, 6}, {3, 7},
                                {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (int i = 0; i < 19; ++i) {
    put_larger_first(k[pairs[i][0]], k[pairs[i][1]]);
  }
}
/// Of two sorted eights the largest eight, sorted: the larger of each key and its opposite, then a bitonic
/// sort.
__device__ __forceinline__ void merge_eights(unsigned* k, const unsigned* other) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    k[j] = max(k[j], other[7 - j]);
  }
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if ((j & distance) == 0) {
        put_larger_first(k[j], k[j + distance]);
      }
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
