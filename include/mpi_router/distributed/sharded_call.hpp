// How a call over many ranks begins: arguments, agreement, placements; and which experts a kind of shard is
// multiplied by. What sharded_rows.hpp and sharded_rows_vjp.hpp are made of.
#pragma once

#include <mpi_router/distributed/column_experts.hpp>
#include <mpi_router/distributed/neuron_experts.hpp>
#include <mpi_router/distributed/overlap.hpp>
#include <mpi_router/router/router_rows.hpp>

MPIROUTER_BEGIN
namespace detail {

/// What is multiplied on this rank, and in which type, for each kind of shard.
template <class Shard>
struct shard_kind;
template <class T>
struct shard_kind<neuron_shard<T>> {
  template <class R>
  using scalar = router_scalar_t<T, R>;
  template <class S, class Layer, class Backend>
  using parts = dense_parts<S, Layer, Backend>;
  template <class S, class Comm, class Layer, class Parts>
  using experts = neuron_experts<S, Comm, Layer, Parts>;
  template <class S, class Layer, class Backend>
  [[nodiscard]] static parts<S, Layer, Backend> of(const layer_batch<Layer>& layers, const Backend& backend) {
    return {layers, backend};
  }
};
template <class T>
struct shard_kind<column_shard<T>> {
  template <class R>
  using scalar = router_scalar_t<T, R>;
  template <class S, class Layer, class Backend>
  using parts = dense_columns<S, Layer, Backend>;
  template <class S, class Comm, class Layer, class Parts>
  using experts = column_experts<S, Comm, Layer, Parts>;
  template <class S, class Layer, class Backend>
  [[nodiscard]] static parts<S, Layer, Backend> of(const layer_batch<Layer>& layers, const Backend& backend) {
    return {layers, backend};
  }
};
template <class Operators>
struct shard_kind<operators_shard<Operators>> {
  template <class R>
  using scalar = scalar_of_operators<Operators>;
  template <class S, class Layer, class>
  using parts = operator_parts<S, Layer>;
  template <class S, class Comm, class Layer, class Parts>
  using experts = neuron_experts<S, Comm, Layer, Parts>;
  template <class S, class Layer, class Backend>
  [[nodiscard]] static operator_parts<S, Layer> of(const layer_batch<Layer>& layers, const Backend&) {
    return {layers};
  }
};
template <class Operators>
struct shard_kind<operators_columns<Operators>> {
  template <class R>
  using scalar = scalar_of_operators<Operators>;
  template <class S, class Layer, class>
  using parts = operator_columns_of<Layer>;
  template <class S, class Comm, class Layer, class Parts>
  using experts = column_experts<S, Comm, Layer, Parts>;
  template <class S, class Layer, class Backend>
  [[nodiscard]] static operator_columns_of<Layer> of(const layer_batch<Layer>& layers, const Backend&) {
    return {layers};
  }
};

template <class Layer>
using shard_of = std::remove_cvref_t<decltype(std::declval<Layer&>().experts)>;
template <class Layer>
using kind_of = shard_kind<shard_of<Layer>>;
/// The type that a layer is computed in.
template <class Layer>
using layer_scalar =
    typename kind_of<Layer>::template scalar<typename decltype(std::declval<Layer&>().router)::value_type>;
template <class Layer, class Backend>
using parts_of = typename kind_of<Layer>::template parts<layer_scalar<Layer>, Layer, Backend>;
template <class Comm, class Layer, class Backend>
using experts_of =
    typename kind_of<Layer>::template experts<layer_scalar<Layer>, Comm, Layer, parts_of<Layer, Backend>>;

/// f(range) for the memory of a shard that has any.
template <class Shard, class F>
void for_each_shard_range(const Shard& shard, const F& f) {
  if constexpr (requires { shard.local(); }) {
    for_each_range(shard.local(), f);
  }
  if constexpr (requires { shard.rows(); }) {
    f(addresses(shard.rows()));
  }
}

/// Elements of the workspace before what a call receives.
template <class Experts, class Layer, Accumulator S = layer_scalar<Layer>>
[[nodiscard]] index_t settled_scratch(const layer_batch<Layer>& layers, index_t ranks) {
  return ranks * signature_size + gathered_placements<S>::size(layers.count(), ranks) +
         Experts::own_scratch(layers);
}

/// What is the same on every rank of a call that is.
template <class Layer>
[[nodiscard]] call_signature signature_of(const char* what, const layer_batch<Layer>& layers,
                                          const router_options& options) {
  call_signature all;
  all.layers = layers.count();
  if (all.layers > 0) all.first_layer = layers.shape(0);
  all.mix(what);
  all.mix(std::uint64_t{sizeof(layer_scalar<Layer>)});
  all.mix(static_cast<std::uint64_t>(options.steps));
  all.mix(static_cast<std::uint64_t>(options.degenerate));
  all.mix(static_cast<std::uint64_t>(options.through));
  for (index_t l = 0; l < layers.count(); ++l) {
    all.mix(layers.shape(l));
    all.mix(options.radius.of(layers.shape(l).num_experts));
    all.mix(static_cast<std::uint64_t>(layers[l].experts.placement().kind == shard_placement::form::columns));
  }
  return all;
}

/// One shape of rows in every layer, one D, experts that have neurons, and options that every layer can take.
template <class Layer>
void expect_layers(const char* what, const layer_batch<Layer>& layers, const router_options& options) {
  for (index_t l = 0; l < layers.count(); ++l) {
    const expert_shape& whole = layers.shape(l);
    expect(whole.hidden_dim == layers.hidden_dim(), what, ": layer ", l, " has D = ", whole.hidden_dim,
           ", the first has ", layers.hidden_dim());
    expect(whole.ffn_dim > 0 || whole.num_experts == 0, what, ": layer ", l, " has experts without neurons");
    static_cast<void>(expect_options<layer_scalar<Layer>>(what, options, whole.num_experts));
    expect_rows(what, "the router", whole, layers[l].router);
  }
}

/// Every rank knows where the parts of all lie, and that there is room for what it will receive; or all
/// throw. `pieces` stands where the workspace begins, of which `before` elements are used otherwise.
template <class Experts, class Comm, class Layer, class Check, Accumulator S = layer_scalar<Layer>>
[[nodiscard]] gathered_placements<S> settle(const char* what, const Comm& comm,
                                            const layer_batch<Layer>& layers, const vector_view<S>& workspace,
                                            index_t before, workspace_pieces<S>& pieces, const Check& check) {
  const auto ranks = static_cast<index_t>(comm.size());
  const index_t used = before + settled_scratch<Experts>(layers, ranks);
  agree<S>(
      what, comm,
      [&] {
        call_signature signature = check();
        signature.mix(std::uint64_t{core::overlaps_layers<Comm>});
        signature.mix(std::uint64_t{core::sums_by_backend<Comm>});
        expect_workspace(what, workspace, used);
        return signature;
      },
      [&] { return pieces.vector(ranks * signature_size); });
  gathered_placements<S> placements(pieces.vector(gathered_placements<S>::size(layers.count(), ranks)),
                                    layers.count(), ranks);
  for (index_t l = 0; l < layers.count(); ++l) placements.put(l, layers[l].experts.placement());
  placements.gather(comm, workspace.size() - used);
  const index_t needed = Experts::needed(layers, placements);
  for (index_t rank = 0; rank < ranks; ++rank) {
    expect(placements.room(rank) >= needed, what, ": the workspace of rank ", rank, " has room for ",
           placements.room(rank), " elements of the others, which send ", needed,
           ": say the most experts, or columns, of a rank in its size");
  }
  // Where the rest will be is free as yet.
  workspace_pieces<S> rest = pieces;
  Experts::expect_whole(what, layers, placements, rest.vector(layers.total()));
  return placements;
}

}  // namespace detail
MPIROUTER_END
