// A random probe for the second eigenvalue: Lanczos beside a found direction, with its failure probability.
#pragma once

#include <mpi_router/verify/certificate.hpp>

#include <Eigen/Eigenvalues>

#include <cstdint>
#include <random>

MPIROUTER_BEGIN

struct probe_options {
  double failure_probability = 1e-9;  ///< wanted, over all starts together
  index_t starts = 2;                 ///< independent random starts; all must miss for the bound to fail
  index_t max_steps = 400;            ///< of Lanczos, for each start
  std::uint64_t seed = 20260612;
};

/// What a probe found.
struct probe_result {
  second_eigenvalue_bound bound;
  double ritz_value =
      0;  ///< the largest eigenvalue of the deflated operator that was seen: a lower bound on it
  index_t applications = 0;
};

namespace detail {

template <Accumulator S>
using column = Eigen::Matrix<S, Eigen::Dynamic, 1>;
template <Accumulator S>
[[nodiscard]] vector_view<const S> as_view(const column<S>& x) {
  return {x.data(), static_cast<index_t>(x.size())};
}
template <Accumulator S>
[[nodiscard]] vector_view<S> as_view(column<S>& x) {
  return {x.data(), static_cast<index_t>(x.size())};
}

template <Accumulator S>
[[nodiscard]] column<S> gaussian(index_t size, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  column<S> x(size);
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
/// bound holds for whatever unit vector v̂ rounds to. One application of M a step, O(D) memory (allocated
/// here).
template <GramOperator Op>
[[nodiscard]] probe_result probe_second_eigenvalue(Op&& op, vector_view<const double> direction,
                                                   double rayleigh, const probe_options& options = {}) {
  using S = scalar_of<Op>;
  using column = detail::column<S>;
  const auto dimension = static_cast<index_t>(op.dimension());
  detail::expect(direction.size() == dimension, "probe: the operator has dimension ", dimension,
                 ", the direction ", direction.size(), " elements");
  detail::expect(options.starts >= 1 && options.max_steps >= 1, "probe: at least one start and one step");
  probe_result result;
  if (dimension == 1) {  // nothing is orthogonal to the direction
    result.bound = {0, certainty::rigorous, 0};
    return result;
  }
  column v(dimension);
  for (index_t i = 0; i < dimension; ++i) {
    v[i] = static_cast<S>(direction[i]);
  }
  v.normalize();
  const auto deflate = [&v](column& x) { x -= v.dot(x) * v; };
  // Deflation leaves rounding of the size of ρ, not of what is left.
  const double rounding =
      4 * static_cast<double>(dimension) * static_cast<double>(std::numeric_limits<S>::epsilon()) * rayleigh;
  const double each = std::pow(options.failure_probability, 1.0 / static_cast<double>(options.starts));
  const double log_ratio = std::log(1.648 * std::sqrt(static_cast<double>(dimension)) / each);

  std::mt19937_64 random(options.seed);
  double alpha_seen = 0;     // over all starts
  double alpha_guessed = 0;  // ξ plus its residual
  bool in_reach = true;
  for (index_t start = 0; start < options.starts; ++start) {
    column q = detail::gaussian<S>(dimension, random);
    deflate(q);
    q.normalize();
    column previous = column::Zero(dimension);
    column image(dimension);
    Eigen::VectorXd diagonal(options.max_steps);
    Eigen::VectorXd off_diagonal(options.max_steps);
    double beta = 0;
    for (index_t k = 1, next_look = 6;; ++k) {
      const auto energy =
          static_cast<double>(op.apply(detail::as_view<S>(std::as_const(q)), detail::as_view<S>(image)));
      ++result.applications;
      deflate(image);
      image -= static_cast<S>(energy) * q + static_cast<S>(beta) * previous;
      deflate(image);
      beta = static_cast<double>(image.stableNorm());
      diagonal[k - 1] = energy / rayleigh;  // near 1: the eigensolver does not scale
      off_diagonal[k - 1] = beta / rayleigh;
      if (!is_finite(beta)) {
        return result;  // no bound
      }
      // Nothing new in the Krylov space, or all of it spanned: the Ritz values are eigenvalues.
      const bool exhausted =
          k >= dimension - 1 || beta <= static_cast<double>(std::numeric_limits<S>::epsilon()) * rayleigh;
      if (k == next_look || k == options.max_steps || exhausted) {
        next_look += next_look / 3;
        Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> ritz;
        ritz.computeFromTridiagonal(diagonal.head(k), off_diagonal.head(k - 1));
        const double xi = rayleigh * ritz.eigenvalues()[k - 1] + rounding;
        const double root = log_ratio / static_cast<double>(2 * k - 1);
        const double alpha = exhausted  ? xi
                             : root < 1 ? xi / (1 - root * root)
                                        : std::numeric_limits<double>::infinity();
        result.ritz_value = std::max(result.ritz_value, xi);
        if (alpha <= rayleigh - (rayleigh - xi) / 3 || exhausted || k == options.max_steps ||
            xi >= rayleigh) {
          alpha_seen = std::max(alpha_seen, alpha);
          alpha_guessed = std::max(alpha_guessed, xi + beta * std::abs(ritz.eigenvectors()(k - 1, k - 1)));
          in_reach = in_reach && alpha < rayleigh;
          break;
        }
      }
      previous.swap(q);
      q = image / static_cast<S>(beta);
    }
  }
  result.bound =
      in_reach ? second_eigenvalue_bound{alpha_seen, certainty::probabilistic, options.failure_probability}
               : second_eigenvalue_bound{alpha_guessed, certainty::heuristic, 1};
  return result;
}

MPIROUTER_END
