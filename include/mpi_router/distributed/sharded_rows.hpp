// The rows of routers whose experts are spread over ranks, everywhere the same on every rank (Eq. 4, 5, 7).
#pragma once

#include <mpi_router/distributed/sharded_call.hpp>

MPIROUTER_BEGIN

/// One layer of a sharded call: what this rank has of its experts (distributed/shards.hpp), its router [N,
/// D], whole and the same on every rank, and where its rows [N, D] go.
template <class Shard, Scalar R, WritableScalar O>
struct sharded_layer {
  Shard experts;
  matrix_view<R> router;
  matrix_view<O> rows;
};
template <class Shard, class R, class O>
sharded_layer(Shard, matrix_view<R>, matrix_view<O>) -> sharded_layer<Shard, R, O>;

namespace detail {

template <class Layer>
void expect_sharded_rows(const char* what, const layer_batch<Layer>& layers, const router_options& options,
                         const vector_view<layer_scalar<Layer>>& workspace,
                         const router_by_products<layer_scalar<Layer>>& told) {
  expect_layers(what, layers, options);
  const auto told_at = expect_by_products(what, told, {layers.total(), 0, layers.hidden_dim()}, options);
  const auto apart = joined(told_at, named_range{"the workspace", addresses(workspace)});
  expect_apart(what, apart, {});
  for (index_t l = 0; l < layers.count(); ++l) {
    expect_rows(what, "the output", layers.shape(l), layers[l].rows);
    const named_range rows{"the output", addresses(layers[l].rows)};
    expect_apart(what, rows, apart);
    expect_apart(what, named_range{"the router", addresses(layers[l].router)}, apart);
    for_each_shard_range(layers[l].experts, [&](const address_range& range) {
      expect_apart(what, named_range{"a gate matrix", range}, apart);
    });
    for (index_t other = 0; other < layers.count(); ++other) {
      expect_apart(what, rows, {{"the router", addresses(layers[other].router)}});
      if (other > l)
        expect_apart(what, rows, {{"the output of another layer", addresses(layers[other].rows)}});
      for_each_shard_range(layers[other].experts, [&](const address_range& range) {
        expect_apart(what, rows, {{"a gate matrix", range}});
      });
    }
  }
}

}  // namespace detail

/// Elements of the workspace of sharded_router_rows on this rank: O(N·D) of its own, and what it receives, at
/// most ranks · N · (D + 3) a layer. most: the most experts (of a shard of columns: columns) that any rank
/// has a part of, where the caller knows; 0: all of them.
template <class Layer>
[[nodiscard]] index_t sharded_router_rows_workspace(std::span<Layer> layers, index_t ranks,
                                                    index_t most = 0) {
  using layer = std::remove_const_t<Layer>;
  using experts = detail::experts_of<no_sum, layer, reference>;
  const detail::layer_batch<layer> batch(layers);
  return router_rows_workspace(batch.total(), batch.hidden_dim()) +
         detail::settled_scratch<experts>(batch, ranks) + experts::received(ranks, batch, most);
}
/// Of one layer.
template <class Shard, class R, class O>
[[nodiscard]] index_t sharded_router_rows_workspace(const sharded_layer<Shard, R, O>& layer, index_t ranks,
                                                    index_t most = 0) {
  return sharded_router_rows_workspace(std::span(&layer, 1), ranks, most);
}

/// The rows of the routers of all layers, as router_rows gives them, each rank multiplying by what it has:
/// row i is C · r_i M_i / ‖r_i M_i‖, options.steps times, where M_i is the sum over the ranks. Rows, statuses
/// and by-products are the same on every rank.
///
/// comm: borrowed; all ranks make the call with the same layers, shapes and options. layers: one kind of
/// shard, one D; the ranks' parts cover every neuron (every column) once, in the order of the ranks.
/// options.radius: where it is scale-free, N is that of the layer. workspace:
/// sharded_router_rows_workspace(…) elements; told: of the experts of all layers, one layer after the other,
/// and so the tape (router_tape_size({all experts, 0, D}, options)).
///
/// Cost: one read of this rank's weights, and for all layers together two small messages and one of N · (D +
/// 3) elements of S a step (as many experts as the rank with most has a part of); one more where squares left
/// the range of S. Sums go along a binary tree over sixteen blocks of neurons, so that 1, 2, 4, 8 and 16
/// ranks give the same bits where they cut F at multiples of F/16; other cuts have bits of their own, which
/// no network, number of threads or run changes. With backend_sum(comm) the library below adds instead.
/// Shards of operators are summed whole, and those of columns in rank order; squares of theirs that leave the
/// range of S give the status that says so.
///
/// Nothing is allocated. Throws usage_error on shapes, overlap, radius, steps, parts that are missing or lie
/// over each other, and a workspace that is too small: on every rank, where any has the mistake. What `comm`
/// throws passes through.
template <Communicator Comm, class Layer, class Backend = reference, class Run = serial_executor>
void sharded_router_rows(
    const Comm& comm, std::span<Layer> layers, const router_options& options,
    std::type_identity_t<vector_view<detail::layer_scalar<Layer>>> workspace,
    const std::type_identity_t<router_by_products<detail::layer_scalar<Layer>>>& told = {},
    const Backend& backend = {}, const Run& executor = {}) {
  constexpr const char* what = "sharded_router_rows";
  using layer = std::remove_const_t<Layer>;
  using S = detail::layer_scalar<layer>;
  using experts_type = detail::experts_of<Comm, layer, Backend>;
  const detail::layer_batch<layer> batch(layers);
  const index_t steps = router_rows_workspace(batch.total(), batch.hidden_dim());
  detail::workspace_pieces<S> pieces(workspace);
  const auto placements = detail::settle<experts_type>(what, comm, batch, workspace, steps, pieces, [&] {
    detail::expect_sharded_rows(what, batch, options, workspace, told);
    return detail::signature_of(what, batch, options);
  });
  const vector_view<S> step_scratch = pieces.vector(steps);
  const auto parts = detail::kind_of<layer>::template of<S>(batch, backend);
  const experts_type experts(comm, batch, parts, placements, pieces);
  detail::step_rows<S>(experts, detail::layered_rows(batch, [](const layer& l) { return l.router; }),
                       detail::layered_rows(batch, [](const layer& l) { return l.rows; }), options,
                       detail::layered_radius<S, layer>{batch, options.radius}, step_scratch, told, executor);
}
/// Of one layer.
template <Communicator Comm, class Shard, class R, class O, class Backend = reference,
          class Run = serial_executor>
void sharded_router_rows(
    const Comm& comm, const sharded_layer<Shard, R, O>& layer, const router_options& options,
    std::type_identity_t<vector_view<detail::layer_scalar<sharded_layer<Shard, R, O>>>> workspace,
    const std::type_identity_t<router_by_products<detail::layer_scalar<sharded_layer<Shard, R, O>>>>& told =
        {},
    const Backend& backend = {}, const Run& executor = {}) {
  sharded_router_rows(comm, std::span(&layer, 1), options, workspace, told, backend, executor);
}

MPIROUTER_END
