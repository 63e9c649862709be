// A random probe for the second eigenvalue: Lanczos beside a found direction, with its failure probability.
#pragma once

#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/lanczos.hpp>
#include <mpi_router/verify/neighbours.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <optional>
#include <random>

MPIROUTER_BEGIN_TYPES

/// How sure a probe has to be, and what it may cost.
struct probe_options {
  double failure_probability = 1e-6;  ///< wanted, over all starts together
  index_t starts = 2;       ///< independent random starts at least; all must miss for the bound to fail
  index_t max_steps = 300;  ///< of Lanczos, for each start
  std::uint64_t seed = 20260612;
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// What a probe found. Eigen aligns its memory as the instruction set asks, so this is not for exchange.
struct probe_result {
  second_eigenvalue_bound bound;
  double ritz_value = 0;   ///< the largest Ritz value of the deflated operator, plus rounding error
  Eigen::VectorXd vector;  ///< its Ritz vector where ritz_value ≥ ρ: a better direction than v̂
  index_t applications = 0;
};

namespace detail {

template <Accumulator S>
[[nodiscard]] Eigen::Matrix<S, Eigen::Dynamic, 1> gaussian(index_t size, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  Eigen::Matrix<S, Eigen::Dynamic, 1> x(size);
  for (auto& value : x) {
    value = static_cast<S>(normal(random));
  }
  return x;
}

/// As many starts that one may miss a component of more than the rounding error of S, √D ε: what is smaller
/// a Krylov space in S may lose, so that a start alone in float could not be as sure as one in double.
template <Accumulator S>
[[nodiscard]] index_t starts_that_see(const probe_options& options, index_t dimension) {
  const auto size = static_cast<double>(dimension);
  const double lost =
      std::sqrt(2 / std::numbers::pi) * size * static_cast<double>(std::numeric_limits<S>::epsilon());
  index_t starts = options.starts;
  while (starts < 64 && std::pow(options.failure_probability, 1.0 / static_cast<double>(starts)) < lost) {
    ++starts;
  }
  return starts;
}

/// What is added to a bound for the rounding of a probe in S.
template <Accumulator S>
[[nodiscard]] double rounding_of_probe(index_t dimension, double rayleigh) {
  return 4 * static_cast<double>(dimension) * static_cast<double>(std::numeric_limits<S>::epsilon()) *
         rayleigh;
}

/// Whether a probe in S can end with a bound below ρ, where the largest eigenvalue that it will meet is
/// `next` at least: it begins `rounding` above that, ends two thirds of the way to what is of use, and has
/// `rounding` added again.
template <Accumulator S>
[[nodiscard]] bool can_prove(index_t dimension, double rayleigh, const neighbours& beside, double next) {
  return beside.rest(rayleigh) - next > 4 * rounding_of_probe<S>(dimension, rayleigh);
}

/// What the starts of one probe share, and what they have found.
struct probed {
  double rayleigh;  // ρ of v̂
  double needed;    // log of what p(α)/(β₁⋯β_k) must reach
  double rounding;  // deflation leaves an error of the size of ρ, not of what is left
  const neighbours& beside;
  double proven = rounding;   // over all starts; only rounding error where nothing is left beside v̂
  double guessed = rounding;  // ξ plus its residual

  /// A bound on the largest eigenvalue of the rest for a Krylov space whose largest Ritz value is ξ: no more
  /// than two thirds of the way from ξ to what is of use, or from the top of the neighbours to ρ in all; at
  /// the last step, of any use. Nothing where the space is too small for that.
  template <class Krylov>
  [[nodiscard]] std::optional<double> bound(const Krylov& krylov, double xi, bool last) const {
    const auto exceeds = [&](double alpha) { return krylov.log_level(alpha) >= needed; };
    const double useless = beside.rest(rayleigh);
    double above = xi + (useless - xi) * (last ? 0.99 : 2.0 / 3);
    if (beside.exist() && !last) {
      above = std::max(above, beside.rest(beside.top + (rayleigh - beside.top) * 2 / 3));
    }
    if (xi < useless && !exceeds(above) && !last) {
      return std::nullopt;
    }
    if (xi >= useless || !exceeds(above)) {
      return std::numeric_limits<double>::infinity();
    }
    double below = xi;
    for (int halving = 0; halving < 8; ++halving) {
      const double middle = (below + above) / 2;
      (exceeds(middle) ? above : below) = middle;
    }
    return above + rounding;
  }

  /// What a step of a start has brought. `more`: whether it can take another.
  enum class progress { goes_on, has_bound, cannot_have_one };
  template <class Krylov>
  [[nodiscard]] progress look(const Krylov& krylov, bool more, probe_result& result) {
    ++result.applications;
    const bool last = !more || krylov.steps() == krylov.capacity();
    const auto ritz = krylov.top();
    const double xi = ritz.value + rounding;
    if (!is_finite(xi)) {
      return progress::cannot_have_one;
    }
    if (xi >= rayleigh && xi > result.ritz_value) {
      result.vector = krylov.vector(ritz);
    }
    result.ritz_value = std::max(result.ritz_value, xi);
    if (const auto alpha = bound(krylov, xi, last)) {
      proven = std::max(proven, *alpha);
      guessed = std::max(guessed, xi + ritz.residual);
      return progress::has_bound;
    }
    return progress::goes_on;
  }

  /// One start, with steps of Lanczos until there is a bound. False where there cannot be one.
  template <class Op, class Krylov>
  [[nodiscard]] bool go_on(Op& op, Krylov& krylov, probe_result& result) {
    progress at = progress::goes_on;
    while (at == progress::goes_on) {
      const bool more = krylov.step(op);
      at = look(krylov, more, result);
    }
    return at == progress::has_bound;
  }
  /// Two starts at a time, while both have none: two images in one read.
  template <class Op, class Krylov>
  [[nodiscard]] bool go_on(Op& op, Krylov& first, Krylov& second, probe_result& result) {
    Eigen::Matrix<scalar_of<Op>, Eigen::Dynamic, 2> images(static_cast<index_t>(op.dimension()), 2);
    for (;;) {
      const auto more = step_two(op, first, second, images);
      const auto at_first = look(first, more[0], result);
      const auto at_second = look(second, more[1], result);
      if (at_first == progress::cannot_have_one || at_second == progress::cannot_have_one) {
        return false;
      }
      if (at_first == progress::has_bound) {
        return at_second == progress::has_bound || go_on(op, second, result);
      }
      if (at_second == progress::has_bound) {
        return go_on(op, first, result);
      }
    }
  }
};

/// So many starts beside what is known, two at a time where the operator shares reads and the spaces lie in
/// memory. False where there cannot be a bound.
template <GramOperator Op>
[[nodiscard]] bool probe_from(Op& op, const Eigen::MatrixXd& known, index_t starts,
                              const probe_options& options, probed& found, probe_result& result) {
  using S = scalar_of<Op>;
  const auto dimension = static_cast<index_t>(op.dimension());
  std::mt19937_64 random(options.seed);
  const auto empty = [&] {
    auto krylov = krylov_space(op, std::min(options.max_steps, dimension), found.rayleigh, known.cols());
    krylov.deflate(known);
    return krylov;
  };
  const auto begin = [&](auto& krylov) { return krylov.start(gaussian<S>(dimension, random)); };
  auto krylov = empty();
  if constexpr (requires {
                  krylov.newest();
                  op.shares_reads();
                }) {
    const bool in_pairs = op.shares_reads();
    for (auto other = in_pairs && starts > 1 ? std::optional(empty()) : std::nullopt; other && starts > 1;
         starts -= 2) {
      if (!begin(krylov) || !begin(*other) || !found.go_on(op, krylov, *other, result)) {
        return false;
      }
    }
  }
  for (; starts > 0; --starts) {
    if (!begin(krylov) || !found.go_on(op, krylov, result)) {
      return false;
    }
  }
  return true;
}

}  // namespace detail

/// Bounds σ₂² from above by probing B = PMP, P = I − v̂v̂ᵀ, whose largest eigenvalue μ is at least σ₂² for
/// *any* unit v̂ (Cauchy). With T and p(t) = det(tI − T) of Lanczos from a random unit x, ‖p(B)x‖ = β₁⋯β_k, so
/// that the component x₁ of x along the top eigenvector has |p(μ)| |x₁| ≤ β₁⋯β_k. |x₁| < δ has probability at
/// most √(2D/π) δ, and p grows beyond the largest Ritz value ξ: every α > ξ with p(α) ≥ β₁⋯β_k √(2D/π)/τ
/// exceeds μ except with probability τ (rounding error of size D ε ρ is added). That takes about log(√D/τ) /
/// (2 √(1 − ξ/α)) steps (Kuczyński & Woźniakowski 1992); nothing is assumed of the spectrum.
///
/// A start ends when α is at most two thirds of the way from ξ to ρ, or ξ shows that v̂ is not principal. If
/// max_steps reach no α < ρ, α is ξ plus its Ritz residual, labelled heuristic. `beside` is taken out of B as
/// v̂ is: fewer steps.
///
/// direction: v̂, D elements; rayleigh: its ρ. The operator may compute in float: the bound holds for the unit
/// vector that v̂ rounds to. An application of M and O(D · steps) a step. Allocates O(D · max_steps).
template <GramOperator Op>
[[nodiscard]] probe_result probe_second_eigenvalue(Op&& op, vector_view<const double> direction,
                                                   double rayleigh, const probe_options& options = {},
                                                   const neighbours& beside = {}) {
  using S = scalar_of<Op>;
  const auto dimension = static_cast<index_t>(op.dimension());
  detail::expect(direction.size() == dimension, "probe: the operator has dimension ", dimension,
                 ", the direction ", direction.size(), " elements");
  detail::expect(options.starts >= 1 && options.max_steps >= 1, "probe: at least one start and one step");
  detail::expect(options.failure_probability > 0 && options.failure_probability < 1,
                 "probe: a failure probability of ", options.failure_probability, ", not between 0 and 1");
  probe_result result;
  const index_t starts = detail::starts_that_see<S>(options, dimension);
  const double each = std::pow(options.failure_probability, 1.0 / static_cast<double>(starts));
  const double needed = std::log(std::sqrt(2 * static_cast<double>(dimension) / std::numbers::pi) / each);
  const double rounding = detail::rounding_of_probe<S>(dimension, rayleigh);
  detail::probed found{rayleigh, needed, rounding, beside};
  Eigen::MatrixXd known(dimension, 1 + beside.directions.cols());
  known.col(0) = map(direction).normalized();
  if (beside.directions.cols() > 0) {
    known.rightCols(beside.directions.cols()) = beside.directions;
  }
  if (dimension > known.cols() && !detail::probe_from(op, known, starts, options, found, result)) {
    return result;  // no bound
  }
  const double proven = beside.bound(found.proven);
  result.bound = proven < rayleigh
                     ? second_eigenvalue_bound{proven, certainty::probabilistic, options.failure_probability}
                     : second_eigenvalue_bound{beside.bound(found.guessed), certainty::heuristic, 1};
  return result;
}

MPIROUTER_END
