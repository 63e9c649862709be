// One token, one warp: scores, the choice of experts, their weights, as router/selection.hpp does on the
// host.
#pragma once

#include <mpi_router/cuda/detail/gate/best_first.cuh>
#include <mpi_router/cuda/detail/gate/choice.cuh>
#include <mpi_router/cuda/detail/gate/weighing.cuh>

#include <cfloat>
#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Takes the keys of experts outside of the best groups out of the running. `group_scores` has `groups`
/// elements.
template <class Array>
__device__ __forceinline__ void keep_best_groups(Array& keys, const gate_args& a, unsigned* group_scores) {
  for (int g = 0; g < a.groups; ++g) {
    candidate last;
    unsigned best = 0;
    float sum = 0.0F;
    for (int c = 0; c < a.counted; ++c) {
      last = next_best(keys, a.num_experts, last, [&](int i) { return i / a.group_size == g; });
      best = max(best, last.key);
      sum += from_sortable(last.key);
    }
    // Closed experts make a sum −∞: a group with an open one comes before those without.
    group_scores[g] = max(sortable(sum), min(best, sortable(-FLT_MAX)));
  }
  __syncwarp();
  lane_array<0> all(group_scores, a.groups);
  candidate last;
  for (int g = 0; g < a.top_groups; ++g) {
    last = next_best(all, a.groups, last, [](int) { return true; });
  }
  keys.visit(a.num_experts, [&](int i, unsigned& key) {
    const candidate group{group_scores[i / a.group_size], i / a.group_size};
    if (last.before(group)) {
      key = 0;
    }
  });
}

/// The largest of a token's logits, and whether one of them is NaN.
struct logit_range {
  float largest;
  bool has_nan;
};

/// Leaves the logits in `keys`.
template <int kept>
__device__ __forceinline__ logit_range load_logits(const float* logits, int n, lane_array<kept>& keys) {
  float largest = -INFINITY;
  bool nan = false;
  keys.visit(n, [&](int i, unsigned& key) {
    const float x = logits[i];
    key = __float_as_uint(x);
    nan = nan || isnan(x);
    largest = fmaxf(largest, x);
  });
  return {over_token<32>(largest, larger_of{}), __any_sync(0xffffffffU, nan) != 0};
}

/// Σ e^(x − the largest) over all experts, where the softmax comes first, or 0.
template <int kept>
__device__ __forceinline__ float softmax_denominator(const gate_args& a, lane_array<kept>& logits,
                                                     float largest) {
  float sum = 0.0F;
  if (a.softmax_first() && (a.by_scores || !a.renormalize)) {
    logits.visit(a.num_experts, [&](int, unsigned x) { sum += expf(__uint_as_float(x) - largest); });
    sum = over_token<32>(sum, sum_of{});
  }
  return sum;
}

/// Makes keys of the logits: of what experts are selected by, their logits or their scores, plus the bias.
template <int kept>
__device__ __forceinline__ void make_keys(const gate_args& a, lane_array<kept>& keys, float largest,
                                          float denominator) {
  const float per_denominator = 1.0F / denominator;
  keys.visit(a.num_experts, [&](int i, unsigned& key) {
    float x = __uint_as_float(key);
    if (a.by_scores) {
      x = core::with_score(a.score, [&]<class Score>(Score) {
        return Score::is_exponential ? score_of<Score>(x - largest) * per_denominator : score_of<Score>(x);
      });
    }
    key = sortable(a.bias == nullptr ? x : x + a.bias[i]);
  });
}

/// Writes the ids of the best K, and tells their logits, −∞ for those that the bias closes. Adds those of
/// this lane to `closed`.
template <int kept>
__device__ __forceinline__ warp_choice choose(const gate_args& a, long long token, lane_array<kept>& keys,
                                              int& closed) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* const logits = a.logits + token * a.logits_stride;
  // Lane k keeps the chosen number k, and its logit; of more than 32 they go to memory.
  warp_choice chosen{lane, a.top_k, a.top_k > 32, 0.0F, a.weights + token * a.top_k};
  int mine = 0;
  best_first<kept> best(keys, a.num_experts);
  for (int k = 0; k < a.top_k; ++k) {
    const candidate taken = best.take();
    mine = k % 32 == lane ? taken.index : mine;
    const int at = k - k % 32 + lane;
    if ((k % 32 == 31 || k + 1 == a.top_k) && at <= k) {
      a.experts[token * a.top_k + at] = mine;
      closed += a.closes(mine) ? 1 : 0;
      chosen.raw = a.closes(mine) ? -INFINITY : logits[mine];
      if (chosen.many) {
        chosen.in_memory[at] = chosen.raw;
      }
    }
  }
  return chosen;
}

/// Writes the weights of the chosen, which are `closed` by the bias in part. Returns whether the token has
/// experts: all weights are finite, and defined. Called, not inlined: its registers would be taken from the
/// loops before it, which decide how many blocks a multiprocessor holds.
template <class = void>
[[nodiscard]] __device__ __noinline__ bool weigh(const gate_args& a, long long token,
                                                 const warp_choice chosen, int closed, float largest,
                                                 float denominator) {
  return core::with_score(a.score, [&]<class Score>(Score) {
    const weighing<Score> by(a, chosen, largest, denominator);
    bool finite = true;
    chosen.visit([&](int k, float x) {
      const float weight = by.weight(x);
      a.weights[token * a.top_k + k] = weight;
      finite = finite && isfinite(weight);
    });
    return __all_sync(0xffffffffU, finite) != 0 && a.has_experts(by.nothing(), closed);
  });
}

/// `scratch` has N (where kept is 0) + groups (where some are left out) numbers for each warp.
template <int kept>
__device__ __forceinline__ status gate_token(const gate_args& a, long long token, unsigned* scratch) {
  lane_array<kept> keys(scratch, a.num_experts);
  const logit_range logits = load_logits(a.logits + token * a.logits_stride, a.num_experts, keys);
  bool defined = !logits.has_nan && (!a.softmax_first() || isfinite(logits.largest));
  const float denominator = softmax_denominator(a, keys, logits.largest);
  int closed = 0;  // of the chosen
  if (defined) {
    make_keys(a, keys, logits.largest, denominator);
    if (a.top_groups < a.groups) {
      keep_best_groups(keys, a, scratch + (kept == 0 ? a.num_experts : 0));
    }
    const warp_choice chosen = choose(a, token, keys, closed);
    closed = __reduce_add_sync(0xffffffffU, closed);
    defined = weigh(a, token, chosen, closed, logits.largest, denominator);
  }
  const bool counts = a.counts(token);
  if (!defined || !counts) {
    for (int k = static_cast<int>(threadIdx.x) % 32; k < a.top_k; k += 32) {
      a.experts[token * a.top_k + k] = counts ? k : -1;
      a.weights[token * a.top_k + k] = 0.0F;
    }
  }
  __syncwarp();
  return state_of_token(counts, defined, closed);
}

MPIROUTER_CUDA_DETAIL_END
