// The step of Manifold Power Iteration: multiply by M, retract onto the sphere of radius C (Eq. 4, 5).
#pragma once

#include <mpi_router/manifold/rayleigh.hpp>

MPIROUTER_BEGIN_TYPES

/// What one step tells for free.
template <Accumulator S>
struct step_result {
  status state = status::ok;
  S rayleigh = 0;  ///< ρ of the row before the step; infinite where S cannot hold it
  S cosine = 0;    ///< cos of the angle between the old row and the new one, ρ / ‖r̂M‖, in (0, 1]
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

template <Accumulator S>
void degenerate(vector_view<const S> row, vector_view<S> out, degenerate_row policy) {
  const bool keep = keeps(policy);
  for (index_t i = 0; i < row.size(); ++i) {
    out[i] = keep ? row[i] : S{0};
  }
}

}  // namespace detail

namespace detail {

/// The step, with all that is known of the image: out = C · rM / ‖rM‖, or what `policy` says.
template <GramOperator Op>
row_image<scalar_of<Op>> take_step(const char* what, Op& op, vector_view<const scalar_of<Op>> row,
                                   vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                   degenerate_row policy) {
  using S = scalar_of<Op>;
  expect_radius(what, radius);
  const auto image = apply_to_row(what, op, row, out);
  if (image.state != status::ok) {
    degenerate<S>(row, out, policy);
    return image;
  }
  const scaled<S> stored_norm{image.image_norm.value, image.image_norm.exponent - image.image_exponent};
  scale_into<S>(vector_view<const S>(out), out, scaled<S>{radius, 0} / stored_norm);
  return image;
}

template <Accumulator S>
[[nodiscard]] step_result<S> step_result_of(const row_image<S>& image) noexcept {
  if (image.state != status::ok) {
    return {image.state, S{0}, S{0}};
  }
  const S cosine = (image.rayleigh * image.row_norm / image.image_norm).unscaled();
  return {status::ok, image.rayleigh.unscaled(), std::min(cosine, S{1})};
}

}  // namespace detail

/// One step: out = C · rM / ‖rM‖ (Eq. 4, 5). Stateless: the row is read, the result is written elsewhere, as
/// in the authors' router, which computes r′ anew from the trained r at every forward.
///
/// row and out have D elements and do not overlap. One application of M and O(D). No scratch. A row without
/// a step (see status) becomes what `policy` says. Throws usage_error on sizes, overlap, or radius ≤ 0.
template <GramOperator Op>
step_result<scalar_of<Op>> power_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                      vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                      degenerate_row policy = degenerate_row::keep) {
  return detail::step_result_of(detail::take_step("power_step", op, row, out, radius, policy));
}

/// One step that writes its result back: row ← C · rM / ‖rM‖. Stateful: use it to track the principal
/// direction of a changing A, never together with the stateless form on the same row. `scratch` has D
/// elements.
template <GramOperator Op>
step_result<scalar_of<Op>> stateful_power_step(Op&& op, vector_view<scalar_of<Op>> row,
                                               vector_view<scalar_of<Op>> scratch, scalar_of<Op> radius,
                                               degenerate_row policy = degenerate_row::keep) {
  using S = scalar_of<Op>;
  const auto result = power_step(op, vector_view<const S>(row), scratch, radius, policy);
  detail::scale_into<S>(vector_view<const S>(scratch), row, {S{1}, 0});
  return result;
}

MPIROUTER_END
