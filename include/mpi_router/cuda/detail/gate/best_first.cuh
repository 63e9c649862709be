// The best of a warp's numbers, one after the other: larger first, of equal ones the lower index, as
// router/selection.hpp on the host.
#pragma once

#include <mpi_router/core/config.hpp>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Floats, but not NaN, as unsigned numbers in the same order, all above zero.
__device__ __forceinline__ unsigned sortable_number(float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned b = bits == 0x80000000U ? 0U : bits;  // −0 ties with 0
  return b ^ (static_cast<unsigned>(static_cast<int>(b) >> 31) | 0x80000000U);
}
/// The same, where NaN counts as −∞.
__device__ __forceinline__ unsigned sortable(float x) { return sortable_number(isnan(x) ? -INFINITY : x); }

__device__ __forceinline__ float from_sortable(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

/// A place in the order of selection: larger keys first, of equal keys the lower index.
struct candidate {
  unsigned key = 0xffffffffU;
  int index = -1;
  [[nodiscard]] __device__ __forceinline__ bool before(const candidate& other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

/// The first of all lanes' candidates.
__device__ __forceinline__ candidate first_of_warp(const candidate& mine) {
  const unsigned key = __reduce_max_sync(0xffffffffU, mine.key);
  const int index = static_cast<int>(
      __reduce_min_sync(0xffffffffU, mine.key == key ? static_cast<unsigned>(mine.index) : 0xffffffffU));
  return {key, index};
}

/// A warp's numbers, one for each expert: expert i in lane i mod 32. In registers for up to 32 · kept
/// experts, else (kept = 0) in shared memory.
template <int kept>
struct lane_array {
  unsigned values[kept] = {};
  __device__ __forceinline__ lane_array(unsigned*, int) {}
  template <class Visit>
  __device__ __forceinline__ void visit(int n, const Visit& visit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      if (i * 32 + lane < n) {
        visit(i * 32 + lane, values[i]);
      }
    }
  }
};
template <>
struct lane_array<0> {
  unsigned* values;
  __device__ __forceinline__ lane_array(unsigned* shared, int) : values(shared) {}
  template <class Visit>
  __device__ __forceinline__ void visit(int n, const Visit& visit) {
    for (int i = static_cast<int>(threadIdx.x) % 32; i < n; i += 32) {
      visit(i, values[i]);
    }
  }
};

/// The candidate that follows `last` among those that `use` admits; key 0 if there is none.
template <class Array, class Use>
__device__ __forceinline__ candidate next_best(Array& keys, int n, const candidate& last, const Use& use) {
  candidate best{0, 0x7fffffff};
  keys.visit(n, [&](int i, unsigned key) {
    const candidate c{key, i};
    if (use(i) && last.before(c) && c.before(best)) {
      best = c;
    }
  });
  return first_of_warp(best);
}

/// Takes the best candidates one after the other. From shared memory: looks through all of it each time.
template <int kept>
struct best_first {
  lane_array<0>& keys;
  int n;
  __device__ __forceinline__ best_first(lane_array<0>& array, int size) : keys(array), n(size) {}
  __device__ __forceinline__ candidate take() {
    candidate best{0, 0x7fffffff};
    keys.visit(n, [&](int i, unsigned key) {
      if (key > best.key) {  // a lane meets its experts in ascending order
        best = {key, i};
      }
    });
    best = first_of_warp(best);
    keys.visit(n, [&](int i, unsigned& key) { key = i == best.index ? 0U : key; });
    return best;
  }
};
/// From registers: each lane sorts its own once, and offers its first.
template <int kept>
  requires(kept > 0)
struct best_first<kept> {
  unsigned keys[kept];
  int indices[kept];
  __device__ __forceinline__ best_first(const lane_array<kept>& array, int) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kept; ++i) {
      keys[i] = array.values[i];
      indices[i] = i * 32 + lane;
    }
#pragma unroll
    for (int i = 1; i < kept; ++i) {
#pragma unroll
      for (int j = i; j > 0; --j) {  // stable: equal keys stay in the order of their experts
        const bool swap = keys[j] > keys[j - 1];
        const unsigned key = keys[j];
        const int index = indices[j];
        keys[j] = swap ? keys[j - 1] : key;
        indices[j] = swap ? indices[j - 1] : index;
        keys[j - 1] = swap ? key : keys[j - 1];
        indices[j - 1] = swap ? index : indices[j - 1];
      }
    }
  }
  __device__ __forceinline__ candidate take() {
    const candidate best = first_of_warp({keys[0], indices[0]});
    if (indices[0] == best.index) {
#pragma unroll
      for (int i = 0; i + 1 < kept; ++i) {
        keys[i] = keys[i + 1];
        indices[i] = indices[i + 1];
      }
      keys[kept - 1] = 0;
    }
    return best;
  }
};

MPIROUTER_CUDA_DETAIL_END
