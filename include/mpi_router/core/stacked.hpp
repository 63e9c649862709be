// The sum of several Gram operators: α AᵀA + β UᵀU + γ W Wᵀ of an expert's gate, up and down projections is
// the one of the stacked matrix [√α A; √β U; √γ Wᵀ].
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <algorithm>
#include <cmath>
#include <concepts>
#include <tuple>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN

/// An operator and what it counts in a sum. Build it with weighted().
template <GramOperator Op>
struct weighted_operator {
  Op op;
  scalar_of<Op> weight = 1;
};

/// weight · M. Throws usage_error unless the weight is positive and finite.
template <GramOperator Op>
[[nodiscard]] weighted_operator<Op> weighted(Op op, scalar_of<Op> weight = 1) {
  core::expect(weight > 0 && std::isfinite(weight), "weighted: a weight of ", weight,
               " is not positive and finite");
  return {std::move(op), weight};
}

/// M = Σ_k w_k M_k, the Gram operator of the matrices √w_k A_k one below the other, which are never copied.
/// Build it with stacked().
///
/// apply: one application of each M_k, images and energies added in the order given. Where all M_k show their
/// factor so does this: projections are [√w_1 A_1 x; √w_2 A_2 x; …], with F = Σ F_k, and the gradients of a
/// factored backward are to the stacked matrix, so that those to A_k are √w_k times its rows of them.
template <GramOperator First, GramOperator... Rest>
  requires(std::same_as<scalar_of<First>, scalar_of<Rest>> && ...)
class stacked_operator {
  static constexpr bool is_factored = (FactoredGramOperator<First> && ... && FactoredGramOperator<Rest>);
  static constexpr bool is_scalable = (ScalableGramOperator<First> && ... && ScalableGramOperator<Rest>);

 public:
  using scalar = scalar_of<First>;

  /// Throws usage_error on operators of different dimensions and on scratch that has not D contiguous
  /// elements.
  stacked_operator(vector_view<scalar> scratch, weighted_operator<First> first,
                   weighted_operator<Rest>... rest)
      : part_(scratch.data(), std::min(scratch.size(), static_cast<index_t>(first.op.dimension()))),
        parts_(std::move(first), std::move(rest)...) {
    const index_t d = dimension();
    core::expect(scratch.size() >= d && scratch.is_contiguous(), "stacked: the scratch has ", scratch.size(),
                 " elements, not ", d);
    for_each([&](const auto& part) {
      const auto own = static_cast<index_t>(part.op.dimension());
      core::expect(own == d, "stacked: an operator has dimension ", own, ", the first has ", d);
    });
  }

  [[nodiscard]] index_t dimension() const { return static_cast<index_t>(std::get<0>(parts_).op.dimension()); }

  /// u = xM, returns xMxᵀ.
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    auto& first = std::get<0>(parts_);
    scalar energy = first.weight * static_cast<scalar>(first.op.apply(x, u));
    scale(u, first.weight);
    for_each_after_first([&](auto& part) {
      energy += part.weight * static_cast<scalar>(part.op.apply(x, part_));
      add(u, part.weight);
    });
    return energy;
  }
  /// apply where squares leave the range of the scalar: in units of the largest of the parts.
  scaled_energy<scalar> apply_scaled(vector_view<const scalar> x, vector_view<scalar> u)
    requires is_scalable
  {
    auto& first = std::get<0>(parts_);
    auto sum = first.op.apply_scaled(x, u);
    sum.energy *= first.weight;
    scale(u, first.weight);
    for_each_after_first([&](auto& part) {
      const auto one = part.op.apply_scaled(x, part_);
      if (one.energy == scalar{0}) {
        return;  // no image, and an exponent that says nothing
      }
      if (sum.energy == scalar{0}) {
        sum = {scalar{0}, one.image_exponent, one.energy_exponent};
      }
      const int image = align(sum.image_exponent, one.image_exponent, u);
      add(u, std::ldexp(part.weight, image));
      const int most = std::max(sum.energy_exponent, one.energy_exponent);
      sum.energy = std::ldexp(sum.energy, sum.energy_exponent - most) +
                   part.weight * std::ldexp(one.energy, one.energy_exponent - most);
      sum.energy_exponent = most;
    });
    return sum;
  }

  [[nodiscard]] index_t ffn_dim() const
    requires is_factored
  {
    index_t sum = 0;
    for_each([&](const auto& part) { sum += static_cast<index_t>(part.op.ffn_dim()); });
    return sum;
  }
  /// y = the stacked matrix · x.
  void project(vector_view<const scalar> x, vector_view<scalar> y)
    requires is_factored
  {
    expect_neurons("project", y.size());
    index_t at = 0;
    for_each([&](auto& part) {
      const vector_view<scalar> own = slice(y, at, static_cast<index_t>(part.op.ffn_dim()));
      part.op.project(x, own);
      scale(own, std::sqrt(part.weight));
      at += own.size();
    });
  }
  /// u = y · the stacked matrix.
  void lift(vector_view<const scalar> y, vector_view<scalar> u)
    requires is_factored
  {
    expect_neurons("lift", y.size());
    core::expect(u.size() == dimension(), "stacked: lift to ", u.size(), " elements, not ", dimension());
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] = scalar{0};
    }
    index_t at = 0;
    for_each([&](auto& part) {
      const auto own = slice(y, at, static_cast<index_t>(part.op.ffn_dim()));
      part.op.lift(own, part_);
      add(u, std::sqrt(part.weight));
      at += own.size();
    });
  }

 private:
  void expect_neurons(const char* what, index_t size) const
    requires is_factored
  {
    core::expect(size == ffn_dim(), "stacked: ", what, " of ", size, " neurons, not ", ffn_dim());
  }

  /// Brings u and its exponent to the larger of two; returns the exponent that the other image is then times.
  static int align(int& exponent, int other, const vector_view<scalar>& u) {
    if (other > exponent) {
      scale(u, std::ldexp(scalar{1}, exponent - other));
      exponent = other;
    }
    return other - exponent;
  }
  static void scale(const vector_view<scalar>& v, scalar factor) {
    for (index_t i = 0; i < v.size(); ++i) {
      v[i] *= factor;
    }
  }
  void add(const vector_view<scalar>& u, scalar weight) const {
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] += weight * part_[i];
    }
  }
  template <class T>
  static vector_view<T> slice(const vector_view<T>& v, index_t first, index_t count) {
    return {count > 0 ? v.data() + first * v.stride() : v.data(), count, v.stride()};
  }
  template <class F>
  void for_each(const F& f) {
    std::apply([&](auto&... part) { (f(part), ...); }, parts_);
  }
  template <class F>
  void for_each(const F& f) const {
    std::apply([&](const auto&... part) { (f(part), ...); }, parts_);
  }
  template <class F>
  void for_each_after_first(const F& f) {
    std::apply([&](auto&, auto&... part) { (f(part), ...); }, parts_);
  }

  vector_view<scalar> part_;  // the image of one of them
  std::tuple<weighted_operator<First>, weighted_operator<Rest>...> parts_;
};

/// The operator of Σ_k w_k M_k; scratch: D contiguous elements, its own for each operator at work, and none
/// of what is multiplied. Throws usage_error on sizes.
///
///   auto m = stacked(scratch, weighted(gram(gate)), weighted(gram(up)), weighted(gram(down_transposed)));
template <GramOperator First, GramOperator... Rest>
[[nodiscard]] stacked_operator<First, Rest...> stacked(vector_view<scalar_of<First>> scratch,
                                                       weighted_operator<First> first,
                                                       weighted_operator<Rest>... rest) {
  return {scratch, std::move(first), std::move(rest)...};
}

MPIROUTER_END
