// What a score function is. A new one is a struct here and a line in with_score.
//
//   is_bounded      whether the score of +∞ is finite
//   values          turns a pack of logits into scores; where those have no bound, in units of the score of
//                   `largest`, so that only their ratios mean something (is_relative)
//   log_value       the logarithm of the score, right however far out the logit is
//   log_derivative  the derivative of the logarithm
//
// Weights are scores over a sum of scores, so with the last two neither they nor their gradients ever divide
// by what may vanish.
#pragma once

#include <mpi_router/core/gating_options.hpp>
#include <mpi_router/router/elementary.hpp>

#include <array>
#include <cmath>

MPIROUTER_BEGIN
namespace detail {

/// Scores are computed in whole packs by functions that are never inlined: equal logits have equal scores
/// wherever they lie in a row, whatever a compiler makes of loops and their remainders under -ffast-math.
inline constexpr index_t score_pack_size = 16;

template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sigmoid(S x) noexcept {
  const S e = exp_of_nonpositive(-std::abs(x));
  return by_sign(x, e, S{1}) / (S{1} + e);
}
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S softplus(S x) noexcept {
  return by_sign(x, S{0}, x) + log1p_of_unit(exp_of_nonpositive(-std::abs(x)));
}

/// eˣ: over their sum, the softmax.
struct exponential_score {
  static constexpr bool is_relative = true;
  static constexpr bool is_bounded = false;
  template <Accumulator S>
  [[gnu::noinline]] static void values(const S* __restrict x, S largest, S* __restrict out) noexcept {
    for (index_t i = 0; i < score_pack_size; ++i) {
      out[i] = exp_of_nonpositive(x[i] - largest);
    }
  }
  [[nodiscard]] static double log_value(double x) noexcept { return x; }
  template <Accumulator S>
  [[nodiscard]] static S log_derivative(S) noexcept {
    return S{1};
  }
};

/// 1 / (1 + e⁻ˣ).
struct sigmoid_score {
  static constexpr bool is_relative = false;
  static constexpr bool is_bounded = true;
  template <Accumulator S>
  [[gnu::noinline]] static void values(const S* __restrict x, S, S* __restrict out) noexcept {
    for (index_t i = 0; i < score_pack_size; ++i) {
      out[i] = sigmoid(x[i]);
    }
  }
  [[nodiscard]] static double log_value(double x) noexcept { return -softplus(-x); }
  template <Accumulator S>
  [[nodiscard]] static S log_derivative(S x) noexcept {
    return sigmoid(-x);
  }
};

/// √log(1 + eˣ).
struct sqrtsoftplus_score {
  static constexpr bool is_relative = false;
  static constexpr bool is_bounded = false;
  template <Accumulator S>
  [[gnu::noinline]] static void values(const S* __restrict x, S, S* __restrict out) noexcept {
    // √log(1 + e) = √e · √(log(1 + e) / e) for x < 0, where e may be below the least number and √e is not.
    std::array<S, score_pack_size> factor;
    for (index_t i = 0; i < score_pack_size; ++i) {
      const S root = exp_of_nonpositive(-std::abs(x[i]) / S{2});
      const S e = std::max(root * root, static_cast<S>(1e-30));
      const S log = log1p_of_unit(e);
      factor[static_cast<std::size_t>(i)] = by_sign(x[i], root, S{1});
      out[i] = by_sign(x[i], log / e, x[i] + log);
    }
    for (index_t i = 0; i < score_pack_size; ++i) {  // std::sqrt may set errno: no loop with it is vectorised
      out[i] = factor[static_cast<std::size_t>(i)] * std::sqrt(out[i]);
    }
  }
  [[nodiscard]] static double log_value(double x) noexcept {
    const double e = exp_of_nonpositive(-std::abs(x));
    if (!(x < -1)) {
      return std::log(softplus(x)) / 2;
    }
    return (e > 1e-30 ? x + std::log(log1p_of_unit(e) / e) : x) / 2;
  }
  /// ½ sigmoid(x) / softplus(x), which tends to ½ where both vanish.
  template <Accumulator S>
  [[nodiscard]] static S log_derivative(S x) noexcept {
    const S e = std::max(exp_of_nonpositive(-std::abs(x)), static_cast<S>(1e-30));
    return by_sign(x, e, S{1}) / ((S{1} + e) * (by_sign(x, S{0}, x) + log1p_of_unit(e))) / S{2};
  }
};

/// body(score) for the score function of that name.
template <class Body>
decltype(auto) with_score(score_function f, Body body) {
  switch (f) {
    case score_function::softmax: return body(exponential_score{});
    case score_function::sigmoid: return body(sigmoid_score{});
    case score_function::sqrtsoftplus: return body(sqrtsoftplus_score{});
  }
  core::usage_failure("a score function that does not exist");
}

/// The scores of n logits, in units of that of the largest where they are relative. out is not x.
template <class Score, Accumulator S>
void score_values(const S* x, index_t n, S largest, S* out) noexcept {
  const index_t whole = n - n % score_pack_size;
  for (index_t i = 0; i < whole; i += score_pack_size) {
    Score::values(x + i, largest, out + i);
  }
  if (whole < n) {
    std::array<S, score_pack_size> in{}, pack;
    std::copy_n(x + whole, n - whole, in.begin());
    Score::values(in.data(), largest, pack.data());
    std::copy_n(pack.begin(), n - whole, out + whole);
  }
}

/// Below this a score, or a sum of scores, is too near to the least normal number to be divided by: what is
/// lost below that number would show.
template <Accumulator S>
inline constexpr S least_divisor = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();

/// Whether a token has probabilities: none of its logits is NaN, and its scores have a finite sum above zero.
/// The largest logit.
template <class Score, Accumulator S>
[[nodiscard]] bool has_probabilities(const S* x, index_t n, S& largest) noexcept {
  largest = largest_of(x, n);
  return !has_nan(vector_view<const S>(x, n)) &&
         (is_finite(largest) || (Score::is_bounded && largest > S{0}));
}

/// A sum of scores that may be out of range: sum · e^largest, with the sum in [1, n].
struct scaled_sum {
  double largest = 0;  ///< of the logarithms; −∞ where all scores vanish
  double sum = 1;
};

/// Σ s(x_i) of n scores.
template <class Score, Accumulator S>
[[nodiscard]] scaled_sum sum_of_scores(const S* x, index_t n) noexcept {
  const double largest = Score::log_value(largest_of(x, n));  // scores are monotone
  if (!is_finite(largest)) {
    return {largest, 1};
  }
  double sum = 0;
  for (index_t i = 0; i < n; ++i) {
    sum += std::exp(Score::log_value(x[i]) - largest);
  }
  return {largest, sum};
}

/// p_i = s_i / Σ s over all experts, by logarithms where the sum leaves the normal range. The token has
/// probabilities; p is not x.
template <class Score, Accumulator S>
void probabilities(const S* x, index_t n, S largest, S* p) noexcept {
  score_values<Score>(x, n, largest, p);
  const S sum = sum_terms<S>(n, [p](index_t i) { return p[i]; });
  if (sum >= least_divisor<S>) {
    const S scale = S{1} / sum;
    for (index_t i = 0; i < n; ++i) {
      p[i] *= scale;
    }
    return;
  }
  const scaled_sum scaled = sum_of_scores<Score>(x, n);
  for (index_t i = 0; i < n; ++i) {
    p[i] = static_cast<S>(std::exp(Score::log_value(x[i]) - scaled.largest) / scaled.sum);
  }
}

/// The row itself, or a copy of it where its elements do not lie side by side.
template <Accumulator S>
[[nodiscard]] const S* contiguous(const vector_view<const S>& row, S* copy) noexcept {
  if (row.is_contiguous()) {
    return row.data();
  }
  for (index_t i = 0; i < row.size(); ++i) {
    copy[i] = row[i];
  }
  return copy;
}

}  // namespace detail
MPIROUTER_END
