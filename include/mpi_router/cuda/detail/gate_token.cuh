// One token, one warp: scores, the choice of experts, their weights, as router/selection.hpp does on the
// host.
#pragma once

#include <mpi_router/cuda/detail/best_first.cuh>
#include <mpi_router/router/gating_options.hpp>

MPIROUTER_CUDA_BEGIN
namespace detail {

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
