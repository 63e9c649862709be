// Certificates: what a Rayleigh quotient and its residual prove about the principal singular direction.
#pragma once

#include <mpi_router/manifold/rayleigh.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string_view>

MPIROUTER_BEGIN_TYPES

/// How much a claim is worth.
enum class certainty : unsigned char {
  none,       ///< nothing is claimed beyond σ₁² ≥ ρ
  heuristic,  ///< true if a random probe has seen the second eigenvalue; the chance that it has not is not
              ///< small
  probabilistic,  ///< true except with a stated probability over the random probe
  rigorous        ///< true; rounding error is accounted for
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(certainty label) noexcept {
  switch (label) {
    case certainty::none: return "none";
    case certainty::heuristic: return "heuristic";
    case certainty::probabilistic: return "probabilistic";
    case certainty::rigorous: return "rigorous";
  }
  return "unknown";
}

/// An upper bound α on σ₂², the second eigenvalue of M, and what it is worth. Useful only where α < ρ.
struct second_eigenvalue_bound {
  double alpha = std::numeric_limits<double>::infinity();
  certainty label = certainty::none;
  double failure_probability = 0;  ///< at most this, for a probabilistic bound
};

/// What is proven of σ₁ and of the angle θ between a row and the principal right singular direction.
struct certificate {
  certainty label = certainty::none;
  double alpha = std::numeric_limits<double>::infinity();  ///< the bound on σ₂² that was used
  double failure_probability = 0;
  double sigma_low = 0;  ///< σ₁ ≥ √ρ always: √ρ less the slack for its rounding error
  double sigma_high = std::numeric_limits<double>::infinity();
  double angle_bound = std::numbers::pi / 2;  ///< θ is at most this, in radians
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// tr M = ‖A‖_F² ≥ σ₁² + σ₂² and σ₁² ≥ ρ give σ₂² ≤ ‖A‖_F² − ρ. Free, of use where one direction holds most
/// of A. `error` is the relative rounding error allowed for in both numbers.
[[nodiscard]] inline second_eigenvalue_bound trace_bound(double frobenius_squared, double rayleigh,
                                                         double error = 1e-13) {
  return {frobenius_squared * (1 + error) - rayleigh * (1 - error), certainty::rigorous, 0};
}

/// ‖M‖_F² ≥ σ₁⁴ + σ₂⁴ gives σ₂² ≤ √(‖M‖_F² − ρ²). ‖M‖_F = ‖AAᵀ‖_F.
[[nodiscard]] inline second_eigenvalue_bound gram_norm_bound(double gram_norm, double rayleigh,
                                                             double error = 1e-13) {
  const double above = gram_norm * (1 + error);
  const double below = rayleigh * (1 - error);
  return {std::sqrt(std::max(0.0, above - below)) * std::sqrt(above + below), certainty::rigorous, 0};
}

/// The certificate of a row from its ρ and ‖g‖ and a bound α ≥ σ₂². With α < ρ:
///   0 ≤ σ₁² − ρ ≤ ‖g‖² / (ρ − α)   (Kato–Temple),    tan θ ≤ ‖g‖ / (ρ − α)   (Davis–Kahan).
/// The tangent, not only the sine: in the plane of v₁ and r̂ = cos θ v₁ + sin θ w the unit tangent is t =
/// −sin θ v₁ + cos θ w, and ⟨g, r̂⟩ = 0 gives |⟨g, t⟩| = tan θ (ρ − wMwᵀ) ≥ tan θ (ρ − α). `slack` is added
/// to ‖g‖ for the rounding error of its evaluation. Without α < ρ nothing but σ₁² ≥ ρ is claimed.
[[nodiscard]] inline certificate certify(const rayleigh_result<double>& at,
                                         const second_eigenvalue_bound& bound, double slack = 0) {
  certificate result;
  if (at.state != status::ok || !is_finite(at.rayleigh)) {
    return result;
  }
  result.sigma_low = std::sqrt(std::max(0.0, at.rayleigh - slack));
  const double margin = at.rayleigh - slack - bound.alpha;
  if (bound.label == certainty::none || !is_finite(bound.alpha) || !(margin > 0)) {
    return result;
  }
  const double residual = at.residual + slack;
  result.label = bound.label;
  result.alpha = bound.alpha;
  result.failure_probability = bound.failure_probability;
  result.sigma_high = std::sqrt(at.rayleigh + slack + residual * (residual / margin));
  result.angle_bound = std::atan2(residual, margin);
  return result;
}

/// A bound on the angle from λ = √ρ/σ₁ and κ = σ₂/σ₁ alone: cos²θ ≥ (λ² − κ²) / (1 − κ²); π/2 if λ ≤ κ.
[[nodiscard]] inline double angle_from_alignment(double lambda, double kappa) {
  const double margin = (1 - kappa) * (1 + kappa);
  const double cosine_squared = (lambda - kappa) * (lambda + kappa) / margin;
  return lambda > kappa && margin > 0 ? std::acos(std::sqrt(std::min(1.0, cosine_squared)))
                                      : std::numbers::pi / 2;
}

MPIROUTER_END
