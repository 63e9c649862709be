// Operators made from other things: a callable, a shard whose partial images the caller sums, a latent
// expert.
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <concepts>
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

/// M of a latent expert, whose gate matrix A acts on P x: M = PᵀAᵀA P, and its factor is A P, which is never
/// formed. Build it with composed().
template <FactoredGramOperator Projection, GramOperator Inner>
  requires std::same_as<scalar_of<Projection>, scalar_of<Inner>>
class composed_operator {
 public:
  using scalar = scalar_of<Inner>;
  composed_operator(Projection projection, Inner inner, vector_view<scalar> scratch)
      : projection_(std::move(projection)), inner_(std::move(inner)), latent_dim_(projection_.ffn_dim()) {
    core::expect(static_cast<index_t>(inner_.dimension()) == latent_dim_, "composed: P is [L = ", latent_dim_,
                 ", D = ", dimension(), "], the inner operator has dimension ", inner_.dimension());
    core::expect(scratch.size() >= 2 * latent_dim_ && scratch.is_contiguous(), "composed: the scratch has ",
                 scratch.size(), " elements, not ", 2 * latent_dim_);
    latent_ = {scratch.data(), latent_dim_};
    image_ = {scratch.data() + latent_dim_, latent_dim_};
  }
  [[nodiscard]] index_t dimension() const noexcept { return projection_.dimension(); }
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    projection_.project(x, latent_);
    const scalar energy = inner_.apply(latent_, image_);
    projection_.lift(image_, u);
    return energy;
  }

  [[nodiscard]] index_t ffn_dim() const noexcept
    requires FactoredGramOperator<Inner>
  {
    return inner_.ffn_dim();
  }
  void project(vector_view<const scalar> x, vector_view<scalar> y)
    requires FactoredGramOperator<Inner>
  {
    projection_.project(x, latent_);
    inner_.project(latent_, y);
  }
  void lift(vector_view<const scalar> y, vector_view<scalar> u)
    requires FactoredGramOperator<Inner>
  {
    inner_.lift(y, image_);
    projection_.lift(image_, u);
  }

 private:
  Projection projection_;
  Inner inner_;
  index_t latent_dim_;
  vector_view<scalar> latent_;  // P x
  vector_view<scalar> image_;   // P x M of the inner operator
};

/// The operator of a latent expert: `projection` shows P [L, D] by project and lift, as gram(P) does; `inner`
/// is that of A, of dimension L; scratch: 2 L contiguous elements, its own for each operator at work. What is
/// multiplied with must not be in it. Throws usage_error on sizes.
template <FactoredGramOperator Projection, GramOperator Inner>
[[nodiscard]] composed_operator<Projection, Inner> composed(Projection projection, Inner inner,
                                                            vector_view<scalar_of<Inner>> scratch) {
  return {std::move(projection), std::move(inner), scratch};
}

MPIROUTER_END
