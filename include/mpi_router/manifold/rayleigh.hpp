// The Rayleigh quotient (Eq. 3), the tangent gradient that vanishes where it is stationary, and the alignment
// λ (Eq. 11).
#pragma once

#include <mpi_router/manifold/sphere.hpp>

#include <utility>

MPIROUTER_BEGIN

namespace detail {

/// A row and its image under M, each with its scale, and the Rayleigh quotient that comes with them.
template <Accumulator S>
struct row_image {
  status state = status::ok;
  scaled<S> row_norm;
  scaled<S> image_norm;    ///< ‖rM‖, the power of two of the image included
  scaled<S> rayleigh;      ///< ρ = rMrᵀ / ‖r‖²
  int image_exponent = 0;  ///< rM = u · 2^image_exponent
};

/// Below this the squares that went into an image may have lost bits to underflow.
template <Accumulator S>
[[nodiscard]] inline S smallest_safe() noexcept {
  return std::numeric_limits<S>::min() /
         (std::numeric_limits<S>::epsilon() * std::numeric_limits<S>::epsilon());
}

/// ⟨x, u⟩ / (‖x‖ ‖u‖).
template <Accumulator S>
[[nodiscard]] S scaled_dot(vector_view<const S> x, const scaled<S>& x_norm, vector_view<const S> u,
                           const scaled<S>& u_norm) noexcept {
  const scaler<S> x_scale(scaled<S>{S{1}, 0} / x_norm);
  const scaler<S> u_scale(scaled<S>{S{1}, 0} / u_norm);
  S sum{0};
  for (index_t i = 0; i < x.size(); ++i) {
    sum += x_scale(x[i]) * u_scale(u[i]);
  }
  return sum;
}

/// u = rM up to a power of two. One application, one more where the plain one left the range of S.
template <GramOperator Op>
[[nodiscard]] row_image<scalar_of<Op>> apply_to_row(const char* what, Op& op,
                                                    vector_view<const scalar_of<Op>> row,
                                                    vector_view<scalar_of<Op>> u) {
  using S = scalar_of<Op>;
  const auto dimension = static_cast<index_t>(op.dimension());
  expect(row.size() == dimension && u.size() == dimension, what, ": the operator has dimension ", dimension,
         ", the row ", row.size(), " and the output ", u.size(), " elements");
  expect(!overlap(row, u), what, ": the row and the output overlap");

  row_image<S> result;
  const auto row_norm = norm<S>(row);
  result.state = row_status(row_norm);
  result.row_norm = row_norm.norm;
  if (result.state != status::ok) {
    return result;
  }

  scaled_energy<S> energy{static_cast<S>(op.apply(row, u)), 0, 0};
  auto image_norm = norm<S>(vector_view<const S>(u));
  if constexpr (ScalableGramOperator<Op>) {
    const bool in_range = image_norm.kind == magnitude::finite && is_finite(energy.energy) &&
                          std::min(image_norm.norm.unscaled(), energy.energy) > smallest_safe<S>();
    if (!in_range) {
      energy = op.apply_scaled(row, u);
      image_norm = norm<S>(vector_view<const S>(u));
    }
  }
  if (image_norm.kind != magnitude::finite) {
    result.state = image_norm.kind == magnitude::zero ? status::zero_image : status::non_finite;
    return result;
  }
  result.image_exponent = energy.image_exponent;
  result.image_norm = {image_norm.norm.value, image_norm.norm.exponent + energy.image_exponent};
  result.rayleigh = scaled<S>{energy.energy, energy.energy_exponent} / (result.row_norm * result.row_norm);
  if (!(is_finite(energy.energy) && energy.energy > smallest_safe<S>()) && !ScalableGramOperator<Op>) {
    // The energy left the range of S, the image has not: ρ = ‖rM‖ / ‖r‖ · ⟨r, rM⟩ / (‖r‖ ‖rM‖).
    const S cosine = scaled_dot<S>(row, result.row_norm, vector_view<const S>(u), image_norm.norm);
    result.rayleigh = result.image_norm * scaled<S>{cosine, 0} / result.row_norm;
    result.state = cosine > 0 ? status::ok : status::zero_image;
  }
  return result;
}

}  // namespace detail

namespace detail {

/// image ← h = r̂M/ρ − r̂ = g/ρ, the residual relative to ρ: it has no scale. Returns ‖h‖ = ‖g‖/ρ = tan ψ.
/// Summed elementwise, since ‖r̂M‖² − ρ² would cancel.
template <Accumulator S>
S relative_residual(const row_image<S>& at, vector_view<const S> row, vector_view<S> image) noexcept {
  const scaler<S> image_scale(scaled<S>{S{1}, at.image_exponent} / (at.rayleigh * at.row_norm));
  const scaler<S> row_scale(scaled<S>{S{1}, 0} / at.row_norm);
  for (index_t i = 0; i < row.size(); ++i) {
    image[i] = image_scale(image[i]) - row_scale(row[i]);
  }
  return norm<S>(vector_view<const S>(image)).norm.unscaled();
}

}  // namespace detail

MPIROUTER_END

MPIROUTER_BEGIN_TYPES

/// What the image of a row tells about it.
template <Accumulator S>
struct rayleigh_result {
  status state = status::ok;
  S rayleigh = 0;  ///< ρ = ‖rW_g‖² / ‖r‖² (Eq. 3), at most σ₁²; infinite or 0 where S cannot hold it
  S residual = 0;  ///< ‖g‖: an eigenvalue of M lies within ‖g‖ of ρ
  S relative_residual =
      0;  ///< ‖g‖ / ρ = tan ψ, ψ the angle that a power step would move the row by; always in range
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The Rayleigh quotient ρ of a row and its residual g = r̂M − ρ r̂, the gradient of ρ on the sphere up
/// to a factor 2, written to `residual`. One application of M and O(D). A row without a quotient (see status)
/// gives zeros. Throws usage_error on sizes that differ or overlap.
template <GramOperator Op>
rayleigh_result<scalar_of<Op>> rayleigh(Op&& op, vector_view<const scalar_of<Op>> row,
                                        vector_view<scalar_of<Op>> residual) {
  using S = scalar_of<Op>;
  const auto at = detail::apply_to_row("rayleigh", op, row, residual);
  if (at.state != status::ok) {
    for (index_t i = 0; i < residual.size(); ++i) {
      residual[i] = S{0};
    }
    return {at.state, S{0}, S{0}, S{0}};
  }
  const S relative = detail::relative_residual<S>(at, row, residual);
  detail::scale_into<S>(vector_view<const S>(residual), residual, at.rayleigh);
  return {status::ok, at.rayleigh.unscaled(), (at.rayleigh * detail::scaled<S>{relative, 0}).unscaled(),
          relative};
}

/// λ with the spectral norm: ‖rW_g‖ / (‖r‖ σ₁) = √ρ / σ₁, in [0, 1]; 1 only for a principal direction.
template <Accumulator S>
[[nodiscard]] S alignment_spectral(S rayleigh, std::type_identity_t<S> sigma_1) {
  return std::sqrt(rayleigh) / sigma_1;
}
/// λ with the Frobenius norm: ‖rW_g‖ / (‖r‖ ‖W_g‖_F) = √ρ / ‖A‖_F; at most σ₁ / ‖A‖_F.
template <Accumulator S>
[[nodiscard]] S alignment_frobenius(S rayleigh, std::type_identity_t<S> frobenius_norm) {
  return std::sqrt(rayleigh) / frobenius_norm;
}

MPIROUTER_END
