// Parts of images, and the order in which they are added: a fixed binary tree over the neurons of an expert,
// so that the bits do not depend on how many ranks share them where they are cut at its leaves.
#pragma once

#include <mpi_router/manifold/scaled.hpp>

#include <algorithm>

MPIROUTER_BEGIN
namespace detail {

/// The neurons of an expert are cut into as many leaves of the tree, equal up to rounding.
inline constexpr index_t tree_leaves = 16;
[[nodiscard]] constexpr index_t leaf_start(index_t ffn_dim, index_t leaf) noexcept {
  return ffn_dim * leaf / tree_leaves;
}
/// The leaf that a neuron is in: the last that starts at or before it.
[[nodiscard]] constexpr index_t leaf_with(index_t ffn_dim, index_t neuron) noexcept {
  return (tree_leaves * (neuron + 1) - 1) / ffn_dim;
}

/// A part of an image and of the energy in one message, D + 3 numbers: u · 2^image_exponent and energy ·
/// 2^energy_exponent. The exponents are 0 except where squares left the range of S.
template <Accumulator S>
struct partial_image {
  S* data;
  index_t dimension;

  [[nodiscard]] static constexpr index_t size(index_t dimension) noexcept { return dimension + 3; }
  [[nodiscard]] vector_view<S> image() const { return {data, dimension}; }
  [[nodiscard]] S& energy() const { return data[dimension]; }
  [[nodiscard]] S& image_exponent() const { return data[dimension + 1]; }
  [[nodiscard]] S& energy_exponent() const { return data[dimension + 2]; }

  void clear() const { std::fill_n(data, size(dimension), S{0}); }
  void set(const scaled_energy<S>& told) const {
    energy() = told.energy;
    image_exponent() = static_cast<S>(told.image_exponent);
    energy_exponent() = static_cast<S>(told.energy_exponent);
  }
  [[nodiscard]] scaled_energy<S> told() const {
    return {energy(), static_cast<int>(image_exponent()), static_cast<int>(energy_exponent())};
  }
  void copy_from(const partial_image& other) const { std::copy_n(other.data, size(dimension), data); }

  /// this += other, at the larger of the two exponents.
  void add(const partial_image& other) const {
    if (image_exponent() != other.image_exponent() || energy_exponent() != other.energy_exponent()) {
      if (other.is_zero()) return;
      if (is_zero()) return copy_from(other);
      const auto larger = image_exponent() > other.image_exponent() ? *this : other;
      const scaled_energy<S> common{S{0}, static_cast<int>(larger.image_exponent()),
                                    static_cast<int>(larger.energy_exponent())};
      raise(common);
      other.raise(common);
    }
    for (index_t d = 0; d < dimension; ++d) {
      data[d] += other.data[d];
    }
    energy() += other.energy();
  }

 private:
  [[nodiscard]] bool is_zero() const {
    return largest_magnitude_bits<S>(vector_view<const S>(image())) == 0 && energy() == S{0};
  }
  void raise(const scaled_energy<S>& to) const {
    const scaled_energy<S> from = told();
    scale_into<S>(image(), image(), {S{1}, from.image_exponent - to.image_exponent});
    set({std::ldexp(energy(), from.energy_exponent - to.energy_exponent), to.image_exponent,
         to.energy_exponent});
  }
};

/// Adds up the parts [first, end) along the tree over the leaves [low, high), where leaf_of(part) ascends and
/// is negative for one that has nothing: add(a, b) is a += b. Returns the part that holds the sum, or −1.
template <class LeafOf, class Add>
index_t add_along_tree(index_t first, index_t end, index_t low, index_t high, const LeafOf& leaf_of,
                       const Add& add) {
  while (first < end && leaf_of(first) < 0) ++first;
  while (end > first && leaf_of(end - 1) < 0) --end;
  if (end - first <= 1) return first < end ? first : -1;
  if (high - low == 1) {
    for (index_t part = first + 1; part < end; ++part) {
      if (leaf_of(part) >= 0) add(first, part);
    }
    return first;
  }
  const index_t middle = (low + high) / 2;
  index_t cut = first;
  while (cut < end && leaf_of(cut) < middle) ++cut;
  const index_t left = add_along_tree(first, cut, low, middle, leaf_of, add);
  const index_t right = add_along_tree(cut, end, middle, high, leaf_of, add);
  if (left >= 0 && right >= 0) add(left, right);
  return left >= 0 ? left : right;
}

}  // namespace detail
MPIROUTER_END
