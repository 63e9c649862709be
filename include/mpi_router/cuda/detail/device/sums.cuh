// Sums over threads in an order that never changes.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Exchanges halves of n values between lanes that differ in bit `mask`, `stop` values left: each lane ends
/// with sums of its own part of the values. Written as a recursion, for every index must be a constant.
template <int n, int mask, int stop>
__device__ __forceinline__ void halve_over_warp(float* v, int lane) {
  if constexpr (n > stop) {
    const bool upper = (lane & mask) != 0;
#pragma unroll
    for (int i = 0; i < n / 2; ++i) {
      const float give = upper ? v[i] : v[i + n / 2];
      const float keep = upper ? v[i + n / 2] : v[i];
      v[i] = keep + __shfl_xor_sync(0xffffffffU, give, mask);
    }
    halve_over_warp<n / 2, mask / 2, stop>(v, lane);
  }
}
/// Adds up each of n values over the lanes that differ in the bits from `mask` down to `last`.
template <int n, int mask, int last>
__device__ __forceinline__ void add_over_warp(float* v) {
  if constexpr (mask >= last && mask > 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] += __shfl_xor_sync(0xffffffffU, v[i], mask);
    }
    add_over_warp<n, mask / 2, last>(v);
  }
}

__device__ __forceinline__ double add_over_warp(double x) {
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) {
    x += __shfl_xor_sync(0xffffffffU, x, mask);
  }
  return x;
}

/// Sums each of n values (a power of two up to 32) over the lanes of a warp. The lane returns the sum of
/// value lane / (32 / n): halving the values at each step takes n + log2(32 / n) − 1 exchanges in place of 5
/// n.
template <int n>
__device__ __forceinline__ float sum_over_warp(float (&v)[n], int lane) {
  halve_over_warp<n, 16, 1>(v, lane);
  add_over_warp<1, 16 / n, 1>(v);
  return v[0];
}

/// Sums each of n values over a group and gives every thread all n sums; returns that of value lane mod n.
/// `scratch` has 2 · sums_at_once floats for each warp, used in turn, so that one barrier a call is enough:
/// `turn` alternates between 0 and 1.
template <int n, class AtBarrier>
__device__ __forceinline__ float sum_over_group(float (&v)[n], const thread_group& group, float* scratch,
                                                int& turn, const AtBarrier& after_barrier) {
  const int lane = group.lane();
  const float mine = sum_over_warp(v, lane);
  if (group.warps() == 1) {
    const float own = __shfl_sync(0xffffffffU, mine, lane % n * (32 / n));
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] = __shfl_sync(0xffffffffU, own, i);
    }
    __syncwarp();
    after_barrier();
    return own;
  }
  float* const sums = scratch + turn * group.warps() * sums_at_once;
  turn ^= 1;
  if (lane % (32 / n) == 0) {
    sums[group.warp() * n + lane / (32 / n)] = mine;
  }
  group.sync();
  after_barrier();
  float total = 0.0F;
#pragma unroll
  for (int i = 0; i < most_warps * n; i += 32) {
    total += i + lane < group.warps() * n ? sums[i + lane] : 0.0F;
  }
#pragma unroll
  for (int mask = 16; mask >= n; mask /= 2) {
    total += __shfl_xor_sync(0xffffffffU, total, mask);
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    v[i] = __shfl_sync(0xffffffffU, total, i);
  }
  return total;
}

/// The largest magnitude in a warp.
__device__ __forceinline__ unsigned largest_over_warp(float x) {
  return __reduce_max_sync(0xffffffffU, magnitude_bits(x));
}

/// The bits of the largest magnitude that `lanes` neighbours have.
template <int lanes, int n>
__device__ __forceinline__ unsigned largest_over_lanes(const float (&v)[n]) {
  unsigned most = 0;
#pragma unroll
  for (int i = 0; i < n; ++i) {
    most = max(most, magnitude_bits(v[i]));
  }
#pragma unroll
  for (int m = lanes / 2; m >= 1; m /= 2) {
    most = max(most, __shfl_xor_sync(0xffffffffU, most, m));
  }
  return most;
}

__device__ __forceinline__ unsigned max_over_group(unsigned bits, const thread_group& group, float* scratch,
                                                   int& turn) {
  bits = __reduce_max_sync(0xffffffffU, bits);
  if (group.warps() == 1) {
    return bits;
  }
  auto* const all = reinterpret_cast<unsigned*>(scratch + turn * group.warps() * sums_at_once);
  turn ^= 1;
  if (group.lane() == 0) {
    all[group.warp()] = bits;
  }
  group.sync();
  unsigned most = 0;
  for (int i = 0; i < group.warps(); ++i) {
    most = max(most, all[i]);
  }
  return most;
}

/// Sums n doubles over the `threads` (up to 512) threads of a block; each of them gets the sums.
/// `scratch` has n · most_warps doubles that nothing else uses.
template <int n>
__device__ __forceinline__ void sum_over_block(double (&v)[n], double* scratch, int threads) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = threads / 32;
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] += __shfl_xor_sync(0xffffffffU, v[i], mask);
    }
  }
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      scratch[i * most_warps + warp] = v[i];
    }
  }
  block_sync();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    v[i] = lane < warps ? scratch[i * most_warps + lane] : 0.0;
  }
#pragma unroll
  for (int mask = most_warps / 2; mask >= 1; mask /= 2) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      v[i] += __shfl_xor_sync(0xffffffffU, v[i], mask);
    }
  }
#pragma unroll
  for (int i = 0; i < n; ++i) {
    v[i] = __shfl_sync(0xffffffffU, v[i], 0);
  }
}

MPIROUTER_CUDA_DETAIL_END
