// What a gate is asked on the device, and how the experts that are chosen are weighed (Eq. 6): shares of
// their scores, from logarithms where scores are too small to be divided by, as router/gate_token.hpp does on
// the host.
#pragma once

#include <mpi_router/core/gating_options.hpp>
#include <mpi_router/core/scores.hpp>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

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

/// The elementary functions that scores are made of: see core/scores.hpp.
struct device_math {
  __device__ __forceinline__ static float exp(float x) { return expf(x); }
  __device__ __forceinline__ static float log1p(float e) { return log1pf(e); }
  __device__ __forceinline__ static float log(float x) { return logf(x); }
  __device__ __forceinline__ static float abs(float x) { return fabsf(x); }
  __device__ __forceinline__ static float by_sign(float x, float negative, float otherwise) {
    return x < 0.0F ? negative : otherwise;
  }
  __device__ __forceinline__ static constexpr float deep(float) { return 16.0F; }
};

/// Below this a score is too near to the least normal number to be divided by.
constexpr float least_divisor = 1e-30F;

/// The score of a logit by itself, or, where scores are relative, of a logit less the largest.
template <class Score>
__device__ __forceinline__ float score_of(float x) {
  const float factor = Score::template factor<device_math>(x);
  if constexpr (Score::has_root) {
    return factor * sqrtf(Score::template radicand<device_math>(x));
  } else {
    return factor;
  }
}
__device__ __forceinline__ float score_of(score_function f, float x) {
  return core::with_score(f, [x]<class Score>(Score) { return score_of<Score>(x); });
}
/// Its logarithm, as good at any depth. Called, not inlined, for it is rare.
template <class = void>
__device__ __noinline__ float log_score(score_function f, float x) {
  return core::with_score(f, [x]<class Score>(Score) { return Score::template log_value<device_math>(x); });
}

struct gate_args {
  const float* logits;
  long long logits_stride;
  const float* bias;   // null: none
  const status* mask;  // null: every token counts
  float* weights;      // [T, K]
  expert_id* experts;
  status* statuses;  // null: not wanted
  int* load;         // null: not wanted
  long long tokens;
  int num_experts;
  int top_k;
  score_function score;
  bool is_exponential;  // of that score
  /// Experts are selected by scores: where a bias, or the worth of a group, is added up of them. Otherwise by
  /// logits, which are in the same order, and exact.
  bool by_scores;
  bool score_first;
  bool renormalize;
  float scaling;
  int groups;
  int top_groups;
  int group_size;
  int counted;  // best experts that make a group's worth

  [[nodiscard]] __device__ __forceinline__ bool softmax_first() const {
    return score_first && is_exponential;
  }
  /// Weights are shares of the softmax over all experts.
  [[nodiscard]] __device__ __forceinline__ bool shares_of_all() const {
    return softmax_first() && !renormalize;
  }
  [[nodiscard]] __device__ __forceinline__ bool counts(long long token) const {
    return mask == nullptr || mask[token] == status::ok || mask[token] == status::closed_expert;
  }
  /// Whether a token has experts though `nothing` is left of their weights: the softmax over the chosen is
  /// not defined where all have the logit −∞, unless the bias has closed every one of them.
  [[nodiscard]] __device__ __forceinline__ bool has_experts(bool nothing, int closed) const {
    return !nothing || closed == top_k || !is_exponential || score_first;
  }
  /// Whether the bias closes an expert: −∞ does, and so does NaN.
  [[nodiscard]] __device__ __forceinline__ bool closes(int expert) const {
    return bias != nullptr && !(bias[expert] > -INFINITY);
  }
};

/// How the chosen are weighed (Eq. 6), from their logits, once all of them are known; that of a closed expert
/// counts as −∞. `Chosen` visits some of them, and combines over all lanes that have others: every one of
/// these lanes must take part. Weights are scores over their sum, or e^(x − the largest) over its sum, where
/// x is a logit (softmax) or the logarithm of a score too small to be divided by.
class weighing {
 public:
  /// `largest` and `denominator` are those of the softmax over all experts, where it is wanted.
  template <class Chosen>
  __device__ __forceinline__ weighing(const gate_args& a, const Chosen& chosen, float largest,
                                      float denominator)
      : exponential_(a.is_exponential), a_(a) {
    if (a.shares_of_all()) {
      largest_ = largest;
      divisor_ = denominator;
      return;
    }
    if (!exponential_) {
      if (!a.renormalize) {
        return;
      }
      float least = INFINITY;
      chosen.visit([&](int, float x) { least = fminf(least, x); });
      exponential_ = score_of(a.score, chosen.least(least)) < least_divisor;
    }
    if (chosen.any(exponential_)) {
      float most = -INFINITY;
      chosen.visit([&](int, float x) { most = fmaxf(most, exponent(x)); });
      most = chosen.largest(most);
      nothing_ = most == -INFINITY;
      largest_ = nothing_ ? 0.0F : most;
    }
    float sum = 0.0F;
    chosen.visit([&](int, float x) { sum += score(x); });
    sum = chosen.total(sum);
    divisor_ = sum > 0.0F ? sum : 1.0F;
  }
  /// Whether all of the chosen have the logit −∞, so that no weight is above zero.
  [[nodiscard]] __device__ __forceinline__ bool nothing() const { return exponential_ && nothing_; }
  [[nodiscard]] __device__ __forceinline__ float weight(float x) const {
    const float s = score(x);
    if (s < least_divisor && a_.scaling > 1.0F) [[unlikely]] {  // what is small may come out large
      return expf(exponent(x) - largest_ + logf(a_.scaling)) / divisor_;
    }
    return s / divisor_ * a_.scaling;
  }

 private:
  [[nodiscard]] __device__ __forceinline__ float exponent(float x) const {
    return a_.is_exponential ? x : log_score(a_.score, x);
  }
  [[nodiscard]] __device__ __forceinline__ float score(float x) const {
    return exponential_ ? expf(exponent(x) - largest_) : score_of(a_.score, x);
  }

  bool exponential_;
  bool nothing_ = false;
  float largest_ = 0.0F;
  float divisor_ = 1.0F;
  const gate_args& a_;
};

MPIROUTER_CUDA_DETAIL_END
