// The sphere of radius C on which the rows r′ lie: retraction, tangent space, distance (Eq. 5).
#pragma once

#include <mpi_router/manifold/scaled.hpp>

#include <type_traits>

MPIROUTER_BEGIN

namespace detail {
template <class V, class... W>
void expect_same_size(const char* what, const V& a, const W&... others) {
  (expect(a.size() == others.size(), what, ": vectors of ", a.size(), " and ", others.size(), " elements"),
   ...);
}
/// Elementwise work may be done in place, but not on vectors that are shifted against each other.
template <class V, class W>
void expect_in_place_or_apart(const char* what, const char* name, const V& in, const W& out) {
  const bool in_place = in.data() == out.data() && in.stride() == out.stride();
  expect(in_place || !overlap(in, out), what, ": ", name, " and the output overlap");
}
template <Accumulator S>
void expect_radius(const char* what, S radius) {
  expect(is_finite(radius) && radius > S{0}, what, ": the radius must be positive and finite, not ", radius);
}
template <Accumulator S>
[[nodiscard]] constexpr status row_status(const scaled_norm<S>& row) noexcept {
  switch (row.kind) {
    case magnitude::zero: return status::zero_row;
    case magnitude::finite: return status::ok;
    case magnitude::non_finite: break;
  }
  return status::non_finite;
}
}  // namespace detail

/// Retraction onto the sphere (Eq. 5): out = C · x / ‖x‖. out may be x. O(D).
/// A zero or non-finite x is copied as it is and named by the status. Throws usage_error on sizes that
/// differ, that overlap without being the same, or on a radius that is not positive.
template <Accumulator S>
status retract(std::type_identity_t<vector_view<const S>> x, vector_view<S> out,
               std::type_identity_t<S> radius) {
  detail::expect_same_size("retract", x, out);
  detail::expect_radius("retract", radius);
  detail::expect_in_place_or_apart("retract", "the vector", x, out);
  const auto length = detail::norm<S>(x);
  const status result = detail::row_status(length);
  detail::scale_into(x, out, result == status::ok ? radius / length.norm : S{1});
  return result;
}

/// Orthogonal projection onto the tangent space at `base`: out = v − (v · b̂) b̂ with b̂ = base / ‖base‖.
/// out may be v, or base. O(D). At a zero base every direction is tangent: out = v. Throws usage_error on
/// sizes that differ and on vectors that overlap without being the same.
template <Accumulator S>
status project_to_tangent(std::type_identity_t<vector_view<const S>> base,
                          std::type_identity_t<vector_view<const S>> v, vector_view<S> out) {
  detail::expect_same_size("project_to_tangent", base, v, out);
  detail::expect_in_place_or_apart("project_to_tangent", "the base", base, out);
  detail::expect_in_place_or_apart("project_to_tangent", "the vector", v, out);
  const auto length = detail::norm<S>(base);
  if (length.kind != detail::magnitude::finite) {
    detail::scale_into(v, out, S{1});
    return detail::row_status(length);
  }
  const detail::scaled_vector<S> unit(base, S{1} / length.norm);
  const S along = detail::sum_terms<S>(v.size(), [&](index_t i) { return v[i] * unit[i]; });
  for (index_t i = 0; i < v.size(); ++i) {
    out[i] = v[i] - along * unit[i];
  }
  return status::ok;
}

/// The angle between x and y in radians, in [0, π]. Accurate for angles near 0 and π too, where the arc
/// cosine is not (Kahan: 2 atan2(‖x̂ − ŷ‖, ‖x̂ + ŷ‖)). NaN where either is zero or non-finite. O(D).
template <Accumulator S>
[[nodiscard]] S angle(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y) {
  detail::expect_same_size("angle", x, y);
  const auto nx = detail::norm<S>(x);
  const auto ny = detail::norm<S>(y);
  if (nx.kind != detail::magnitude::finite || ny.kind != detail::magnitude::finite) {
    return std::numeric_limits<S>::quiet_NaN();
  }
  const detail::scaled_vector<S> unit_x(x, S{1} / nx.norm);
  const detail::scaled_vector<S> unit_y(y, S{1} / ny.norm);
  const auto squared = [](S value) { return value * value; };
  const S apart = detail::sum_terms<S>(x.size(), [&](index_t i) { return squared(unit_x[i] - unit_y[i]); });
  const S together =
      detail::sum_terms<S>(x.size(), [&](index_t i) { return squared(unit_x[i] + unit_y[i]); });
  return S{2} * std::atan2(std::sqrt(apart), std::sqrt(together));
}

/// The angle between the lines through x and y, in [0, π/2]: a singular direction has no sign.
template <Accumulator S>
[[nodiscard]] S line_angle(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y) {
  constexpr S pi = static_cast<S>(3.141592653589793238462643383279502884L);
  const S theta = angle<S>(x, y);
  return theta > pi / S{2} ? pi - theta : theta;
}

/// Geodesic distance of the directions of x and y on the sphere of radius C: C times the angle.
template <Accumulator S>
[[nodiscard]] S geodesic_distance(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y,
                                  std::type_identity_t<S> radius = S{1}) {
  detail::expect_radius("geodesic_distance", radius);
  return radius * angle<S>(x, y);
}

MPIROUTER_END
