// Operators made from other things: a callable, or a shard whose partial images the caller sums.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <type_traits>
#include <utility>

MPIROUTER_BEGIN

/// A GramOperator from a callable `energy = f(x, u)` over views of S. Build it with gram_operator().
template <Accumulator S, class Callable>
class callable_operator {
 public:
  using scalar = S;
  callable_operator(index_t dimension, Callable callable)
      : dimension_(dimension), callable_(std::move(callable)) {
    core::expect(dimension >= 0, "gram_operator: negative dimension ", dimension);
  }
  [[nodiscard]] index_t dimension() const noexcept { return dimension_; }
  S apply(vector_view<const S> x, vector_view<S> u) { return callable_(x, u); }

 private:
  index_t dimension_;
  Callable callable_;
};

/// Makes a lambda an operator: `gram_operator<double>(D, [&](auto x, auto u) { …; return energy; })`,
/// where u = xM is written and xMxᵀ returned.
template <Accumulator S, class Callable>
  requires std::is_invocable_r_v<S, Callable&, vector_view<const S>, vector_view<S>>
[[nodiscard]] callable_operator<S, Callable> gram_operator(index_t dimension, Callable callable) {
  return {dimension, std::move(callable)};
}

/// The partial form. The neurons of an expert (rows of A) are spread over shards, M = Σ_s A_sᵀA_s; this shard
/// gives its contribution to the image and to the energy, and `reduce(u, energy)` replaces both by their
/// sums over the shards, an all-reduce say, before anything is normalised. Every shard then goes on with the
/// same bits, if the reduction gives every shard the same bits.
///
/// Sharding along D goes through FactoredGramOperator: project, reduce the projection, lift.
template <GramOperator Shard, class Reduce>
  requires std::is_invocable_v<Reduce&, vector_view<scalar_of<Shard>>, scalar_of<Shard>&>
class reduced_operator {
 public:
  using scalar = scalar_of<Shard>;
  reduced_operator(Shard shard, Reduce reduce) : shard_(std::move(shard)), reduce_(std::move(reduce)) {}
  [[nodiscard]] index_t dimension() const noexcept { return shard_.dimension(); }
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    scalar energy = shard_.apply(x, u);
    reduce_(u, energy);
    return energy;
  }

 private:
  Shard shard_;
  Reduce reduce_;
};

MPIROUTER_END
