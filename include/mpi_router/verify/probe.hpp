// A random probe for the second eigenvalue: Lanczos beside a found direction, with its failure probability.
#pragma once

#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/lanczos.hpp>

#include <cstdint>
#include <random>

MPIROUTER_BEGIN

/// How sure a probe has to be, and what it may cost.
struct probe_options {
  double failure_probability = 1e-6;  ///< wanted, over all starts together
  index_t starts = 2;                 ///< independent random starts; all must miss for the bound to fail
  index_t max_steps = 300;            ///< of Lanczos, for each start
  std::uint64_t seed = 20260612;
};

/// What a probe found.
struct probe_result {
  second_eigenvalue_bound bound;
  double ritz_value = 0;   ///< the largest eigenvalue of the deflated operator that was seen, rounding added
  Eigen::VectorXd vector;  ///< its Ritz vector where ritz_value ≥ ρ: a better direction than v̂
  index_t applications = 0;
};

namespace detail {

template <Accumulator S>
[[nodiscard]] typename lanczos<S>::column gaussian(index_t size, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  typename lanczos<S>::column x(size);
  for (auto& value : x) {
    value = static_cast<S>(normal(random));
  }
  return x;
}

}  // namespace detail

/// Bounds λ₂(M) from above by probing PMP, P = I − v̂v̂ᵀ, whose largest eigenvalue is at least λ₂ for *any*
/// unit v̂ (Cauchy). k Lanczos steps from a random start leave its largest Ritz value ξ below (1 − ε) of that
/// eigenvalue with probability at most 1.648 √D exp(−√ε (2k − 1)) (Kuczyński & Woźniakowski 1992,
/// Theorem 4.2, in exact arithmetic), so α = ξ/(1 − ε). Each start goes on until α is a third of the way from
/// ρ down to ξ, or ξ shows that v̂ is not principal. If the wanted probability is out of reach in max_steps, α
/// is ξ plus its Ritz residual and the label says heuristic.
///
/// direction: v̂, D elements; rayleigh: its ρ. The operator may compute in float: α needs few digits, and the
/// bound holds for whatever unit vector v̂ rounds to. One application of M a step, O(D · steps) memory
/// (allocated here).
template <GramOperator Op>
[[nodiscard]] probe_result probe_second_eigenvalue(Op&& op, vector_view<const double> direction,
                                                   double rayleigh, const probe_options& options = {}) {
  using S = scalar_of<Op>;
  const auto dimension = static_cast<index_t>(op.dimension());
  detail::expect(direction.size() == dimension, "probe: the operator has dimension ", dimension,
                 ", the direction ", direction.size(), " elements");
  detail::expect(options.starts >= 1 && options.max_steps >= 1, "probe: at least one start and one step");
  probe_result result;
  const double each = std::pow(options.failure_probability, 1.0 / static_cast<double>(options.starts));
  const double log_ratio = std::log(1.648 * std::sqrt(static_cast<double>(dimension)) / each);
  // Deflation leaves rounding of the size of ρ, not of what is left.
  const double rounding =
      4 * static_cast<double>(dimension) * static_cast<double>(std::numeric_limits<S>::epsilon()) * rayleigh;

  lanczos<S> krylov(dimension, std::min(options.max_steps, dimension), rayleigh);
  krylov.deflate(map(direction).template cast<S>().normalized());
  std::mt19937_64 random(options.seed);
  double alpha_proven = rounding;   // over all starts; nothing but rounding where nothing is left beside v̂
  double alpha_guessed = rounding;  // ξ plus its residual
  for (index_t start = 0; start < options.starts; ++start) {
    if (!krylov.start(detail::gaussian<S>(dimension, random))) {
      continue;
    }
    for (index_t k = 1, next_look = 6;; ++k) {
      const bool exhausted = !krylov.step(op);
      ++result.applications;
      const bool last = exhausted || k == krylov.capacity();
      if (k != next_look && !last) {
        continue;
      }
      next_look += std::max(index_t{2}, next_look / 4);
      const auto ritz = krylov.top();
      const double xi = ritz.value + rounding;
      if (!is_finite(xi)) {
        return result;  // no bound
      }
      const double root = log_ratio / static_cast<double>(2 * k - 1);
      double alpha = std::numeric_limits<double>::infinity();
      if (exhausted) {
        alpha = xi;
      } else if (root < 1) {
        alpha = xi / (1 - root * root);
      }
      if (xi >= rayleigh && xi > result.ritz_value) {
        result.vector = krylov.vector(ritz);
      }
      result.ritz_value = std::max(result.ritz_value, xi);
      if (last || alpha <= rayleigh - (rayleigh - xi) / 3 || xi >= rayleigh) {
        alpha_proven = std::max(alpha_proven, alpha);
        alpha_guessed = std::max(alpha_guessed, xi + ritz.residual);
        break;
      }
    }
  }
  result.bound = alpha_proven < rayleigh ? second_eigenvalue_bound{alpha_proven, certainty::probabilistic,
                                                                   options.failure_probability}
                                         : second_eigenvalue_bound{alpha_guessed, certainty::heuristic, 1};
  return result;
}

MPIROUTER_END
