// The multiply half of the step. It leaves the image of a row without its scale, h = r̂M/ρ, of which the rest
// is plain arithmetic:
//
//   cos ψ = 1/‖h‖    tan ψ = ‖h − r̂‖    step C h/‖h‖    ascent r̂ + t(h − r̂), t = ηρ    gradient g = ρ(h − r̂)
//
// Weights of any magnitude work, for ρ has an exponent of its own; so has h, where the row lies nearly across
// all that A sees.
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

  /// ‖h‖ = ‖r̂M‖/ρ = 1/cos ψ, where ψ is the angle between the row and its image; infinite where S cannot
  /// hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S length() const noexcept { return scaled_length().unscaled(); }
  /// The same whatever its size.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled<S> scaled_length() const noexcept {
    return image_norm / (rayleigh * row_norm);
  }
  /// cos ψ, in [0, 1]: 0 only where S cannot hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S cosine() const noexcept {
    return std::min((S{1} / scaled_length()).unscaled(), S{1});
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// r̂ = r/‖r‖, times 2^power.
template <Accumulator S, class T>
[[nodiscard]] scaled_vector<S, std::remove_const_t<T>> direction_of(const vector_view<T>& row,
                                                                    const scaled<S>& row_norm,
                                                                    int power = 0) noexcept {
  return {row, scaled<S>(S{1}, power) / row_norm};
}

/// ‖h‖ is held as a number of S up to this power of two, so that ‖h‖² is one too.
template <Accumulator S>
inline constexpr int longest_image = std::same_as<S, float> ? 60 : 500;

/// h = r̂M/ρ of the image in memory, and r̂ beside it, both times 2^-exponent. The exponent is 0 except for
/// a row so nearly across all that A sees that h would be too long for S.
template <Accumulator S, class U, class R>
struct scale_free_image {
  vector_view<const R> row;
  scaled<S> row_norm;
  int exponent;
  scaled_vector<S, U> h;
  scaled_vector<S, R> r;

  /// g/ρ = h − r̂.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S tangent(index_t i) const noexcept { return h[i] - r[i]; }
  /// tan ψ = ‖h − r̂‖. Summed elementwise: ‖h‖² − 1 would cancel.
  [[nodiscard]] scaled<S> tan(index_t n) const noexcept {
    return norm_of<S>(n, [&](index_t i) { return tangent(i); }).norm * scaled<S>(S{1}, exponent);
  }
  /// out = g = ρ(h − r̂); out may be the image.
  void gradient(const scaled<S>& rho, const vector_view<S>& out) const noexcept {
    for (index_t i = 0; i < out.size(); ++i) {
      out[i] = tangent(i);
    }
    scale_into(out, out, rho * scaled<S>(S{1}, exponent));
  }
  /// out = x · 2^-power, x = r̂ + t(h − r̂); returns the power, which is 0 except where h is long. out may be
  /// the image.
  [[nodiscard]] int ascent(const scaled<S>& t, const vector_view<S>& out) const noexcept {
    const scaled<S> step = scaled<S>(t.value, t.exponent + exponent).normalized();
    const int power = exponent > 0 && step.value != S{0} ? std::max(0, step.exponent) : 0;
    const auto start = direction_of(row, row_norm, -power);
    const S along = std::ldexp(step.value, step.exponent - power);
    for (index_t i = 0; i < out.size(); ++i) {
      out[i] = start[i] + along * tangent(i);
    }
    return power;
  }
};
template <Accumulator S, class U, class R>
[[nodiscard]] scale_free_image<S, std::remove_const_t<U>, std::remove_const_t<R>> scale_free(
    const vector_view<U>& u, const vector_view<R>& row, const row_image<S>& image) noexcept {
  const int exponent = std::max(0, image.scaled_length().normalized().exponent - longest_image<S>);
  return {row,
          image.row_norm,
          exponent,
          {u, scaled<S>(S{1}, image.exponent - exponent) / (image.rayleigh * image.row_norm)},
          direction_of(row, image.row_norm, -exponent)};
}

/// An image shorter than this has elements that are subnormal, or none: it counts as zero.
template <Accumulator S>
inline constexpr S smallest_image = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();

/// Stands for an operator that cannot multiply out of range.
struct never_again {};

/// ⟨r, u⟩ of finite vectors, each product with an exponent of its own.
template <Accumulator S, class R, class U>
[[nodiscard]] scaled<S> scaled_dot(const vector_view<R>& row, const vector_view<U>& u) noexcept {
  const auto product = [&](index_t i) {
    const auto r = scaled<S>(widen<S>(row[i])).normalized();
    return r * scaled<S>(widen<S>(u[i])).normalized();
  };
  int largest = std::numeric_limits<int>::min();
  for (index_t i = 0; i < row.size(); ++i) {
    if (const auto p = product(i); p.value != S{0}) largest = std::max(largest, p.exponent);
  }
  return {sum_terms<S>(row.size(),
                       [&](index_t i) {
                         const auto p = product(i);
                         return p.value == S{0} ? S{0} : std::ldexp(p.value, p.exponent - largest);
                       }),
          largest};
}

/// ⟨r̂, û⟩.
template <Accumulator S, class R, class U>
[[nodiscard]] scaled<S> cosine_between(const vector_view<R>& row, scaled<S> row_norm, const vector_view<U>& u,
                                       scaled<S> norm) noexcept {
  const scaled_vector<S, std::remove_const_t<R>> r(row, S{1} / row_norm);
  const scaled_vector<S, std::remove_const_t<U>> direction(u, S{1} / norm);
  const S cosine = sum_terms<S>(row.size(), [&](index_t i) { return r[i] * direction[i]; });
  return std::abs(cosine) > smallest_safe<S> ? scaled<S>(cosine) : scaled_dot<S>(row, u) / (row_norm * norm);
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
      energy_holds = is_finite(scale.energy) && scale.energy > smallest_image<S>;
    }
  }
  if (image_norm.kind == magnitude::non_finite) {
    return {.state = status::non_finite};
  }
  if (image_norm.kind == magnitude::zero || image_norm.norm.unscaled() < smallest_image<S>) {
    return {.state = status::zero_image};
  }
  row_image<S> image{.row_norm = row_norm.norm,
                     .image_norm = image_norm.norm * scaled<S>(S{1}, scale.image_exponent),
                     .exponent = scale.image_exponent};
  image.rayleigh = scaled<S>(scale.energy, scale.energy_exponent) / (image.row_norm * image.row_norm);
  if (!energy_holds) {
    const auto cosine = cosine_between<S>(row, row_norm.norm, u, image_norm.norm);
    if (!(cosine.value > S{0})) {
      return {.state = status::zero_image};
    }
    image.rayleigh = image.image_norm / image.row_norm * cosine;  // ρ = ‖r̂M‖ ⟨r̂, û⟩
  }
  image.rayleigh = image.rayleigh.normalized();
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
