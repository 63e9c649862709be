// What a gate is asked to do: which scores, which experts, which weights. Plain data, shared by host and GPU.
//
// Every family of models is one setting; K, groups and factors (else 1) are those of released models. Biases,
// of the selection (last column) or of the logits (gpt-oss), are arguments of the calls.
//
//   model family          score_function  order              renormalize  scaling  groups            bias
//   Switch, K = 1         softmax         score_then_select  false
//   OLMoE, Qwen1.5/2-MoE  softmax         score_then_select  false
//   Mixtral, Qwen3, MPI   softmax         score_then_select  true
//   gpt-oss               softmax         select_then_score  –
//   DeepSeek-V2, K = 6    softmax         score_then_select  false        16       3 of 8, max
//   DeepSeek-V3           sigmoid         score_then_select  true         2.5      4 of 8, top2_sum  yes
//   Kimi-K2               sigmoid         score_then_select  true         2.827                      yes
//   DeepSeek-V4           sqrtsoftplus    score_then_select  true         1.5                        yes
//   Llama-4, K = 1        sigmoid         select_then_score  false
//
// Megatron-Core (moe_router_…): topk; score_function; pre_softmax is score_then_select; renormalize is fixed,
// sigmoid yes, pre_softmax no; topk_scaling_factor; num_groups, group_topk, by top_k_share_sum. FlashInfer:
// RoutingMethodType for function, order and renormalize; routed_scaling_factor; groups by top2_sum.
#pragma once

#include <mpi_router/core/scores.hpp>

#include <cstdint>
#include <string_view>

MPIROUTER_BEGIN_TYPES

/// Whether experts are selected by their scores or by their logits. The two orders select alike except for
/// rounding and for the expert bias, which is added to what is selected by; the softmax differs in its
/// denominator.
enum class selection_order : unsigned char {
  score_then_select,  ///< scores over all experts, then the best K
  select_then_score   ///< the best K logits, then scores over those
};

/// What a group of experts is worth when groups are selected first.
enum class group_score : unsigned char {
  top2_sum,         ///< the sum of its two best experts
  top_k_share_sum,  ///< the sum of its best K / topk_group experts, rounded down, at least one
  max               ///< its best expert
};

/// The name of an expert in index arrays: 0 … N − 1.
using expert_id = std::int32_t;

/// One setting of a gate; see the table above. Biases are data, arguments of the calls.
struct gating_options {
  index_t top_k = 2;  ///< K: experts per token, 1 … N
  mpi_router::score_function score_function = mpi_router::score_function::softmax;
  selection_order order = selection_order::score_then_select;
  /// Divide the weights of a token by their sum; where scores underflow, by their logarithms, so that equal
  /// logits give 1/K at any depth. Nothing but −∞ leaves zeros. Softmax over the selected experts sums to one
  /// already. With one expert the weight would be 1 and without a gradient: by default it is left alone. The
  /// default is taken where the options are made, {.top_k = 1}: top_k set to 1 afterwards leaves it as it
  /// was.
  bool renormalize = top_k > 1;
  double scaling_factor = 1;  ///< multiplies the weights last; above 0, at most 1e30
  index_t n_group = 1;        ///< groups of N / n_group consecutive experts; must divide N
  index_t topk_group = 1;     ///< groups that a token may choose from, 1 … n_group
  mpi_router::group_score group_score = mpi_router::group_score::top2_sum;

  friend constexpr bool operator==(const gating_options&, const gating_options&) = default;
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(selection_order o) noexcept {
  switch (o) {
    case selection_order::score_then_select: return "score_then_select";
    case selection_order::select_then_score: return "select_then_score";
  }
  return "unknown";
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(group_score s) noexcept {
  switch (s) {
    case group_score::top2_sum: return "top2_sum";
    case group_score::top_k_share_sum: return "top_k_share_sum";
    case group_score::max: return "max";
  }
  return "unknown";
}

namespace core {

/// How many of a group's best experts count towards its score.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t experts_in_group_score(const gating_options& options,
                                                                               index_t group_size) {
  const auto within = [group_size](index_t wanted) {
    return wanted < 1 ? 1 : wanted > group_size ? group_size : wanted;
  };
  switch (options.group_score) {
    case group_score::top2_sum: return within(2);
    case group_score::top_k_share_sum: return within(options.top_k / options.topk_group);
    case group_score::max: return 1;
  }
  usage_failure("a group score that does not exist");
}

/// Throws usage_error where the options do not fit N experts.
MPIROUTER_ALWAYS_INLINE constexpr void check_gating(const char* what, const gating_options& o,
                                                    index_t num_experts) {
  expect(o.top_k >= 1 && o.top_k <= num_experts, what, ": top_k is ", o.top_k, " for ", num_experts,
         " experts");
  expect(o.n_group >= 1 && num_experts % o.n_group == 0, what, ": ", num_experts,
         " experts do not fall into n_group = ", o.n_group, " groups");
  expect(o.topk_group >= 1 && o.topk_group <= o.n_group, what, ": topk_group is ", o.topk_group,
         " of n_group = ", o.n_group);
  expect(o.top_k <= o.topk_group * (num_experts / o.n_group), what, ": top_k = ", o.top_k,
         " experts cannot come from ", o.topk_group, " groups of ", num_experts / o.n_group);
  expect(o.scaling_factor > 0 && o.scaling_factor <= 1e30, what, ": scaling_factor is ", o.scaling_factor,
         ", not above 0 and at most 1e30");
  expect(exists(o.score_function) && o.order <= selection_order::select_then_score &&
             o.group_score <= group_score::max,
         what, ": a score function, an order or a group score that does not exist");
}

}  // namespace core

MPIROUTER_END_TYPES
