// How the experts that are chosen are weighed (Eq. 6): shares of their scores, from logarithms where scores
// are too small to be divided by, as router/gate_token.hpp does on the host.
#pragma once

#include <mpi_router/cuda/detail/gate/arguments.cuh>
#include <mpi_router/cuda/detail/gate/scores.cuh>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

/// How the chosen are weighed (Eq. 6), from their logits, once all of them are known; that of a closed expert
/// counts as −∞. `Chosen` visits some of them, and combines over all lanes that have others: every one of
/// these lanes must take part. Weights are scores over their sum, or e^(x − the largest) over its sum, where
/// x is a logit (softmax) or the logarithm of a score too small to be divided by. For one score function at a
/// time: code that is jumped over is code that is waited for.
template <class Score>
class weighing {
 public:
  /// `largest` and `denominator` are those of the softmax over all experts, where it is wanted.
  template <class Chosen>
  __device__ __forceinline__ weighing(const gate_args& a, const Chosen& chosen, float largest,
                                      float denominator)
      : a_(a) {
    if (Score::is_exponential && a.shares_of_all()) {
      largest_ = largest;
      divisor_ = denominator;
      return;
    }
    if constexpr (!Score::is_exponential) {
      if (!a.renormalize) {
        return;
      }
      float least = INFINITY;
      chosen.visit([&](int, float x) { least = fminf(least, x); });
      by_exponents_ = score_of<Score>(chosen.least(least)) < least_divisor;
    }
    if (chosen.any(by_exponents_)) {
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
  [[nodiscard]] __device__ __forceinline__ bool nothing() const { return by_exponents_ && nothing_; }
  [[nodiscard]] __device__ __forceinline__ float weight(float x) const {
    const float s = score(x);
    if (s < least_divisor && a_.scaling > 1.0F) [[unlikely]] {  // what is small may come out large
      return expf(exponent(x) - largest_ + logf(a_.scaling)) / divisor_;
    }
    return s / divisor_ * a_.scaling;
  }

 private:
  [[nodiscard]] __device__ __forceinline__ static float exponent(float x) {
    if constexpr (Score::is_exponential) {
      return x;
    } else {
      return log_score<Score>(x);
    }
  }
  [[nodiscard]] __device__ __forceinline__ float score(float x) const {
    return by_exponents_ ? expf(exponent(x) - largest_) : score_of<Score>(x);
  }

  bool by_exponents_ = Score::is_exponential;
  bool nothing_ = false;
  float largest_ = 0.0F;
  float divisor_ = 1.0F;
  const gate_args& a_;
};

MPIROUTER_CUDA_DETAIL_END
