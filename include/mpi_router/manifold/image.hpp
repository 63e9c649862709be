// The multiply half of the step. It leaves the image of a row without its scale, h = r̂M/ρ, of which the rest
// is plain arithmetic:
//
//   cos ψ = 1/‖h‖    tan ψ = ‖h − r̂‖    step C h/‖h‖    ascent r̂ + t(h − r̂), t = ηρ    gradient g = ρ(h − r̂)
//
// Only ρ has an exponent of its own, so that weights of any magnitude work.
#pragma once

#include <mpi_router/manifold/sphere.hpp>

MPIROUTER_BEGIN_TYPES

/// What is known of a row r and its image rM, besides the image itself.
template <Accumulator S>
struct row_image {
  status state = status::ok;  ///< ok, zero_row, zero_image or non_finite; the rest is told of `ok` alone
  scaled<S> row_norm{};       ///< ‖r‖
  scaled<S> image_norm{};     ///< ‖rM‖
  scaled<S> rayleigh{};       ///< ρ = rMrᵀ / ‖r‖² (Eq. 3)
  int exponent = 0;           ///< rM = u · 2^exponent, u the image in memory

  /// ‖h‖ = ‖r̂M‖/ρ = 1/cos ψ, where ψ is the angle between the row and its image.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S length() const noexcept {
    return (image_norm / (rayleigh * row_norm)).unscaled();
  }
  /// cos ψ, in (0, 1].
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S cosine() const noexcept { return std::min(S{1} / length(), S{1}); }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// r̂ = r/‖r‖.
template <Accumulator S, class T>
[[nodiscard]] scaled_vector<S, std::remove_const_t<T>> direction_of(const vector_view<T>& row,
                                                                    const row_image<S>& image) noexcept {
  return {row, S{1} / image.row_norm};
}
/// h = r̂M/ρ, of the image in memory.
template <Accumulator S, class T>
[[nodiscard]] scaled_vector<S, std::remove_const_t<T>> scale_free(const vector_view<T>& u,
                                                                  const row_image<S>& image) noexcept {
  return {u, scaled<S>(S{1}, image.exponent) / (image.rayleigh * image.row_norm)};
}

/// tan ψ = ‖h − r̂‖. Summed elementwise: ‖h‖² − 1 would cancel.
template <Accumulator S, class T>
[[nodiscard]] S tangent(const scaled_vector<S>& h, const scaled_vector<S, T>& r, index_t n) noexcept {
  return norm_of<S>(n, [&](index_t i) { return h[i] - r[i]; }).norm.unscaled();
}

/// Below this the squares that went into an image may have lost bits to underflow.
template <Accumulator S>
inline constexpr S smallest_safe =
    std::numeric_limits<S>::min() / (std::numeric_limits<S>::epsilon() * std::numeric_limits<S>::epsilon());
/// An image shorter than this has elements that are subnormal, or none: it counts as zero where it cannot be
/// had anew.
template <Accumulator S>
inline constexpr S smallest_image = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();
/// ‖h‖ is taken to be this at most: so that ‖h‖² is in range, a row nearer than that to the null space of M
/// has a ρ that is a little too large.
template <Accumulator S>
inline constexpr S longest_image = static_cast<S>(std::same_as<S, float> ? 0x1p60 : 0x1p500);

/// Stands for an operator that cannot multiply out of range.
struct never_again {};

/// ⟨r̂, û⟩.
template <Accumulator S, class R, class U>
[[nodiscard]] S cosine_between(const vector_view<R>& row, scaled<S> row_norm, const vector_view<U>& u,
                               scaled<S> norm) noexcept {
  const scaled_vector<S, std::remove_const_t<R>> r(row, S{1} / row_norm);
  const scaled_vector<S, std::remove_const_t<U>> direction(u, S{1} / norm);
  return sum_terms<S>(row.size(), [&](index_t i) { return r[i] * direction[i]; });
}

/// What is known of the image u of a row from its energy. Where squares have left the range of S, `again()`
/// multiplies anew and gives a scaled_energy; without it, ρ comes from the image.
template <Accumulator S, class R, class U, class Again>
[[nodiscard]] row_image<S> measure_image(const vector_view<R>& row, const vector_view<U>& u, S energy,
                                         const Again& again) {
  const auto row_norm = norm<S>(row);
  if (row_norm.kind != magnitude::finite) return {.state = row_status(row_norm)};
  auto image_norm = norm<S>(u);
  scaled_energy<S> scale{energy, 0, 0};
  bool energy_holds = is_finite(energy) && energy > smallest_safe<S>;
  if constexpr (!std::same_as<Again, never_again>) {
    const bool image_holds =
        image_norm.kind == magnitude::finite && image_norm.norm.unscaled() > smallest_safe<S>;
    if (!energy_holds || !image_holds) {
      scale = again();
      image_norm = norm<S>(u);
      energy_holds = true;
    }
  }
  if (image_norm.kind == magnitude::non_finite) {
    return {.state = status::non_finite};
  }
  if (image_norm.kind == magnitude::zero ||
      (std::same_as<Again, never_again> && image_norm.norm.unscaled() < smallest_image<S>)) {
    return {.state = status::zero_image};
  }
  row_image<S> image{.row_norm = row_norm.norm,
                     .image_norm = image_norm.norm * scaled<S>(S{1}, scale.image_exponent),
                     .exponent = scale.image_exponent};
  image.rayleigh = scaled<S>(scale.energy, scale.energy_exponent) / (image.row_norm * image.row_norm);
  if (!energy_holds) {
    const S cosine = cosine_between<S>(row, row_norm.norm, u, image_norm.norm);
    if (!(cosine > S{0})) {
      return {.state = status::zero_image};
    }
    image.rayleigh = image.image_norm / image.row_norm * cosine;  // ρ = ‖r̂M‖ ⟨r̂, û⟩
  }
  if (!(image.length() < longest_image<S>)) {
    image.rayleigh = image.image_norm / image.row_norm / longest_image<S>;
  }
  return image;
}

template <GramOperator Op>
[[nodiscard]] row_image<scalar_of<Op>> image_of_row(const char* what, Op& op,
                                                    vector_view<const scalar_of<Op>> row,
                                                    vector_view<scalar_of<Op>> u) {
  const auto dimension = static_cast<index_t>(op.dimension());
  expect(row.size() == dimension && u.size() == dimension, what, ": the operator has dimension ", dimension,
         ", the row ", row.size(), " and the output ", u.size(), " elements");
  expect(!overlap(row, u), what, ": the row and the output overlap");
  const auto energy = static_cast<scalar_of<Op>>(op.apply(row, u));
  if constexpr (ScalableGramOperator<Op>) {
    return measure_image(row, u, energy, [&] { return op.apply_scaled(row, u); });
  } else {
    return measure_image(row, u, energy, never_again{});
  }
}

}  // namespace detail

/// The multiply half of a step alone: writes the image u and tells what is known of it; retract_image
/// (power_step.hpp) is the other half. One application of M, one more where the first left the range of S and
/// the operator can; O(D). Throws usage_error on sizes and overlap.
template <GramOperator Op>
[[nodiscard]] row_image<scalar_of<Op>> image_of_row(Op&& op, vector_view<const scalar_of<Op>> row,
                                                    vector_view<scalar_of<Op>> u) {
  return detail::image_of_row("image_of_row", op, row, u);
}

MPIROUTER_END
