// One token, one warp: scores, the choice of experts, their weights, as router/selection.hpp does on the
// host.
#pragma once

#include <mpi_router/cuda/detail/number.cuh>
#include <mpi_router/router/gating_options.hpp>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// Floats as unsigned numbers in the same order, all above zero; NaN counts as −∞.
__device__ __forceinline__ unsigned sortable(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return 0x007fffffU;
  }
  const unsigned positive = x == 0.0F ? 0U : bits;  // −0 ties with 0
  return (positive & 0x80000000U) != 0 ? ~positive : positive | 0x80000000U;
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

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) {
    x += __shfl_xor_sync(0xffffffffU, x, mask);
  }
  return x;
}
__device__ __forceinline__ float max_of_warp(float x) {
#pragma unroll
  for (int mask = 16; mask >= 1; mask /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, mask));
  }
  return x;
}

__device__ __forceinline__ float score_of(score_function f, float x) {
  const float e = expf(-fabsf(x));
  if (f == score_function::sigmoid) {
    return (x < 0.0F ? e : 1.0F) / (1.0F + e);
  }
  return sqrtf(fmaxf(x, 0.0F) + log1pf(e));
}

struct gate_args {
  const float* logits;
  long long logits_stride;
  const float* bias;  // null: none
  float* weights;     // [T, K]
  expert_id* experts;
  status* statuses;  // null: not wanted
  int* load;         // null: not wanted
  long long tokens;
  int num_experts;
  int top_k;
  score_function score;
  bool score_first;
  bool renormalize;
  float scaling;
  int groups;
  int top_groups;
  int group_size;
  int counted;  // best experts that make a group's worth
};

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

__device__ __forceinline__ float from_sortable(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

/// Takes the keys of experts outside of the best groups out of the running. `worth` has `groups` elements.
template <class Array>
__device__ __forceinline__ void keep_best_groups(Array& keys, const gate_args& a, unsigned* worth) {
  for (int g = 0; g < a.groups; ++g) {
    candidate last;
    float sum = 0.0F;
    for (int c = 0; c < a.counted; ++c) {
      last = next_best(keys, a.num_experts, last, [&](int i) { return i / a.group_size == g; });
      sum += from_sortable(last.key);
    }
    worth[g] = sortable(sum);
  }
  __syncwarp();
  lane_array<0> all(worth, a.groups);
  candidate last;
  for (int g = 0; g < a.top_groups; ++g) {
    last = next_best(all, a.groups, last, [](int) { return true; });
  }
  keys.visit(a.num_experts, [&](int i, unsigned& key) {
    const candidate group{worth[i / a.group_size], i / a.group_size};
    if (last.before(group)) {
      key = 0;
    }
  });
}

/// `scratch` has N (where kept is 0) + groups (where some are left out) numbers for each warp.
template <int kept>
__device__ __forceinline__ status gate_token(const gate_args& a, long long token, unsigned* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n = a.num_experts;
  const float* const logits = a.logits + token * a.logits_stride;
  expert_id* const ids = a.experts + token * a.top_k;
  float* const weights = a.weights + token * a.top_k;
  lane_array<kept> keys(scratch, n);
  unsigned* const worth = scratch + (kept == 0 ? n : 0);

  float largest = -INFINITY;
  bool nan = false;
  keys.visit(n, [&](int i, unsigned& key) {
    const float x = logits[i];
    key = __float_as_uint(x);
    nan = nan || isnan(x);
    largest = fmaxf(largest, x);
  });
  bool defined = __any_sync(0xffffffffU, nan) == 0;
  float denominator = 1.0F;
  const bool softmax_first = a.score_first && a.score == score_function::softmax;
  if (softmax_first) {
    largest = max_of_warp(largest);
    defined = defined && isfinite(largest);
    denominator = 0.0F;
    keys.visit(n, [&](int, unsigned& key) {
      const float e = expf(__uint_as_float(key) - largest);
      key = __float_as_uint(e);
      denominator += e;
    });
    denominator = sum_of_warp(denominator);
  }
  if (defined) {
    const float per_denominator = 1.0F / denominator;
    keys.visit(n, [&](int i, unsigned& key) {
      float x = __uint_as_float(key);
      if (softmax_first) {
        x *= per_denominator;
      } else if (a.score_first) {
        x = score_of(a.score, x);
      }
      if (a.score_first && a.bias == nullptr) {
        key = __float_as_uint(x) | 0x80000000U;  // scores are not negative: what sortable() makes of them
      } else {
        key = sortable(a.bias == nullptr ? x : x + a.bias[i]);
      }
    });
    if (a.top_groups < a.groups) {
      keep_best_groups(keys, a, worth);
    }
    // Lane k keeps the chosen number k, and its score or, where scores come last, its logit; of more than 32
    // they go to memory.
    const bool many = a.top_k > 32;
    int mine = 0;
    unsigned my_key = 0;
    float raw = 0.0F;
    best_first<kept> best(keys, n);
    for (int k = 0; k < a.top_k; ++k) {
      const candidate taken = best.take();
      mine = k % 32 == lane ? taken.index : mine;
      my_key = k % 32 == lane ? taken.key : my_key;
      if (k % 32 == 31 || k + 1 == a.top_k) {
        const int at = k - k % 32 + lane;
        if (at <= k) {
          ids[at] = mine;
          raw = from_sortable(my_key);
          if (a.bias != nullptr) {
            raw = logits[mine];
            if (a.score_first) {
              raw = a.score == score_function::softmax ? expf(raw - largest) / denominator
                                                       : score_of(a.score, raw);
            }
          }
          if (many) {
            weights[at] = raw;
          }
        }
      }
    }
    const auto for_chosen = [&](const auto& visit) {
      for (int k = lane; k < a.top_k; k += 32) {
        visit(k, many ? weights[k] : raw);
      }
    };
    const bool softmax_last = !a.score_first && a.score == score_function::softmax;
    if (softmax_last) {
      largest = -INFINITY;
      for_chosen([&](int, float x) { largest = fmaxf(largest, x); });
      largest = max_of_warp(largest);
      defined = isfinite(largest);
      denominator = 0.0F;
      for_chosen([&](int, float x) { denominator += expf(x - largest); });
      denominator = sum_of_warp(denominator);
    }
    const auto score = [&](float x) {
      return a.score_first ? x : softmax_last ? expf(x - largest) / denominator : score_of(a.score, x);
    };
    float divisor = 1.0F;
    if (a.renormalize) {
      float sum = 0.0F;
      for_chosen([&](int, float x) { sum += score(x); });
      sum = sum_of_warp(sum);
      divisor = sum > 0.0F ? sum : 1.0F;
    }
    bool finite = true;
    for_chosen([&](int k, float x) {
      const float weight = score(x) / divisor * a.scaling;
      weights[k] = weight;
      finite = finite && isfinite(weight);
    });
    defined = defined && __all_sync(0xffffffffU, finite) != 0;
  }
  if (!defined) {
    for (int k = lane; k < a.top_k; k += 32) {
      ids[k] = k;
      weights[k] = 0.0F;
    }
  }
  __syncwarp();
  return defined ? status::ok : status::non_finite;
}

/// A warp takes every so many tokens; a block counts its experts' loads in shared memory first.
template <int kept>
__global__ void __launch_bounds__(256, (kept > 0 && kept <= 4 ? 5 : 2))
    gate_kernel(const __grid_constant__ gate_args a, int scratch_per_warp) {
  extern __shared__ unsigned memory[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  unsigned* const load = memory + warps * scratch_per_warp;
  if (a.load != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      load[i] = 0;
    }
    __syncthreads();
  }
  for (long long token = static_cast<long long>(blockIdx.x) * warps + warp; token < a.tokens;
       token += static_cast<long long>(gridDim.x) * warps) {
    const status state = gate_token<kept>(a, token, memory + warp * scratch_per_warp);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (a.statuses != nullptr && lane == 0) {
      a.statuses[token] = state;
    }
    if (a.load != nullptr && state == status::ok) {
      for (int k = lane; k < a.top_k; k += 32) {
        atomicAdd(load + a.experts[token * a.top_k + k], 1U);
      }
    }
  }
  if (a.load != nullptr) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      if (load[i] != 0) {
        atomicAdd(a.load + i, static_cast<int>(load[i]));  // whole numbers: the same in any order
      }
    }
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
