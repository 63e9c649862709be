// Momentum: x_{k+1} = M x_k − β x_{k−1} (Xu et al. 2018, "Accelerated stochastic power iteration").
#pragma once

#include <mpi_router/manifold/image.hpp>

MPIROUTER_BEGIN_TYPES

/// Which β. With the best one, σ₂⁴/4, about √ of the number of steps is needed.
template <Accumulator S>
struct momentum {
  enum class kind : unsigned char { none, fixed, estimated };
  kind rule = kind::none;
  S beta = 0;  ///< for `fixed`: 0 ≤ β < σ₁⁴/4

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum none() { return {}; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum fixed(S beta) {
    return {kind::fixed, beta};
  }
  /// β from the rate at which the residual falls, taken anew every few steps. A heuristic.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum estimated() {
    return {kind::estimated, S{0}};
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// Whether a rule looks at the iterate before. Throws usage_error where it is none of the rules.
template <Accumulator S>
[[nodiscard]] constexpr bool has_momentum(const momentum<S>& m) {
  switch (m.rule) {
    case momentum<S>::kind::none: return false;
    case momentum<S>::kind::fixed:
    case momentum<S>::kind::estimated: return true;
  }
  core::unknown_value("momentum", m.rule);
}

/// Follows how fast the residual falls and infers σ₂²: with momentum β the component along an eigenvalue σᵢ²
/// of M grows by μᵢ = (σᵢ² + √(σᵢ⁴ − 4β))/2 a step, so that an observed ratio μ₂/μ₁ gives σ₂² = μ₂ + β/μ₂.
/// Everything relative to ρ.
template <Accumulator S>
class momentum_estimate {
 public:
  explicit momentum_estimate(const momentum<S>& rule) : rule_(rule) {}

  /// β/ρ to use after an iterate with this relative residual.
  scaled<S> beta_over_rho(index_t step, const scaled<S>& rho, S relative_residual) {
    switch (rule_.rule) {
      case momentum<S>::kind::none: return S{0};
      case momentum<S>::kind::fixed: return rule_.beta / rho;
      case momentum<S>::kind::estimated: break;
    }
    if (step % period == 0) {
      if (step > 0 && relative_residual < static_cast<S>(0.9) * mark_ && relative_residual > S{0}) {
        const S ratio = std::pow(relative_residual / mark_, S{1} / S{period});
        const S mu_1 = (S{1} + std::sqrt(S{1} - S{4} * beta_)) / S{2};
        const S mu_2 = std::max(ratio * mu_1, std::sqrt(beta_));
        const S sigma_2_squared = std::min(mu_2 + beta_ / mu_2, static_cast<S>(0.999));
        beta_ = std::max(beta_, sigma_2_squared * sigma_2_squared / S{4});
      }
      mark_ = relative_residual;
    }
    return beta_ * rho;
  }

 private:
  static constexpr index_t period = 5;
  momentum<S> rule_;
  S beta_ = 0;
  S mark_ = 0;
};

/// The term −β x_{k−1} beside an image.
template <Accumulator S>
class momentum_term {
 public:
  /// `previous` has room for D elements where there is momentum, and is not used otherwise.
  momentum_term(const momentum<S>& rule, S* previous, index_t dimension) : estimate_(rule) {
    if (has_momentum(rule)) previous_ = {previous, dimension};
  }

  [[nodiscard]] bool exists() const noexcept { return previous_.size() != 0; }

  /// next = h − β x_{k−1}, in the scale in which x_k is 2^-both.exponent long and M is M/ρ.
  void add(index_t step, const row_image<S>& image, S tangent, const scale_free_image<S, S, S>& both,
           const vector_view<S>& next) {
    const scaled<S> beta = estimate_.beta_over_rho(step, image.rayleigh, tangent);
    const S pull = step == 0 ? S{0} : (beta / growth_ * scaled<S>(S{1}, -both.exponent)).unscaled();
    for (index_t i = 0; i < next.size(); ++i) {
      next[i] = both.h[i] - pull * (step == 0 ? S{0} : previous_[i]);
    }
  }
  /// x_k is about to become x_{k+1} = next/‖next‖, next_norm in the scale in which x_k is a unit vector.
  void remember(const vector_view<const S>& row, const row_image<S>& image, const scaled<S>& next_norm) {
    const auto unit_row = direction_of(row, image.row_norm);
    for (index_t i = 0; i < previous_.size(); ++i) {
      previous_[i] = unit_row[i];
    }
    growth_ = next_norm * image.rayleigh;
  }

 private:
  momentum_estimate<S> estimate_;
  vector_view<S> previous_;  // x_{k−1}, a unit vector
  scaled<S> growth_;         // ρ_{k−1} ‖next_{k−1}‖
};

}  // namespace detail
MPIROUTER_END
