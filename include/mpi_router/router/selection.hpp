// Which experts a token gets: the best K of N, ties to the lower index.
#pragma once

#include <mpi_router/core/gating_options.hpp>
#include <mpi_router/router/scores.hpp>

#include <limits>

MPIROUTER_BEGIN
namespace detail {

/// The best `capacity` of what is offered in ascending order of index, best first; ties stay in that order.
/// `keys` holds as many elements.
template <Accumulator S>
class best_list {
 public:
  best_list(expert_id* ids, S* keys, index_t capacity) : ids_(ids), keys_(keys), capacity_(capacity) {}

  MPIROUTER_ALWAYS_INLINE void offer(index_t id, S key) noexcept {
    if (held_ == capacity_ && !(key > worst_)) {
      return;
    }
    index_t at = held_ < capacity_ ? held_++ : capacity_ - 1;
    for (; at > 0 && key > keys_[at - 1]; --at) {
      ids_[at] = ids_[at - 1];
      keys_[at] = keys_[at - 1];
    }
    ids_[at] = static_cast<expert_id>(id);
    keys_[at] = key;
    worst_ = keys_[held_ - 1];
  }

 private:
  expert_id* ids_;
  S* keys_;
  index_t capacity_;
  index_t held_ = 0;
  S worst_{};
};

/// A group's key from the sum of its best experts: one with an open expert comes before all of which no
/// expert is open, though closed ones make its sum −∞ too.
template <Accumulator S>
[[nodiscard]] S group_key(S sum, S best) noexcept {
  const S key = as_key(sum);
  return is_minus_infinity(key) && !is_minus_infinity(best) ? std::numeric_limits<S>::lowest() : key;
}

/// The key of a group by the sum of its `count` largest keys, largest first.
template <Accumulator S>
[[nodiscard]] S score_of_group(const S* keys, index_t size, index_t count, S* best) noexcept {
  if (count <= 2) {  // the usual ones, without a branch
    S first = -infinite<S>;
    S second = first;
    for (index_t i = 0; i < size; ++i) {
      const S less = keys[i] > first ? first : keys[i];
      second = less > second ? less : second;
      first = keys[i] > first ? keys[i] : first;
    }
    return count == 1 ? first : group_key(first + second, first);
  }
  index_t held = 0;
  for (index_t i = 0; i < size; ++i) {
    index_t at = held < count ? held++ : count;
    for (; at > 0 && keys[i] > best[at - 1]; --at) {
      if (at < count) best[at] = best[at - 1];
    }
    if (at < count) best[at] = keys[i];
  }
  S sum{0};
  for (index_t i = 0; i < held; ++i) {
    sum += best[i];
  }
  return group_key(sum, best[0]);
}

/// Writes the K best experts to ids, best first, ties to the lower index, from the best groups alone.
/// `scratch` has 3N elements.
template <Accumulator S>
void select(const gating_options& options, const S* keys, index_t n, S* scratch, expert_id* ids) noexcept {
  best_list<S> best(ids, scratch, options.top_k);
  if (options.n_group == options.topk_group) {
    for (index_t i = 0; i < n; ++i) {
      best.offer(i, keys[i]);
    }
    return;
  }
  const index_t groups = options.n_group;
  const index_t size = n / groups;
  S* const group_scores = scratch + n;
  S* const taken = group_scores + groups;
  for (index_t g = 0; g < groups; ++g) {
    group_scores[g] =
        score_of_group(keys + g * size, size, core::experts_in_group_score(options, size), taken + groups);
    taken[g] = S{0};
  }
  for (index_t round = 0; round < options.topk_group; ++round) {
    index_t chosen = -1;
    for (index_t g = 0; g < groups; ++g) {
      if (taken[g] == S{0} && (chosen < 0 || group_scores[g] > group_scores[chosen])) {
        chosen = g;
      }
    }
    taken[chosen] = S{1};
  }
  for (index_t g = 0; g < groups; ++g) {
    for (index_t i = g * size; taken[g] != S{0} && i < (g + 1) * size; ++i) {
      best.offer(i, keys[i]);
    }
  }
}

/// Whether the order of the logits is the order of the scores that experts are selected by: scores are
/// monotone, so it is where they are neither biased nor added up. The order is exact then: scores that are
/// rounded to the same number, as those of a saturated sigmoid, do not tie.
[[nodiscard]] inline bool selects_by_logits(const gating_options& options, index_t num_experts,
                                            bool is_biased) {
  const bool adds_scores = options.n_group != options.topk_group &&
                           core::experts_in_group_score(options, num_experts / options.n_group) > 1;
  return options.order == selection_order::select_then_score || (!is_biased && !adds_scores);
}

/// Selects K of the experts whose logits are x. `scratch` has 5N elements. No logit is NaN, or the token gets
/// no weights.
template <class Score, Accumulator S>
void select_experts(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                    S* scratch, expert_id* ids) {
  S* const keys = scratch + 3 * n;
  S* const scores = keys + n;
  const S* selected_by = x;
  if (!selects_by_logits(options, n, bias.size() != 0)) {
    score_values<Score>(x, n, Score::is_exponential ? largest_of(x, n) : S{0}, scores);
    if constexpr (Score::is_exponential) {
      const S scale = S{1} / sum_terms<S>(n, [scores](index_t i) { return scores[i]; });
      for (index_t i = 0; i < n; ++i) {
        scores[i] *= scale;
      }
    }
    selected_by = scores;
  }
  if (bias.size() != 0) {
    for (index_t i = 0; i < n; ++i) {
      keys[i] = as_key(selected_by[i] + bias[i]);
    }
    selected_by = keys;
  }
  select(options, selected_by, n, scratch, ids);
}

}  // namespace detail
MPIROUTER_END
