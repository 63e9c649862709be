// One token: the weights of its experts, and their backward. What gating.hpp and gating_vjp.hpp share.
//
// A weight is c p_k with p_k = s_k / Σ s, a share of the scores, and x̄_k = c p_k (ḡ_k − Σ_j ḡ_j p_j)(log
// s_k)′. Both need the same shares, and where scores leave the normal range these come from logarithms:
// nothing is divided by what may vanish.
#pragma once

#include <mpi_router/router/selection.hpp>

MPIROUTER_BEGIN
namespace detail {

/// Elements of scratch for one token: a copy of its logits, and what selection or weighing needs.
[[nodiscard]] constexpr index_t token_scratch(index_t num_experts) noexcept { return 6 * num_experts; }

/// What the score of a selected expert is divided by: the sum over the selected ones, or over all, or
/// nothing.
enum class share_of : unsigned char { selected, all, one };

template <class Score>
[[nodiscard]] constexpr share_of divisor_of(const gating_options& options) noexcept {
  if (options.renormalize || (Score::is_exponential && options.order == selection_order::select_then_score)) {
    return share_of::selected;
  }
  return Score::is_exponential ? share_of::all : share_of::one;
}

/// factor · e^exponent for an exponent ≤ 0, also where the power by itself is below the smallest number.
[[nodiscard]] inline double times_exp(double factor, double exponent) noexcept {
  const double half = std::exp(exponent / 2);
  return factor * half * half;
}

/// The shares p_k of the K selected experts of a token.
template <class Score, Accumulator S>
class token_shares {
 public:
  /// x: all N logits; selected: those of the K, −∞ for a closed expert; scratch: 2N elements.
  token_shares(const gating_options& options, const S* x, index_t n, const S* selected, S* scratch)
      : divisor_(divisor_of<Score>(options)), selected_(selected), values_(scratch), all_(scratch + n) {
    S* const values = scratch;
    const index_t k = options.top_k;
    if constexpr (Score::is_exponential) {
      largest_ = divisor_ == share_of::all ? largest_of(x, n) : largest_of(selected, k);
      if (!is_finite(largest_)) {  // nothing but −∞: shares of zero where better ones were not selected
        are_defined_ = largest_ < S{0} && options.order == selection_order::score_then_select;
        return;
      }
    }
    score_values<Score>(selected, k, largest_, values);
    const S sum = sum_terms<S>(k, [values](index_t i) { return values[i]; });
    are_defined_ = is_finite(sum);
    if (divisor_ == share_of::all) {
      S* const all = scratch + n;
      score_values<Score>(x, n, largest_, all);
      sum_of_all_ = sum_terms<S>(n, [all](index_t i) { return all[i]; });
    }
    const S divisor = divisor_ == share_of::selected ? sum : sum_of_all_;
    are_direct_ = *std::min_element(values, values + k) >= least_divisor<S> * std::max(divisor, S{1});
    if (are_direct_) {
      for (index_t i = 0; i < k; ++i) {
        values[i] /= divisor;
      }
    } else {
      scaled_divisor_ = divisor_ == share_of::selected ? sum_of_scores<Score>(selected, k)
                        : divisor_ == share_of::all    ? scaled_sum{largest_, sum_of_all_}
                                                       : scaled_sum{};
    }
  }

  /// False where a score is infinite, or where there is none.
  [[nodiscard]] bool are_defined() const noexcept { return are_defined_; }
  [[nodiscard]] share_of divisor() const noexcept { return divisor_; }

  /// factor · p_k, also where p_k by itself is below the smallest number.
  [[nodiscard]] double times(double factor, index_t k) const noexcept {
    if (are_direct_) {
      return factor * values_[k];
    }
    const double log_score = detail::log_score<Score>(selected_[k]);
    return is_finite(log_score) && is_finite(scaled_divisor_.largest)
               ? times_exp(factor / scaled_divisor_.sum, log_score - scaled_divisor_.largest)
               : 0.0;
  }

  /// out_i −= factor · p_i with p the shares of all N experts.
  void subtract_all(double factor, const S* x, index_t n, const vector_view<S>& out) const {
    const double scale = factor / sum_of_all_;  // may be out of the range of S where its products are not
    const double largest = largest_;
    const S least = std::abs(factor) > 1 ? least_divisor<S> : S{0};  // what is small may come out large
    for (index_t i = 0; i < n; ++i) {
      out[i] -= static_cast<S>(all_[i] < least ? times_exp(scale, x[i] - largest) : all_[i] * scale);
    }
  }

 private:
  share_of divisor_;
  const S* selected_;
  const S* values_;
  S largest_{0};
  const S* all_;     ///< scores of all in units of that of the largest, where they are divided by
  S sum_of_all_{1};  ///< 1 where nothing is divided by
  scaled_sum scaled_divisor_{-infinite<double>, 1};  ///< where shares are not direct
  bool are_defined_ = false;
  bool are_direct_ = false;
};

/// Whether a selection bias closes an expert: −∞ does, and so does NaN, by which none can be preferred.
template <Accumulator S>
[[nodiscard]] bool closes(S bias) noexcept {
  return is_nan(bias) || (bias < S{0} && !is_finite(bias));
}

/// The logits of the selected experts, −∞ for those that the bias closes. Returns how many are open.
template <Accumulator S>
index_t gather_open(const S* x, index_t top_k, const vector_view<const S>& bias, const expert_id* ids,
                    S* selected) noexcept {
  index_t open = 0;
  for (index_t k = 0; k < top_k; ++k) {
    const bool is_open = bias.size() == 0 || !closes(bias[ids[k]]);
    selected[k] = is_open ? x[ids[k]] : -infinite<S>;
    open += is_open ? 1 : 0;
  }
  return open;
}

/// use(shares) for a token that has weights; what became of it. A closed expert has the share zero. x: N
/// logits; ids: K experts; scratch: 3N elements.
template <class Score, Accumulator S, class Use>
status with_shares(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                   const expert_id* ids, S* scratch, const Use& use) {
  const bool over_all = Score::is_exponential && options.order == selection_order::score_then_select;
  if (has_nan(vector_view<const S>(x, n)) || (over_all && !is_finite(largest_of(x, n)))) {
    return status::non_finite;
  }
  const index_t open = gather_open(x, options.top_k, bias, ids, scratch);
  if (open == 0) {
    return status::closed_expert;
  }
  const token_shares<Score, S> shares(options, x, n, scratch, scratch + n);
  bool is_defined = shares.are_defined();
  for (index_t k = 0; is_defined && k < options.top_k; ++k) {
    is_defined = is_finite(static_cast<S>(shares.times(options.scaling_factor, k)));
  }
  if (!is_defined) {
    return status::non_finite;
  }
  use(shares);
  return open == options.top_k ? status::ok : status::closed_expert;
}

/// The weights of given experts; zeros where there are none.
template <class Score, Accumulator S>
status weigh_token(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                   const expert_id* ids, S* scratch, const vector_view<S>& weights) {
  for (index_t k = 0; k < options.top_k; ++k) {
    weights[k] = S{0};
  }
  return with_shares<Score>(options, x, n, bias, ids, scratch, [&](const token_shares<Score, S>& shares) {
    for (index_t k = 0; k < options.top_k; ++k) {
      weights[k] = static_cast<S>(shares.times(options.scaling_factor, k));
    }
  });
}

/// Experts and weights of one token. `scratch` has token_scratch(N) elements.
template <class Score, Accumulator S>
status gate_token(const gating_options& options, const vector_view<const S>& logits,
                  const vector_view<const S>& bias, S* scratch, expert_id* ids,
                  const vector_view<S>& weights) {
  const index_t n = logits.size();
  const S* const x = contiguous(logits, scratch);
  select_experts<Score>(options, x, n, bias, scratch + n, ids);
  const status state = weigh_token<Score>(options, x, n, bias, ids, scratch + n, weights);
  for (index_t k = 0; state == status::non_finite && k < options.top_k; ++k) {
    ids[k] = static_cast<expert_id>(k);
  }
  return state;
}

/// grad_logits += the gradient of the weights' inner product with grad; the choice of experts is constant.
template <class Score, Accumulator S>
void gate_token_vjp(const gating_options& options, const vector_view<const S>& logits,
                    const vector_view<const S>& bias, const expert_id* ids, const vector_view<const S>& grad,
                    S* scratch, const vector_view<S>& grad_logits) {
  const index_t n = logits.size();
  const index_t top_k = options.top_k;
  const S* const x = contiguous(logits, scratch);
  (void)with_shares<Score>(options, x, n, bias, ids, scratch + n, [&](const token_shares<Score, S>& shares) {
    const auto sum = [&](double factor) {  // factor · Σ ḡ_k p_k
      double total = 0;
      for (index_t k = 0; k < top_k; ++k) {
        total += shares.times(factor * grad[k], k);
      }
      return total;
    };
    const double mean = shares.divisor() == share_of::one ? 0.0 : sum(1);
    if (shares.divisor() == share_of::all) {
      S* const kept = scratch + 4 * n;  // open experts get p (ḡ − mean) in one: the terms may overflow
      for (index_t k = 0; k < top_k; ++k) {
        kept[k] = grad_logits[ids[k]];
      }
      shares.subtract_all(sum(options.scaling_factor), x, n, grad_logits);
      for (index_t k = 0; k < top_k; ++k) {
        if (bias.size() == 0 || !closes(bias[ids[k]])) {
          grad_logits[ids[k]] = kept[k];
        }
      }
    }
    for (index_t k = 0; k < top_k; ++k) {
      const double upstream = (grad[k] - mean) * options.scaling_factor;
      const double slope = Score::template log_derivative<host_math>(x[ids[k]]);
      grad_logits[ids[k]] += static_cast<S>(shares.times(upstream * slope, k));
    }
  });
}

}  // namespace detail
MPIROUTER_END
