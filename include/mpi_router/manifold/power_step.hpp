// The step of Manifold Power Iteration: multiply by M, retract onto the sphere of radius C (Eq. 4, 5).
#pragma once

#include <mpi_router/manifold/image.hpp>

MPIROUTER_BEGIN_TYPES

/// What one step tells for free.
template <Accumulator S>
struct step_result {
  status state = status::ok;
  S rayleigh = 0;  ///< ρ of the row before the step; infinite where S cannot hold it
  S cosine = 0;  ///< cos of the angle between the old row and the new one, ρ / ‖r̂M‖, in [0, 1], 0 only where
                 ///< S cannot hold it
};

/// What the backward of a step needs from the forward, besides the two rows: ‖rM‖. A value of zero stands for
/// a row that had no step.
template <Accumulator S>
using saved_norm = scaled<S>;

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// What becomes of a row that has no step.
template <Accumulator S, class R, class O>
step_result<S> degenerate(status state, const vector_view<R>& row, const vector_view<O>& out,
                          degenerate_row policy) {
  const bool keep = keeps(policy);
  for (index_t i = 0; i < row.size(); ++i) {
    out[i] = narrow<O>(keep ? widen<S>(row[i]) : S{0});
  }
  return {state, S{0}, S{0}};
}

/// The retract half of the step: out = C h/‖h‖, of the image u of the row. out may be u.
template <Accumulator S, class R, class U, class O>
step_result<S> retract_image(const row_image<S>& image, const vector_view<R>& row, const vector_view<U>& u,
                             const vector_view<O>& out, S radius, degenerate_row policy) {
  if (image.state != status::ok) {
    return degenerate<S>(image.state, row, out, policy);
  }
  const scaled<S> u_norm = image.image_norm / scaled<S>(S{1}, image.exponent);
  const scaled_vector<S, std::remove_const_t<U>> step(u, radius / u_norm);  // C h/‖h‖ = C u/‖u‖
  for (index_t i = 0; i < row.size(); ++i) {
    out[i] = narrow<O>(step[i]);
  }
  return {status::ok, image.rayleigh.unscaled(), image.cosine()};
}

}  // namespace detail

/// The retract half of a step alone: out = C h/‖h‖ = C u/‖u‖ (Eq. 5) of the image u that image_of_row wrote
/// for this row; out may be u. O(D). A row without a step becomes what `policy` says. Throws usage_error on
/// sizes, on overlap other than in place, and on radius ≤ 0.
template <Accumulator S>
step_result<S> retract_image(const row_image<S>& image, std::type_identity_t<vector_view<const S>> row,
                             std::type_identity_t<vector_view<const S>> u, vector_view<S> out,
                             std::type_identity_t<S> radius, degenerate_row policy = degenerate_row::keep) {
  detail::expect_radius("retract_image", radius);
  detail::expect_same_size("retract_image", row, u, out);
  detail::expect_in_place_or_apart("retract_image", "the image", u, out);
  detail::expect_in_place_or_apart("retract_image", "the row", row, out);
  return detail::retract_image(image, row, u, out, radius, policy);
}

/// One step: out = C · rM / ‖rM‖ (Eq. 4, 5). Stateless: the row is read, the result is written elsewhere, as
/// in the authors' router, which computes r′ anew from the trained r at every forward.
///
/// row and out have D elements and do not overlap. One application of M and O(D). No scratch. A row without
/// a step (see status) becomes what `policy` says. Throws usage_error on sizes, overlap, or radius ≤ 0.
template <GramOperator Op>
step_result<scalar_of<Op>> power_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                      vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                      degenerate_row policy = degenerate_row::keep) {
  detail::expect_radius("power_step", radius);
  const auto image = detail::image_of_row("power_step", op, row, out);
  return detail::retract_image(image, row, out, out, radius, policy);
}

/// power_step that also saves what power_step_vjp needs: r′ itself, and ‖rM‖.
template <GramOperator Op>
step_result<scalar_of<Op>> power_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                      vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                      degenerate_row policy, saved_norm<scalar_of<Op>>& saved) {
  detail::expect_radius("power_step", radius);
  const auto image = detail::image_of_row("power_step", op, row, out);
  saved = image.image_norm;
  return detail::retract_image(image, row, out, out, radius, policy);
}

/// One step that writes its result back: row ← C · rM / ‖rM‖. Stateful: use it to track the principal
/// direction of a changing A, never together with the stateless form on the same row. `scratch` has D
/// elements.
template <GramOperator Op>
step_result<scalar_of<Op>> stateful_power_step(Op&& op, vector_view<scalar_of<Op>> row,
                                               vector_view<scalar_of<Op>> scratch, scalar_of<Op> radius,
                                               degenerate_row policy = degenerate_row::keep) {
  const auto result = power_step(op, row, scratch, radius, policy);
  detail::scale_into(scratch, row, scalar_of<Op>{1});
  return result;
}

MPIROUTER_END
