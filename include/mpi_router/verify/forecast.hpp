// The steps that the power iteration takes, counted in the Krylov space of the row instead of taken.
#pragma once

#include <mpi_router/verify/lanczos.hpp>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

MPIROUTER_BEGIN_TYPES

/// What a Krylov space says of the power iteration from its start. An estimate: nothing about it is proven.
struct step_forecast {
  std::optional<index_t> steps;  ///< to the tolerance; nothing where max_steps do not suffice
  bool is_spanned = false;       ///< the space seems large enough for that to be right to one step,
  bool is_sharp = false;         ///< and the rounding error of its eigenvalues small enough

  [[nodiscard]] bool converged() const { return is_spanned && is_sharp; }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// How what a Krylov space leaves outside of it shrinks in a step: by σ₂²/σ₁², or the best that is known of
/// it; a share of it by the next eigenvalue that the space has not found. That one is an estimate, a
/// Ritz value and its residual, and no bound: the largest eigenvalue outside of the space may be larger.
struct shrinking_outside {
  double kappa_squared;
  double rest_squared = kappa_squared;  ///< estimated
  double share = 0;                     ///< along the directions between
};

/// The power iteration from the start r of a Krylov space, in the basis Q that Lanczos has built from r: M^k
/// r is Q Tᵏ e₁, and the principal direction Q y, y the top eigenvector of T. O(dimension of the space) a
/// step instead of O(F·D).
class krylov_iteration {
 public:
  template <Accumulator S, class Basis>
  explicit krylov_iteration(const lanczos<S, Basis>& krylov)
      : unit_(std::numeric_limits<S>::epsilon()),
        scale_(krylov.scale()),
        outside_(krylov.left_outside()),
        pair_(krylov.top()) {
    diagonal_ = krylov.diagonal();
    beside_ = krylov.off_diagonal();
    rho_ = pair_.value / scale_;
  }

  /// Sets the eigenvalue of a Ritz vector, with the coordinates y, right: T + (λ − θ) y yᵀ for T.
  void sharpen(const Eigen::VectorXd& coordinates, double theta, double lambda, bool is_first) {
    shifts_.push_back({coordinates, (lambda - theta) / scale_});
    unit_ = 0;
    rho_ = is_first ? lambda / scale_ : rho_;
  }

  /// The smallest k for which the sine of the angle of M^k r to the principal direction is at most
  /// `tolerance`.
  ///
  /// Exact while k is below the dimension of the space. Beyond, each step leaves β |s_last| outside of it, s
  /// the coordinates of the iterate without its part along y, and Q y itself is off by its residual over the
  /// gap. What is outside shrinks by κ² a step, as the angle itself does; faster, except for the small share
  /// of it along directions that the space has found. So it adds up to d ← κ² d + (β/ρ) |s_last|, for that
  /// share and for the rest, at most. `is_spanned`: d stays below a quarter of a step of `tolerance`;
  /// `is_sharp`: so does k times the rounding error of an eigenvalue, taken to be ε/4.
  [[nodiscard]] step_forecast steps_to(double tolerance, index_t max_steps,
                                       const shrinking_outside& shrinking) const {
    const double quarter = 0.25 * (1 - shrinking.kappa_squared);
    const index_t last = diagonal_.size() - 1;
    const Eigen::VectorXd& y = pair_.coordinates;
    Eigen::VectorXd s = Eigen::VectorXd::Unit(diagonal_.size(), 0), next(diagonal_.size());
    double rest = std::abs(y[0]) * pair_.residual / (pair_.value * (1 - shrinking.rest_squared));
    double between =
        shrinking.share * std::abs(y[0]) * pair_.residual / (pair_.value * (1 - shrinking.kappa_squared));
    for (index_t k = 0;; ++k) {
      const double along = y.dot(s);
      next = s - along * y;
      const double leaves = outside_ / rho_ * std::abs(next[last]);
      const double away = next.norm();
      const double length = std::hypot(along, away);
      const double outside = between + rest;
      const bool arrived = away <= tolerance * length;
      if (arrived || k >= max_steps) {
        const bool is_far = !arrived && outside <= 0.1 * away && tolerance * length < 0.5 * away;
        return {arrived ? std::optional(k) : std::nullopt, outside <= quarter * tolerance * length || is_far,
                0.25 * unit_ * static_cast<double>(k) <= quarter || is_far};
      }
      between = shrinking.kappa_squared * between + shrinking.share * leaves;
      rest = shrinking.rest_squared * rest + leaves;
      step(s, next);
      s.swap(next);
    }
  }

 private:
  struct shift {
    Eigen::VectorXd along;
    double by;
  };

  /// next = T s / ρ.
  void step(const Eigen::VectorXd& s, Eigen::VectorXd& next) const {
    const Eigen::Index n = s.size();
    const double scale = 1 / rho_;
    next = scale * diagonal_.cwiseProduct(s);
    next.head(n - 1) += scale * beside_.head(n - 1).cwiseProduct(s.tail(n - 1));
    next.tail(n - 1) += scale * beside_.head(n - 1).cwiseProduct(s.head(n - 1));
    for (const auto& [along, by] : shifts_) {
      next += along * (scale * by * along.dot(s));
    }
  }

  double unit_;
  double scale_;
  double outside_;  ///< what couples the space to the rest, relative to scale_
  double rho_ = 1;
  ritz_pair pair_;
  Eigen::VectorXd diagonal_;
  Eigen::VectorXd beside_;
  std::vector<shift> shifts_;
};

namespace detail {

/// Whether the space has found the direction of this ρ, and sees the start at this tan of its angle to it, to
/// half a step. What rounding, relative, adds along the direction must be small beside the start's own part.
[[nodiscard]] inline bool sees_principal(const std::vector<ritz_pair>& pairs, double rayleigh, double tangent,
                                         double tolerance, double rounding) {
  const double first = pairs.front().value;
  const double second = pairs.size() > 1 ? std::max(0.0, pairs[1].value) : 0;
  const auto& y = pairs.front().coordinates;
  const double seen = y.tail(y.size() - 1).norm() / std::abs(y[0]);
  const double half_a_step = 0.5 * (1 - second / first) * tangent;
  const bool is_above_rounding = rounding * tangent <= 0.25 * (1 - second / first);
  return std::abs(first - rayleigh) <= 1e-3 * (first - second) && is_above_rounding &&
         (std::abs(seen - tangent) <= half_a_step || std::max(seen, tangent) <= tolerance);
}

/// From Ritz pairs of which each that is near an eigenpair, compared with the gaps beside it, is found.
[[nodiscard]] inline shrinking_outside shrinking_of(const std::vector<ritz_pair>& pairs) {
  const double rho = pairs.front().value;
  shrinking_outside result{pairs.size() > 1 ? std::max(0.0, pairs[1].value) / rho : 0};
  double share = 0;
  for (std::size_t k = 1; k + 1 < pairs.size(); ++k) {
    const double gap = std::min(pairs[k - 1].value - pairs[k].value, pairs[k].value - pairs[k + 1].value);
    share += pairs[k].residual / gap;
    if (!(share <= 0.01)) {
      break;
    }
    const double next = (pairs[k + 1].value + pairs[k + 1].residual) / rho;
    if (next < result.rest_squared) {
      result.rest_squared = next;
      result.share = share;
    }
  }
  return result;
}

/// The largest eigenvalues matter most.
inline constexpr index_t sharpened = 4;

/// Gives these eigenvalues from images by `op`, in double; the first is known.
template <GramOperator Op, class Krylov>
void sharpen(krylov_iteration& iteration, Op& op, const Krylov& krylov, const std::vector<ritz_pair>& pairs,
             double rayleigh) {
  for (std::size_t k = 0; k < std::min<std::size_t>(sharpened, pairs.size()); ++k) {
    const Eigen::VectorXd x = krylov.vector(pairs[k]);
    Eigen::VectorXd image(x.size());
    const double lambda = k == 0 ? rayleigh : static_cast<double>(op.apply(view(x), view(image)));
    iteration.sharpen(pairs[k].coordinates, pairs[k].value, lambda, k == 0);
  }
}

}  // namespace detail

/// The power steps from `krylov`'s start to the tolerance. Goes on with the space, by `fast`, until that is
/// right to one step and the second Ritz value has settled; takes the eigenvalues that matter from images by
/// `op`, in double, where those of the space are not sharp enough. rayleigh, tangent: ρ of the principal
/// direction and tan of the start's angle to it, in double; where sees_principal denies these, nothing
/// converges.
template <GramOperator Op, GramOperator Fast>
[[nodiscard]] step_forecast forecast_steps(Op& op, Fast& fast, krylov_of<Fast>& krylov, double rayleigh,
                                           double tangent, double tolerance, index_t max_steps) {
  constexpr index_t at_once = 8;
  constexpr auto rounding = static_cast<double>(std::numeric_limits<scalar_of<Fast>>::epsilon());
  for (;;) {
    const auto pairs = krylov.largest(2 * detail::sharpened);
    if (pairs.empty()) {
      break;
    }
    const bool is_known = !krylov.can_grow() || detail::has_settled(pairs, 1, rayleigh);
    if (is_known && detail::sees_principal(pairs, rayleigh, tangent, tolerance, rounding)) {
      const auto shrinking = detail::shrinking_of(pairs);
      krylov_iteration iteration(krylov);
      auto forecast = iteration.steps_to(tolerance, max_steps, shrinking);
      if (forecast.is_spanned && !forecast.is_sharp) {
        detail::sharpen(iteration, op, krylov, pairs, rayleigh);
        forecast = iteration.steps_to(tolerance, max_steps, shrinking);
      }
      if (forecast.is_spanned) {
        return forecast;
      }
    }
    if (!krylov.can_grow()) {
      break;
    }
    for (index_t k = 0; k < at_once && krylov.can_grow(); ++k) {
      krylov.step(fast);
    }
  }
  return {};
}

MPIROUTER_END
