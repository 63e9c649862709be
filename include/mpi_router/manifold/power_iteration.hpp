// Many steps: tracking of the Rayleigh quotient, stop rules, momentum, a trace.
#pragma once

#include <mpi_router/manifold/power_step.hpp>

#include <optional>
#include <string_view>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

/// Why an iteration ended.
enum class stop_reason : unsigned char {
  residual,    ///< ‖g‖ ≤ residual_tolerance · ρ
  angle,       ///< the next step would move the row by angle_tolerance or less
  max_steps,   ///< max_steps were taken
  callback,    ///< the callback returned false
  degenerate,  ///< the row has no step; see the status
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(stop_reason reason) noexcept {
  switch (reason) {
    case stop_reason::residual: return "residual";
    case stop_reason::angle: return "angle";
    case stop_reason::max_steps: return "max_steps";
    case stop_reason::callback: return "callback";
    case stop_reason::degenerate: return "degenerate";
  }
  return "unknown";
}

/// Momentum, x_{k+1} = M x_k − β x_{k−1} (Xu et al. 2018, "Accelerated stochastic power iteration"). With the
/// best β = σ₂⁴/4 about √ of the number of steps is needed.
template <Accumulator S>
struct momentum {
  enum class kind : unsigned char { none, fixed, estimated };
  kind rule = kind::none;
  S beta = 0;  ///< for `fixed`; in units of ρ², 0 ≤ β < σ₁⁴/4

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum none() { return {}; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum fixed(S beta) {
    return {kind::fixed, beta};
  }
  /// β from the rate at which the residual falls, taken anew every few steps. A heuristic.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum estimated() {
    return {kind::estimated, S{0}};
  }
};

/// When an iteration stops, and how it goes.
template <Accumulator S>
struct iteration_options {
  index_t max_steps = 1000;
  S residual_tolerance = 0;  ///< relative to ρ; 0: this rule is off
  S angle_tolerance = 0;     ///< radians between one iterate and the next; 0: this rule is off
  S radius = 1;              ///< of the sphere that the row ends on
  momentum<S> acceleration{};
};

/// What is known of iterate k; the callback sees one for k = 0 (the start), 1, ….
template <Accumulator S>
struct iteration_record {
  index_t step = 0;
  S rayleigh = 0;           ///< ρ of iterate k
  S residual = 0;           ///< ‖g‖ of iterate k
  S relative_residual = 0;  ///< ‖g‖ / ρ
  S step_angle = 0;         ///< radians from iterate k to iterate k + 1
};

/// The record of the row that is returned, why the iteration ended there, and what it cost.
template <Accumulator S>
struct iteration_result {
  status state = status::ok;
  stop_reason reason = stop_reason::max_steps;
  index_t steps = 0;         ///< steps that the returned row is away from the start
  index_t applications = 0;  ///< of M: one a step, and one to judge the last iterate
  iteration_record<S> last{};
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

}  // namespace detail

/// Elements of S that power_iteration needs as scratch for dimension D.
template <Accumulator S>
[[nodiscard]] constexpr index_t power_iteration_workspace(index_t dimension,
                                                          const iteration_options<S>& options) {
  return detail::has_momentum(options.acceleration) ? 2 * dimension : dimension;
}

namespace detail {

/// Follows how fast the residual falls and infers σ₂²: with momentum β the component along an eigenvalue σᵢ²
/// of M grows by μᵢ = (σᵢ² + √(σᵢ⁴ − 4β))/2 a step, so that an observed ratio μ₂/μ₁ gives σ₂² = μ₂ + β/μ₂.
/// Everything relative to ρ.
template <Accumulator S>
class momentum_estimate {
 public:
  explicit momentum_estimate(const momentum<S>& rule) : rule_(rule) {}

  /// β/ρ² to use after an iterate with this relative residual.
  S beta(index_t step, const scaled<S>& rho, S relative_residual) {
    switch (rule_.rule) {
      case momentum<S>::kind::none: return S{0};
      case momentum<S>::kind::fixed: return (scaled<S>{rule_.beta, 0} / (rho * rho)).unscaled();
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
    return beta_;
  }

 private:
  static constexpr index_t period = 5;
  momentum<S> rule_;
  S beta_ = 0;
  S mark_ = 0;
};

}  // namespace detail

/// Repeats the step of Eq. 4, 5 on `row` until a rule of `options` says stop, then leaves the row on the
/// sphere of options.radius. Stateful by nature: the row is overwritten. The result describes the row
/// returned.
///
/// row: D elements; workspace: power_iteration_workspace(D, options) elements, which do not overlap it. O(D)
/// a step beyond the applications of M; nothing is allocated. `callback(record, row)` is called for every
/// iterate; where it returns bool, false ends the iteration. A degenerate row is left as it was. ρ never
/// decreases without momentum, and tan θ_k ≤ (σ₂/σ₁)^{2k} tan θ_0 (Golub & Van Loan, 8.2.1). Throws
/// usage_error on sizes, overlap, radius ≤ 0.
template <GramOperator Op, class Callback>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options,
                                                Callback&& callback) {
  using S = scalar_of<Op>;
  const index_t dimension = row.size();
  detail::expect_radius("power_iteration", options.radius);
  detail::expect(options.max_steps >= 0, "power_iteration: max_steps is ", options.max_steps);
  detail::expect(is_finite(options.acceleration.beta) && options.acceleration.beta >= S{0},
                 "power_iteration: beta must be finite and not negative, not ", options.acceleration.beta);
  detail::expect(
      workspace.size() >= power_iteration_workspace(dimension, options) && workspace.is_contiguous(),
      "power_iteration: the workspace has ", workspace.size(), " elements, not ",
      power_iteration_workspace(dimension, options));
  detail::expect(
      !detail::overlap(row, vector_view<S>(workspace.data(), power_iteration_workspace(dimension, options))),
      "power_iteration: the row and the workspace overlap");
  const vector_view<const S> current(row);
  const vector_view<S> image(workspace.data(), dimension);
  const bool accelerated = detail::has_momentum(options.acceleration);
  const vector_view<S> previous(accelerated ? workspace.data() + dimension : nullptr,
                                accelerated ? dimension : 0);

  iteration_result<S> result;
  detail::momentum_estimate<S> estimate(options.acceleration);
  detail::scaled<S> last_growth;  // ρ_{k−1} ‖w_{k−1}‖
  for (index_t step = 0;; ++step) {
    const auto at = detail::apply_to_row("power_iteration", op, current, image);
    ++result.applications;
    result.steps = step;
    result.state = at.state;
    if (at.state != status::ok) {
      result.reason = stop_reason::degenerate;
      return result;
    }
    const S relative = detail::relative_residual<S>(at, current, image);  // image = g/ρ
    const detail::scaler<S> unit(detail::scaled<S>{S{1}, 0} / at.row_norm);
    for (index_t i = 0; i < dimension; ++i) {
      image[i] += unit(row[i]);  // r̂M/ρ
    }
    S step_angle = std::atan(relative);
    if (accelerated) {
      const S beta = estimate.beta(step, at.rayleigh, relative);
      if (step > 0) {  // β x_{k−1} in the scale in which x_k is r̂ and M is M/ρ
        const S pull = (detail::scaled<S>{beta, 0} * at.rayleigh / last_growth).unscaled();
        for (index_t i = 0; i < dimension; ++i) {
          image[i] -= pull * previous[i];
        }
        step_angle = angle<S>(current, vector_view<const S>(image));
      }
    }
    result.last = {step, at.rayleigh.unscaled(), (at.rayleigh * detail::scaled<S>{relative, 0}).unscaled(),
                   relative, step_angle};

    bool go_on = true;
    if constexpr (std::is_convertible_v<
                      std::invoke_result_t<Callback&, const iteration_record<S>&, vector_view<const S>>,
                      bool>) {
      go_on = callback(std::as_const(result.last), current);
    } else {
      callback(std::as_const(result.last), current);
    }
    const auto within = [](S value, S tolerance) { return tolerance > S{0} && value <= tolerance; };
    const auto stop = [&]() -> std::optional<stop_reason> {
      if (!go_on) return stop_reason::callback;
      if (within(relative, options.residual_tolerance)) return stop_reason::residual;
      if (within(step_angle, options.angle_tolerance)) return stop_reason::angle;
      if (step >= options.max_steps) return stop_reason::max_steps;
      return std::nullopt;
    }();
    if (stop) {
      result.reason = *stop;
      retract<S>(current, row, options.radius);
      return result;
    }

    const auto growth = detail::norm<S>(vector_view<const S>(image));
    if (accelerated) {
      detail::scale_into<S>(current, previous, detail::scaled<S>{S{1}, 0} / at.row_norm);
      last_growth = growth.norm * at.rayleigh;
    }
    detail::scale_into<S>(vector_view<const S>(image), row, detail::scaled<S>{S{1}, 0} / growth.norm);
  }
}

template <GramOperator Op>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options = {}) {
  return power_iteration(op, row, workspace, options, [](const auto&, const auto&) {});
}

MPIROUTER_END
