// The same step seen from the tangent space: Riemannian steepest ascent of the Rayleigh quotient (Eq. 9, 10).
#pragma once

#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>

MPIROUTER_BEGIN_TYPES

/// How far the adaptive step moves on the unit sphere. Eq. 10 gives the tangential length ‖ηg‖ = tan ψ; the
/// retraction keeps the angle ψ, which is the geodesic length, and the difference is the "≈" of Eq. 10.
template <Accumulator S>
struct step_length {
  S tangential;  ///< tan ψ = ‖g‖ / ρ
  S geodesic;    ///< ψ
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The adaptive step of Eq. 10: η = 1/ρ, for which the ascent of Eq. 9, retracted, *is* the power step.
template <Accumulator S>
[[nodiscard]] S adaptive_step(S rayleigh) {
  return S{1} / rayleigh;
}

/// Every η is a shifted power step: r̂ + ηg ∝ r̂(M − sI) with s = ρ − 1/η. η → 0 is Oja's rule (s → −∞), s = 0
/// is MPI.
template <Accumulator S>
[[nodiscard]] S power_shift(S rayleigh, std::type_identity_t<S> eta) {
  return rayleigh - S{1} / eta;
}

/// How far the step with η = 1/ρ goes: tan ψ = ‖g‖/ρ along the tangent, ψ on the sphere.
template <Accumulator S>
[[nodiscard]] step_length<S> adaptive_step_length(const rayleigh_result<S>& at) {
  return {at.relative_residual, std::atan(at.relative_residual)};
}

namespace detail {

/// out = C x/‖x‖ with x = r̂ + t(h − r̂), t = ηρ, which has no scale.
template <GramOperator Op, class RelativeStep>
step_result<scalar_of<Op>> ascend(const char* what, Op& op, vector_view<const scalar_of<Op>> row,
                                  vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                  RelativeStep relative_step, degenerate_row policy) {
  using S = scalar_of<Op>;
  expect_radius(what, radius);
  const row_image<S> image = image_of_row(what, op, row, out);
  if (image.state != status::ok) {
    return degenerate<S>(image.state, row, out, policy);
  }
  const scaled<S> t = relative_step(image.rayleigh);
  const int power = scale_free(out, row, image).ascent(t, out);
  const auto length = norm<S>(out);
  // Where t is out of range: g is tangent, so the sum is never zero.
  if (!is_finite(t.unscaled()) || length.kind != magnitude::finite) {
    degenerate<S>(status::non_finite, row, out, policy);
    return {status::non_finite, image.rayleigh.unscaled(), S{0}};
  }
  scale_into(out, out, radius / length.norm);
  // ⟨r̂, r̂ + ηg⟩ = 1, since g is tangent.
  const S cosine = (scaled<S>(S{1}, -power) / length.norm).unscaled();
  return {status::ok, image.rayleigh.unscaled(), std::min(cosine, S{1})};
}

}  // namespace detail

/// Steepest ascent with a given step (Eq. 9), retracted: out = C · (r̂ + ηg) / ‖r̂ + ηg‖, g = r̂M − ρ r̂.
/// η has the unit of 1/ρ; the gradient's factor 2 is in η. η may be negative (descent). Stateless; one
/// application of M. Shapes, statuses and errors are those of power_step.
template <GramOperator Op>
step_result<scalar_of<Op>> steepest_ascent_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                                scalar_of<Op> eta,
                                                degenerate_row policy = degenerate_row::keep) {
  detail::expect(is_finite(eta), "steepest_ascent_step: eta is not finite");
  const auto relative = [eta](const scaled<scalar_of<Op>>& rho) {
    return scaled<scalar_of<Op>>(eta).normalized() * rho;
  };
  return detail::ascend("steepest_ascent_step", op, row, out, radius, relative, policy);
}

/// Steepest ascent with the adaptive step η = 1/ρ (Eq. 10), retracted: equal to power_step, up to rounding.
template <GramOperator Op>
step_result<scalar_of<Op>> adaptive_ascent_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                                degenerate_row policy = degenerate_row::keep) {
  const auto one = [](const scaled<scalar_of<Op>>&) { return scaled<scalar_of<Op>>(1); };
  return detail::ascend("adaptive_ascent_step", op, row, out, radius, one, policy);
}

MPIROUTER_END
