// One token: scores, the choice of experts, their weights. What gating.hpp and its backward share.
#pragma once

#include <mpi_router/manifold/scaled.hpp>
#include <mpi_router/router/elementary.hpp>
#include <mpi_router/router/gating_options.hpp>

#include <algorithm>
#include <cmath>

MPIROUTER_BEGIN
namespace detail {

/// Elements of scratch for one token: keys, scores, and what the groups need.
[[nodiscard]] constexpr index_t token_scratch(index_t num_experts) noexcept { return 6 * num_experts; }

/// By the bits, so that it holds under -ffast-math.
template <Accumulator S>
[[nodiscard]] bool has_nan(const vector_view<const S>& x) noexcept {
  return largest_magnitude_bits(x) > std::bit_cast<decltype(largest_magnitude_bits(x))>(infinite<S>);
}
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_nan(S x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude_mask = static_cast<bits>(~bits{0}) >> 1;
  return (std::bit_cast<bits>(x) & magnitude_mask) > std::bit_cast<bits>(infinite<S>);
}

/// NaN, as an infinite bias can make of a score, counts as −∞: every key has its place in the order.
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S as_key(S x) noexcept {
  return is_nan(x) ? -infinite<S> : x;
}

template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sigmoid(S x) noexcept {
  const S e = exp_of_nonpositive(-std::abs(x));
  return by_sign(x, e, S{1}) / (S{1} + e);
}
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S softplus(S x) noexcept {
  return by_sign(x, S{0}, x) + log1p_of_unit(exp_of_nonpositive(-std::abs(x)));
}

/// The score of one logit by itself.
template <Accumulator S>
[[nodiscard]] S score_of(score_function f, S x) noexcept {
  return f == score_function::sigmoid ? sigmoid(x) : std::sqrt(softplus(x));
}
/// Its derivative, given the score.
template <Accumulator S>
[[nodiscard]] S score_derivative(score_function f, S x, S score) noexcept {
  if (f == score_function::sigmoid) {
    return score * sigmoid(-x);
  }
  // d√s/dx = s′ / (2√s) = √s/2 · s′/s; s′/s tends to 1 where both vanish.
  const S s = score * score;
  return s > S{0} ? score / S{2} * (sigmoid(x) / s) : S{0};
}

/// out = softmax of x in place. False where it is not defined: the largest element is not finite.
template <Accumulator S>
[[nodiscard]] bool softmax(const vector_view<S>& x) noexcept {
  S* const data = x.data();
  const index_t n = x.size();
  const S largest = largest_of(data, n);
  if (!is_finite(largest)) {
    return false;
  }
  for (index_t i = 0; i < n; ++i) {
    data[i] = exp_of_nonpositive(data[i] - largest);
  }
  const S scale = S{1} / sum_terms<S>(n, [data](index_t i) { return data[i]; });
  for (index_t i = 0; i < n; ++i) {
    data[i] *= scale;
  }
  return true;
}

/// Scores of all experts, in place of the logits. False where they are not defined.
template <Accumulator S>
[[nodiscard]] bool all_scores(score_function f, const vector_view<S>& x) noexcept {
  if (f == score_function::softmax) {
    return softmax(x);
  }
  S* const data = x.data();
  const index_t n = x.size();
  if (f == score_function::sigmoid) {
    for (index_t i = 0; i < n; ++i) {
      data[i] = sigmoid(data[i]);
    }
  } else {
    for (index_t i = 0; i < n; ++i) {
      data[i] = softplus(data[i]);
    }
    for (index_t i = 0; i < n;
         ++i) {  // on its own: std::sqrt may set errno, which keeps a loop from being vectorised
      data[i] = std::sqrt(data[i]);
    }
  }
  return true;
}

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

/// The sum of the `count` largest keys of a group, largest first.
template <Accumulator S>
[[nodiscard]] S group_worth(const S* keys, index_t size, index_t count, S* best) noexcept {
  if (count <= 2) {  // the usual ones, without a branch
    S first = -infinite<S>;
    S second = first;
    for (index_t i = 0; i < size; ++i) {
      const S less = keys[i] > first ? first : keys[i];
      second = less > second ? less : second;
      first = keys[i] > first ? keys[i] : first;
    }
    return count == 1 ? first : as_key(first + second);
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
  return as_key(sum);
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
  S* const worth = scratch + n;
  S* const taken = worth + groups;
  for (index_t g = 0; g < groups; ++g) {
    worth[g] =
        group_worth(keys + g * size, size, core::experts_in_group_score(options, size), taken + groups);
    taken[g] = S{0};
  }
  for (index_t round = 0; round < options.topk_group; ++round) {
    index_t chosen = -1;
    for (index_t g = 0; g < groups; ++g) {
      if (taken[g] == S{0} && (chosen < 0 || worth[g] > worth[chosen])) {
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

/// Scores of the selected experts from the logits (select_then_score), in `out`. False where they are not
/// defined.
template <Accumulator S>
[[nodiscard]] bool selected_scores(const gating_options& options, const vector_view<const S>& logits,
                                   const expert_id* ids, const vector_view<S>& out) noexcept {
  for (index_t k = 0; k < options.top_k; ++k) {
    out[k] = logits[ids[k]];
  }
  return all_scores(options.score_function, out);
}

/// What the weights are divided by: the sum of the selected scores where they are renormalised, otherwise 1.
/// A sum of zero divides nothing.
template <Accumulator S, class Score>
[[nodiscard]] S weight_divisor(const gating_options& options, Score score) noexcept {
  if (!options.renormalize) {
    return S{1};
  }
  S sum{0};
  for (index_t k = 0; k < options.top_k; ++k) {
    sum += score(k);
  }
  return sum > S{0} ? sum : S{1};
}

/// One token: experts and weights from its logits. A token that has a NaN logit, or no finite weights, gets
/// the experts 0 … K − 1 with weight zero. `scratch` has token_scratch(N) elements.
template <Accumulator S>
status gate_token(const vector_view<const S>& logits, const gating_options& options,
                  const vector_view<const S>& bias, S* scratch, expert_id* ids,
                  const vector_view<S>& weights) {
  const index_t n = logits.size();
  const index_t top_k = options.top_k;
  const vector_view<S> keys(scratch, n);
  const vector_view<S> scores(scratch + n, n);
  const auto undefined = [&] {
    for (index_t k = 0; k < top_k; ++k) {
      ids[k] = static_cast<expert_id>(k);
      weights[k] = S{0};
    }
    return status::non_finite;
  };

  const bool score_first = options.order == selection_order::score_then_select;
  for (index_t i = 0; i < n; ++i) {
    scores.data()[i] = logits[i];
  }
  if (has_nan(vector_view<const S>(scores)) || (score_first && !all_scores(options.score_function, scores))) {
    return undefined();
  }
  const S* selected_by = scores.data();
  if (bias.size() != 0) {
    for (index_t i = 0; i < n; ++i) {
      keys.data()[i] = as_key(scores.data()[i] + bias[i]);
    }
    selected_by = keys.data();
  }
  select(options, selected_by, n, scratch + 2 * n, ids);

  const vector_view<S> chosen(keys.data(), top_k);  // the keys have served
  if (score_first) {
    for (index_t k = 0; k < top_k; ++k) {
      chosen[k] = scores[ids[k]];
    }
  } else if (!selected_scores(options, logits, ids, chosen)) {
    return undefined();
  }
  const S scale = static_cast<S>(options.scaling_factor);
  const S divisor = weight_divisor<S>(options, [&](index_t k) { return chosen[k]; });
  for (index_t k = 0; k < top_k; ++k) {
    weights[k] = chosen[k] / divisor * scale;
    if (!is_finite(weights[k])) {
      return undefined();
    }
  }
  return status::ok;
}

}  // namespace detail
MPIROUTER_END
