// Scores of many logits on the host, their sums, and the probabilities that they make.
#pragma once

#include <mpi_router/core/scores.hpp>
#include <mpi_router/router/elementary.hpp>

#include <array>
#include <cmath>

MPIROUTER_BEGIN
namespace detail {

/// Scores are computed in whole packs by functions that are never inlined: equal logits have equal scores
/// wherever they lie in a row, whatever a compiler makes of loops and their remainders under -ffast-math.
inline constexpr index_t score_pack_size = 16;

/// The elementary functions that scores are made of: see core/scores.hpp.
struct host_math {
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S exp(S x) noexcept {
    return exp_of_nonpositive(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S log1p(S e) noexcept {
    return log1p_of_unit(e);
  }
  template <Accumulator S>
  [[nodiscard]] static S log(S x) noexcept {
    return std::log(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S abs(S x) noexcept {
    return std::abs(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S by_sign(S x, S negative, S otherwise) noexcept {
    return detail::by_sign(x, negative, otherwise);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr float deep(float) noexcept { return 17; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr double deep(double) noexcept { return 37; }
};

template <class Score>
[[nodiscard]] double log_score(double x) noexcept {
  return Score::template log_value<host_math>(x);
}

/// The scores of a pack of logits; where they are relative, in units of the score of `largest`.
template <class Score, Accumulator S>
[[gnu::noinline]] void score_pack(const S* __restrict x, S largest, S* __restrict out) noexcept {
  std::array<S, score_pack_size> factor;
  for (index_t i = 0; i < score_pack_size; ++i) {
    factor[static_cast<std::size_t>(i)] =
        Score::template factor<host_math>(Score::is_exponential ? x[i] - largest : x[i]);
    if constexpr (Score::has_root) out[i] = Score::template radicand<host_math>(x[i]);
  }
  for (index_t i = 0; i < score_pack_size; ++i) {  // std::sqrt may set errno: no loop with it is vectorised
    const S root = Score::has_root ? std::sqrt(out[i]) : S{1};
    out[i] = factor[static_cast<std::size_t>(i)] * root;
  }
}

/// The scores of n logits, in units of that of the largest where they are relative. out is not x.
template <class Score, Accumulator S>
void score_values(const S* x, index_t n, S largest, S* out) noexcept {
  const index_t whole = n - n % score_pack_size;
  for (index_t i = 0; i < whole; i += score_pack_size) {
    score_pack<Score>(x + i, largest, out + i);
  }
  if (whole < n) {
    std::array<S, score_pack_size> in{}, pack;
    std::copy_n(x + whole, n - whole, in.begin());
    score_pack<Score>(in.data(), largest, pack.data());
    std::copy_n(pack.begin(), n - whole, out + whole);
  }
}

/// Below this a score, or a sum of scores, is too near to the smallest normal number to be divided by: what
/// is lost below that number would show.
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
  const double largest = log_score<Score>(largest_of(x, n));  // scores are monotone
  if (!is_finite(largest)) {
    return {largest, 1};
  }
  double sum = 0;
  for (index_t i = 0; i < n; ++i) {
    sum += std::exp(log_score<Score>(x[i]) - largest);
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
    p[i] = static_cast<S>(std::exp(log_score<Score>(x[i]) - scaled.largest) / scaled.sum);
  }
}

template <Accumulator S>
void check_gradient(const char* what, const matrix_view<const S>& logits, const matrix_view<S>& grad) {
  expect(grad.rows() == logits.rows() && grad.cols() == logits.cols(), what,
         ": the gradient to the logits is [", grad.rows(), ", ", grad.cols(), "], not [", logits.rows(), ", ",
         logits.cols(), "]");
}

/// The row itself, or a copy of it where its elements are not contiguous.
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
