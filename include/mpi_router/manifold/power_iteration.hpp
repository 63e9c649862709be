// Many steps: tracking of the Rayleigh quotient, stop rules, momentum, a trace.
#pragma once

#include <mpi_router/manifold/momentum.hpp>

#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

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

/// Elements of S that power_iteration needs as scratch for dimension D.
template <Accumulator S>
[[nodiscard]] constexpr index_t power_iteration_workspace(index_t dimension,
                                                          const iteration_options<S>& options) {
  return detail::has_momentum(options.acceleration) ? 2 * dimension : dimension;
}

namespace detail {

template <Accumulator S>
void expect_iteration(const vector_view<S>& row, const vector_view<S>& workspace,
                      const iteration_options<S>& options) {
  const index_t needed = power_iteration_workspace(row.size(), options);
  expect_radius("power_iteration", options.radius);
  expect(options.max_steps >= 0, "power_iteration: max_steps is ", options.max_steps);
  expect(is_finite(options.acceleration.beta) && options.acceleration.beta >= S{0},
         "power_iteration: beta must be finite and not negative, not ", options.acceleration.beta);
  expect(workspace.size() >= needed && workspace.is_contiguous(), "power_iteration: the workspace has ",
         workspace.size(), " elements, not ", needed);
  expect(!overlap(row, vector_view<S>(workspace.data(), needed)),
         "power_iteration: the row and the workspace overlap");
}

/// Calls the callback; false where it returned that.
template <class Callback, Accumulator S>
[[nodiscard]] bool call_back(Callback& callback, const iteration_record<S>& record,
                             vector_view<const S> row) {
  if constexpr (std::is_convertible_v<decltype(callback(record, row)), bool>) {
    return callback(record, row);
  } else {
    callback(record, row);
    return true;
  }
}

template <Accumulator S>
[[nodiscard]] std::optional<stop_reason> why_stop(const iteration_options<S>& options,
                                                  const iteration_record<S>& at, bool go_on) {
  const auto within = [](S value, S tolerance) { return tolerance > S{0} && value <= tolerance; };
  if (!go_on) return stop_reason::callback;
  if (within(at.relative_residual, options.residual_tolerance)) return stop_reason::residual;
  if (within(at.step_angle, options.angle_tolerance)) return stop_reason::angle;
  if (at.step >= options.max_steps) return stop_reason::max_steps;
  return std::nullopt;
}

/// x_{k+1} = next/‖next‖, next times 2^-exponent in memory. False where momentum has left the range of S.
template <Accumulator S>
[[nodiscard]] bool advance(momentum_term<S>& momentum, const row_image<S>& image, int exponent,
                           const vector_view<S>& next, const vector_view<S>& row) {
  const auto length = norm<S>(next);
  if (length.kind != magnitude::finite) return false;
  momentum.remember(row, image, length.norm * scaled<S>(S{1}, exponent));
  scale_into(next, row, S{1} / length.norm);
  return true;
}

}  // namespace detail

/// Repeats the step of Eq. 4, 5 on `row` until a rule of `options` says stop, then leaves the row on the
/// sphere of options.radius: it is overwritten. The result describes the row returned.
///
/// row: D elements; workspace: power_iteration_workspace(D, options) elements apart from it. O(D) a step
/// beyond the applications of M; nothing is allocated. `callback(record, row)` is called for every iterate;
/// where it returns bool, false ends the iteration. A degenerate iterate is left as it is. ρ never decreases
/// without momentum, and tan θ_k ≤ (σ₂/σ₁)^{2k} tan θ_0 (Golub & Van Loan, 8.2.1). Throws usage_error on
/// sizes, overlap, radius ≤ 0.
template <GramOperator Op, class Callback>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options,
                                                Callback&& callback) {
  using S = scalar_of<Op>;
  const index_t n = row.size();
  detail::expect_iteration(row, workspace, options);
  const vector_view<S> next(workspace.data(), n);
  detail::momentum_term<S> momentum(options.acceleration, workspace.data() + n, n);
  iteration_result<S> result;
  const auto ended = [&](stop_reason reason) {
    result.reason = reason;
    return result;
  };
  for (index_t step = 0;; ++step) {
    const row_image<S> image = detail::image_of_row<Op>("power_iteration", op, row, next);
    ++result.applications;
    result.steps = step;
    result.state = image.state;
    if (image.state != status::ok) return ended(stop_reason::degenerate);
    const auto both = detail::scale_free(next, row, image);  // h = xM/ρ
    const scaled<S> scaled_tan = both.tan(n);
    const S tan = scaled_tan.unscaled();
    if (momentum.exists()) momentum.add(step, image, tan, both, next);  // h − β x_{k−1}
    const S angle_of_step = step > 0 && momentum.exists() ? angle<S>(row, next) : std::atan(tan);
    result.last = {step, image.rayleigh.unscaled(), (image.rayleigh * scaled_tan).unscaled(), tan,
                   angle_of_step};
    const bool go_on = detail::call_back(callback, std::as_const(result.last), vector_view<const S>(row));
    if (const auto reason = detail::why_stop(options, result.last, go_on)) {
      retract<S>(row, row, options.radius);
      return ended(*reason);
    }
    if (!detail::advance(momentum, image, both.exponent, next, row)) {
      result.state = status::non_finite;
      return ended(stop_reason::degenerate);
    }
  }
}

/// The same without a callback.
template <GramOperator Op>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options = {}) {
  return power_iteration(op, row, workspace, options, [](const auto&, const auto&) {});
}

MPIROUTER_END
