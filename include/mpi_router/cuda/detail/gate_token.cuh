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

/// What an expert is weighed by, from its logit: its score or, where scores come last, the logit itself.
__device__ __forceinline__ float raw_score(const gate_args& a, float logit, float largest,
                                           float denominator) {
  if (!a.score_first) {
    return logit;
  }
  return a.score == score_function::softmax ? expf(logit - largest) / denominator : score_of(a.score, logit);
}

/// How the chosen are weighed (Eq. 6), once all of them are known. `Chosen` visits some of them, and combines
/// over all lanes that have others: every one of these lanes must take part.
class weighing {
 public:
  template <class Chosen>
  __device__ __forceinline__ weighing(const gate_args& a, const Chosen& chosen)
      : softmax_last_(!a.score_first && a.score == score_function::softmax), a_(a) {
    if (softmax_last_) {
      chosen.visit([&](int, float x) { largest_ = fmaxf(largest_, x); });
      largest_ = chosen.largest(largest_);
      chosen.visit([&](int, float x) { denominator_ += expf(x - largest_); });
      denominator_ = chosen.total(denominator_);
    }
    if (a.renormalize) {
      float sum = 0.0F;
      if (a.score_first) {
        chosen.visit([&](int, float x) { sum += x; });
      } else {
        chosen.visit([&](int, float x) { sum += score(x); });
      }
      sum = chosen.total(sum);
      divisor_ = sum > 0.0F ? sum : 1.0F;
    }
  }
  [[nodiscard]] __device__ __forceinline__ bool defined() const {
    return !softmax_last_ || isfinite(largest_);
  }
  [[nodiscard]] __device__ __forceinline__ float weight(float x) const {
    return score(x) / divisor_ * a_.scaling;
  }

 private:
  [[nodiscard]] __device__ __forceinline__ float score(float x) const {
    return a_.score_first ? x : softmax_last_ ? expf(x - largest_) / denominator_ : score_of(a_.score, x);
  }

  bool softmax_last_;
  float largest_ = -INFINITY;
  float denominator_ = 0.0F;
  float divisor_ = 1.0F;
  const gate_args& a_;
};

/// The chosen as the lanes of a warp share them: lane k has number k, or more than 32 are in memory.
struct warp_choice {
  int lane;
  int count;
  bool many;
  float raw;
  const float* in_memory;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
    for (int k = lane; k < count; k += 32) {
      visit(k, many ? in_memory[k] : raw);
    }
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) { return sum_of_warp(x); }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) { return max_of_warp(x); }
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
            raw = raw_score(a, logits[mine], largest, denominator);
          }
          if (many) {
            weights[at] = raw;
          }
        }
      }
    }
    const warp_choice chosen{lane, a.top_k, many, raw, weights};
    const weighing by(a, chosen);
    bool finite = true;
    chosen.visit([&](int k, float x) {
      weights[k] = by.weight(x);
      finite = finite && isfinite(weights[k]);
    });
    defined = __all_sync(0xffffffffU, finite && by.defined()) != 0;
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

/// A block counts its experts' loads in shared memory first: `load` has N numbers, where they are wanted.
__device__ __forceinline__ void clear_loads(const gate_args& a, unsigned* load) {
  if (a.load != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      load[i] = 0;
    }
    __syncthreads();
  }
}
__device__ __forceinline__ void add_loads(const gate_args& a, const unsigned* load) {
  if (a.load != nullptr) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      if (load[i] != 0) {
        atomicAdd(a.load + i, static_cast<int>(load[i]));  // whole numbers: the same in any order
      }
    }
  }
}

/// A token with all that is told of it.
template <int kept>
__device__ __forceinline__ void take_token(const gate_args& a, long long token, unsigned* scratch,
                                           unsigned* load) {
  const status state = gate_token<kept>(a, token, scratch);
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

/// A warp takes every so many tokens.
template <int kept>
__global__ void __launch_bounds__(256, (kept > 0 && kept <= 4 ? 5 : 2))
    gate_kernel(const __grid_constant__ gate_args a, int scratch_per_warp) {
  extern __shared__ unsigned memory[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  unsigned* const load = memory + warps * scratch_per_warp;
  clear_loads(a, load);
  for (long long token = static_cast<long long>(blockIdx.x) * warps + warp; token < a.tokens;
       token += static_cast<long long>(gridDim.x) * warps) {
    take_token<kept>(a, token, memory + warp * scratch_per_warp, load);
  }
  add_loads(a, load);
}

}  // namespace detail
MPIROUTER_CUDA_END
