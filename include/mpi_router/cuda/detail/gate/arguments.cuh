// What a gate is asked on the device, and what became of a token.
#pragma once

#include <mpi_router/core/gating_options.hpp>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

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

[[nodiscard]] __device__ __forceinline__ status state_of_token(bool counts, bool defined, int closed) {
  return !counts      ? status::masked
         : !defined   ? status::non_finite
         : closed > 0 ? status::closed_expert
                      : status::ok;
}

MPIROUTER_CUDA_DETAIL_END
