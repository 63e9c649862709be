// One token, one warp: scores, the choice of experts, their weights, as router/selection.hpp does on the
// host.
#pragma once

#include <mpi_router/cuda/detail/gate/best_first.cuh>
#include <mpi_router/cuda/detail/gate/weighing.cuh>

#include <cfloat>
#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

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
  [[nodiscard]] __device__ __forceinline__ static float least(float x) { return -max_of_warp(-x); }
  /// Of any token that shares the warp: whether what all its lanes must do is to be done.
  [[nodiscard]] __device__ __forceinline__ static bool any(bool x) { return x; }
};

/// Takes the keys of experts outside of the best groups out of the running. `worth` has `groups` elements.
template <class Array>
__device__ __forceinline__ void keep_best_groups(Array& keys, const gate_args& a, unsigned* worth) {
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
    worth[g] = max(sortable(sum), min(best, sortable(-FLT_MAX)));
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
  largest = max_of_warp(largest);
  bool defined = __any_sync(0xffffffffU, nan) == 0 && (!a.softmax_first() || isfinite(largest));
  float denominator = 0.0F;
  if (a.softmax_first() && (a.by_scores || !a.renormalize)) {
    keys.visit(n, [&](int, unsigned key) { denominator += expf(__uint_as_float(key) - largest); });
    denominator = sum_of_warp(denominator);
  }
  int closed = 0;  // of the chosen
  if (defined) {
    const float per_denominator = 1.0F / denominator;
    keys.visit(n, [&](int i, unsigned& key) {
      float x = __uint_as_float(key);
      if (a.by_scores) {
        x = a.softmax_first() ? expf(x - largest) * per_denominator : score_of(a.score, x);
      }
      key = sortable(a.bias == nullptr ? x : x + a.bias[i]);
    });
    if (a.top_groups < a.groups) {
      keep_best_groups(keys, a, worth);
    }
    // Lane k keeps the chosen number k, and its logit; of more than 32 they go to memory.
    const bool many = a.top_k > 32;
    int mine = 0;
    float raw = 0.0F;
    best_first<kept> best(keys, n);
    for (int k = 0; k < a.top_k; ++k) {
      const candidate taken = best.take();
      mine = k % 32 == lane ? taken.index : mine;
      if (k % 32 == 31 || k + 1 == a.top_k) {
        const int at = k - k % 32 + lane;
        if (at <= k) {
          ids[at] = mine;
          closed += a.closes(mine) ? 1 : 0;
          raw = a.closes(mine) ? -INFINITY : logits[mine];
          if (many) {
            weights[at] = raw;
          }
        }
      }
    }
    const warp_choice chosen{lane, a.top_k, many, raw, weights};
    const weighing by(a, chosen, largest, denominator);
    bool finite = true;
    chosen.visit([&](int k, float x) {
      weights[k] = by.weight(x);
      finite = finite && isfinite(weights[k]);
    });
    closed = __reduce_add_sync(0xffffffffU, closed);
    defined = __all_sync(0xffffffffU, finite) != 0 && a.has_experts(by.nothing(), closed);
  }
  const bool counts = a.counts(token);
  if (!defined || !counts) {
    for (int k = lane; k < a.top_k; k += 32) {
      ids[k] = counts ? k : -1;
      weights[k] = 0.0F;
    }
  }
  __syncwarp();
  return !counts      ? status::masked
         : !defined   ? status::non_finite
         : closed > 0 ? status::closed_expert
                      : status::ok;
}

MPIROUTER_CUDA_DETAIL_END
