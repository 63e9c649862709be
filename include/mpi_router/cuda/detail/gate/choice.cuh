// The chosen experts of a token that some lanes of a warp share: how a weighing visits them, and sums over
// them.
#pragma once

#include <mpi_router/cuda/detail/gate/best_first.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

struct larger_of {
  __device__ __forceinline__ float operator()(float x, float y) const { return fmaxf(x, y); }
};
struct sum_of {
  template <class T>
  __device__ __forceinline__ T operator()(T x, T y) const {
    return x + y;
  }
};

/// x of all `lanes` lanes of a token.
template <int lanes, class T, class Combine>
__device__ __forceinline__ T over_token(T x, const Combine& combine) {
#pragma unroll
  for (int mask = lanes / 2; mask >= 1; mask /= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffU, x, mask));
  }
  return x;
}

template <class Visit>
__device__ __forceinline__ void for_each_bit(unsigned bits, const Visit& visit) {
  for (; bits != 0; bits &= bits - 1) {
    visit(__ffs(static_cast<int>(bits)) - 1);
  }
}

/// The chosen as a token's lanes share them: each has those among its own experts, bits of `own`.
template <int lanes, class Raw>
struct shared_choice {
  unsigned own;
  const Raw& raw;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
    for_each_bit(own, [&](int i) { visit(i, raw(i)); });
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) {
    __syncwarp();
    return over_token<lanes>(x, sum_of{});
  }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) {
    __syncwarp();
    return over_token<lanes>(x, larger_of{});
  }
  [[nodiscard]] __device__ __forceinline__ static float least(float x) { return -largest(-x); }
  [[nodiscard]] __device__ __forceinline__ static bool any(bool x) { return __any_sync(0xffffffffU, x) != 0; }
};
/// The chosen where their sorted keys tell all: every lane has every one of them.
struct sorted_choice {
  const unsigned* keys;
  int count;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < most_ranked; ++k) {
      if (k < count) {
        visit(k, from_sortable(keys[k]));
      }
    }
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) { return x; }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) { return x; }
  [[nodiscard]] __device__ __forceinline__ static float least(float x) { return x; }
  [[nodiscard]] __device__ __forceinline__ static bool any(bool x) { return x; }
};

/// The chosen as the lanes of a warp share them: lane k has number k, or more than 32 are in memory.
struct warp_choice {
  int lane;
  int count;
  bool many;
  float raw;
  float* in_memory;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
    for (int k = lane; k < count; k += 32) {
      visit(k, many ? in_memory[k] : raw);
    }
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) { return over_token<32>(x, sum_of{}); }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) {
    return over_token<32>(x, larger_of{});
  }
  [[nodiscard]] __device__ __forceinline__ static float least(float x) { return -largest(-x); }
  /// Of any token that shares the warp: whether what all its lanes must do is to be done.
  [[nodiscard]] __device__ __forceinline__ static bool any(bool x) { return x; }
};

MPIROUTER_CUDA_DETAIL_END
