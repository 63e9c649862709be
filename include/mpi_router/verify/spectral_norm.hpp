// The spectral norm of a matrix between two bounds, without its direction.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/verify/any_operator.hpp>
#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/lanczos.hpp>
#include <mpi_router/verify/probe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>

MPIROUTER_BEGIN_TYPES

/// How near to go, and how sure to be.
struct norm_options {
  double residual_tolerance = 1e-9;   ///< of the eigenpair of M that is gone for, relative to ‖A‖²
  double slack = 0.01;                ///< between the bounds, relative to ‖A‖²
  double failure_probability = 1e-6;  ///< of the bound from above
  index_t max_steps = 300;            ///< applications of M
  std::uint64_t seed = 20261128;
};

/// ‖A‖₂, from below and from above.
struct norm_bounds {
  status state = status::ok;  ///< zero_image: A is zero; non_finite: nothing is known
  double value = 0;           ///< the root of a Ritz value: at most ‖A‖₂ up to rounding, and nearly always it
  double high = std::numeric_limits<double>::infinity();
  certainty label = certainty::none;  ///< of `high`
  double failure_probability = 0;
  index_t applications = 0;
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// A number above the largest Ritz value ξ that exceeds the largest eigenvalue unless the random start is one
/// of the few that miss it: the smallest α with p(α) ≥ β₁⋯β_k √(2D/π)/τ (see probe_second_eigenvalue), to an
/// eighth of its distance from ξ. Infinity where 1e30 ξ does not.
template <class Krylov>
[[nodiscard]] double level_above(const Krylov& krylov, double xi, double needed) {
  const auto exceeds = [&](double alpha) { return krylov.log_level(alpha) >= needed; };
  double above = 1e-15;  // relative to ξ, less one
  while (!exceeds(xi * (1 + above)) && above < 1e30) {
    above *= 2;
  }
  if (!exceeds(xi * (1 + above))) {
    return std::numeric_limits<double>::infinity();
  }
  double below = above / 2;
  for (int halving = 0; halving < 3; ++halving) {
    const double middle = (below + above) / 2;
    (exceeds(xi * (1 + middle)) ? above : below) = middle;
  }
  return xi * (1 + above);
}

/// Goes on until a Ritz pair is as near an eigenpair, and the level above it as near, as the options ask, or
/// until the space is full. `more`: whether it can grow.
template <class Op>
void climb(Op& op, krylov_of<Op>& krylov, bool more, const norm_options& options, norm_bounds& result) {
  const auto dimension = static_cast<double>(op.dimension());
  const double needed = std::log(std::sqrt(2 * dimension / std::numbers::pi) / options.failure_probability);
  const double rounding = 4 * dimension * std::numeric_limits<double>::epsilon();
  for (;; more = krylov.can_grow()) {
    if (more) {
      more = krylov.step(op);
      ++result.applications;
    }
    const auto ritz = krylov.top();
    if (!is_finite(ritz.value)) {
      result = {.state = status::non_finite, .applications = result.applications};
      return;
    }
    const bool last = !more || !krylov.can_grow();
    if (last || ritz.residual <= options.residual_tolerance * ritz.value) {
      const double alpha = level_above(krylov, ritz.value, needed) + rounding * ritz.value;
      result.value = std::sqrt(ritz.value);
      result.high = std::sqrt(alpha);
      if (last || alpha <= (1 + options.slack) * ritz.value) {
        return;
      }
    }
  }
}

}  // namespace detail

/// ‖A‖₂ = σ₁ of the A whose M is `op`, by Lanczos from a random start; no gap below σ₁ is needed. The bound
/// from above is that of the probe, with nothing deflated: with D the dimension, x the start and p the
/// characteristic polynomial of T, σ₁² ≤ α except with probability τ where p(α) ≥ β₁⋯β_k √(2D/π)/τ; for k
/// steps α/ξ − 1 is about (log(√D/τ)/2k)², and 4 D ε ξ for rounding are added. It goes on until a Ritz pair
/// is as near an eigenpair, and α as near ξ, as the options ask.
///
/// At most max_steps applications of M and O(D · steps) a step; O(D · max_steps) memory. The same numbers
/// from the same seed. Where squares of elements leave the range of S nothing finite is claimed: scale them.
/// Throws usage_error on max_steps < 1 and a probability outside (0, 1).
template <GramOperator Op>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] norm_bounds spectral_norm(Op&& op, const norm_options& options = {}) {
  const auto dimension = static_cast<index_t>(op.dimension());
  detail::expect(options.max_steps >= 1, "spectral_norm: ", options.max_steps, " steps");
  detail::expect(options.failure_probability > 0 && options.failure_probability < 1,
                 "spectral_norm: a failure probability of ", options.failure_probability,
                 ", not between 0 and 1");
  norm_bounds result;
  std::mt19937_64 random(options.seed);
  const Eigen::VectorXd start = detail::gaussian<double>(dimension, random).normalized();
  Eigen::VectorXd residual(dimension);
  const auto at = dimension > 0 ? rayleigh(op, view(start), view(residual))
                                : rayleigh_result<double>{.state = status::zero_image};
  result.applications = dimension > 0 ? 1 : 0;
  result.state = dimension > 0 && at.state == status::zero_row ? status::non_finite : at.state;
  if (result.state == status::zero_image) {  // a random x has no part in the null space alone
    return {status::zero_image, 0, 0, certainty::probabilistic, 0, result.applications};
  }
  if (result.state != status::ok || !(at.rayleigh > 0) || !is_finite(at.rayleigh)) {
    return result;
  }
  auto&& any = detail::behind_functions(op);
  auto krylov = krylov_space(any, std::min(options.max_steps, dimension));
  const bool more = krylov.start(start, residual, at.rayleigh) && krylov.can_grow();
  detail::climb(any, krylov, more, options, result);
  if (is_finite(result.high)) {
    result.label = certainty::probabilistic;
    result.failure_probability = options.failure_probability;
  }
  return result;
}

MPIROUTER_END
