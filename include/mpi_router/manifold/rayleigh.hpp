// The Rayleigh quotient (Eq. 3), the tangent gradient that vanishes where it is stationary, and the alignment
// λ (Eq. 11).
#pragma once

#include <mpi_router/manifold/image.hpp>

MPIROUTER_BEGIN_TYPES

/// What the image of a row tells about it.
template <Accumulator S>
struct rayleigh_result {
  status state = status::ok;
  S rayleigh = 0;           ///< ρ = ‖rW_g‖² / ‖r‖² (Eq. 3), at most σ₁²; infinite or 0 where S cannot hold it
  S residual = 0;           ///< ‖g‖: an eigenvalue of M lies within ‖g‖ of ρ
  S relative_residual = 0;  ///< ‖g‖ / ρ = tan ψ, ψ the angle that a power step would move the row by;
                            ///< infinite where S cannot hold it
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
  const row_image<S> image = detail::image_of_row("rayleigh", op, row, residual);
  if (image.state != status::ok) {
    detail::fill_zero(residual);
    return {image.state, S{0}, S{0}, S{0}};
  }
  const auto both = detail::scale_free(residual, row, image);
  const scaled<S> tan = both.tan(row.size());
  both.gradient(image.rayleigh, residual);
  return {status::ok, image.rayleigh.unscaled(), (image.rayleigh * tan).unscaled(), tan.unscaled()};
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
