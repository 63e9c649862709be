// The backward of sharded_router_rows: gradients to the routers, the same on every rank, and of each rank's
// weights to that rank alone.
#pragma once

#include <mpi_router/distributed/sharded_targets.hpp>
#include <mpi_router/distributed/tokens_of_rows.hpp>

MPIROUTER_BEGIN

/// One layer of the backward: experts and router as in the forward; the gradient of its rows, [N, D]; where
/// those to the router, [N, D], and to this rank's weights go. grad_experts: for dense shards one of the same
/// placement, in any storage type; for whole experts, neurons and operators, and for columns, router_factors
/// (of {experts here, neurons of each here, D}, of {N, F, D} for columns); or no_gradient.
template <class Shard, Scalar R, Scalar GR, WritableScalar RG, class Gradient>
struct sharded_layer_vjp {
  Shard experts;
  matrix_view<R> router;
  matrix_view<GR> grad_rows;
  matrix_view<RG> grad_router;
  Gradient grad_experts;
};
template <class Shard, class R, class GR, class RG, class Gradient>
sharded_layer_vjp(Shard, matrix_view<R>, matrix_view<GR>, matrix_view<RG>, Gradient)
    -> sharded_layer_vjp<Shard, R, GR, RG, Gradient>;

namespace detail {

/// f(range) for the memory of a layer's gradient to the experts that are here.
template <Accumulator S, class Layer, class F>
void for_each_gradient_range(const Layer& layer, const F& f) {
  if constexpr (std::same_as<gradient_of<Layer>, router_factors<S>>) {
    f(addresses(layer.grad_experts.elements()));
  } else if constexpr (!std::same_as<gradient_of<Layer>, no_gradient>) {
    for_each_shard_range(layer.grad_experts, f);
  }
}

/// What a layer's backward writes meets nothing of another layer, or of its own, but its grad_rows.
template <Accumulator S, class Layer>
void expect_layers_apart(const char* what, const Layer& layer, const Layer& other, bool is_later) {
  const named_range to_router{"the gradient to the router", addresses(layer.grad_router)};
  const named_range router{"the router", addresses(other.router)};
  expect_apart(what, to_router, {router});
  if (is_later) expect_apart(what, to_router, {{"that of another layer", addresses(other.grad_router)}});
  for_each_shard_range(other.experts, [&](const address_range& range) {
    expect_apart(what, named_range{"a gate matrix", range}, {to_router});
  });
  for_each_gradient_range<S>(layer, [&](const address_range& range) {
    const named_range to_experts{"the gradient to the experts", range};
    expect_apart(what, to_experts,
                 {router,
                  {"the gradient to the router", addresses(other.grad_router)},
                  {"the gradient of the rows", addresses(other.grad_rows)}});
    for_each_shard_range(other.experts, [&](const address_range& weights) {
      expect_apart(what, to_experts, {{"a gate matrix", weights}});
    });
    if (!is_later) return;
    for_each_gradient_range<S>(other, [&](const address_range& theirs) {
      expect_apart(what, to_experts, {{"that of another layer", theirs}});
    });
  });
}

template <class Layer>
void expect_sharded_backward(const char* what, const layer_batch<Layer>& layers,
                             const router_options& options,
                             const vector_view<const layer_scalar<Layer>>& tape, gradient_mode mode,
                             const vector_view<layer_scalar<Layer>>& workspace) {
  using S = layer_scalar<Layer>;
  expect_layers(what, layers, options);
  static_cast<void>(accumulates(mode));
  const index_t taped = router_tape_size({layers.total(), 0, layers.hidden_dim()}, options);
  expect(tape.size() >= taped && tape.is_contiguous(), what, ": the tape has ", tape.size(),
         " elements, not ", taped);
  const named_range work{"the workspace", addresses(workspace)};
  const named_range saved{"the tape", first_elements(tape, taped)};
  expect_apart(what, work, {saved});
  for (index_t l = 0; l < layers.count(); ++l) {
    const Layer& layer = layers[l];
    expect_rows(what, "the gradient of the rows", layers.shape(l), layer.grad_rows);
    expect_rows(what, "the gradient to the router", layers.shape(l), layer.grad_router);
    expect_gradient<S>(what, layer, options);
    expect_apart(what, named_range{"the gradient to the router", addresses(layer.grad_router)},
                 {work, saved});
    expect_apart(
        what, work,
        {{"the gradient of the rows", addresses(layer.grad_rows)}, {"the router", addresses(layer.router)}});
    for_each_shard_range(layer.experts, [&](const address_range& range) {
      expect_apart(what, named_range{"a gate matrix", range}, {work});
    });
    for_each_gradient_range<S>(layer, [&](const address_range& range) {
      expect_apart(what, named_range{"the gradient to the experts", range}, {work, saved});
    });
    for (index_t other = 0; other < layers.count(); ++other) {
      expect_layers_apart<S>(what, layer, layers[other], other > l);
    }
  }
}

/// sums, of this rank, becomes the sum over all, in rank order; as many rows in a message as there is room
/// for.
template <Accumulator S, class Comm, class Run>
void sum_over_ranks(const char* what, const Comm& comm, const matrix_view<S>& sums,
                    const gathered_placements<S>& placements, S* all, const Run& executor) {
  const index_t d = sums.cols();
  if constexpr (core::sums_by_backend<Comm>) {
    comm.all_reduce_sum(vector_view<S>(sums.data(), sums.rows() * d));
    return;
  }
  const index_t ranks = placements.ranks();
  index_t room = placements.room(0);
  for (index_t rank = 1; rank < ranks; ++rank) room = std::min(room, placements.room(rank));
  const index_t most = d == 0 ? sums.rows() : std::min(sums.rows(), room / (ranks * d));
  expect(most > 0 || sums.rows() == 0, what, ": the workspace has no room for a row of each rank");
  for (index_t first = 0; first < sums.rows(); first += most) {
    const index_t rows = std::min(most, sums.rows() - first);
    comm.all_gather(vector_view<const S>(sums.data() + first * d, rows * d),
                    vector_view<S>(all, ranks * rows * d));
    executor(rows, [&](index_t i) {
      const auto sum = sums.row(first + i);
      for (index_t k = 0; k < d; ++k) {
        S total = all[i * d + k];
        for (index_t rank = 1; rank < ranks; ++rank) total += all[(rank * rows + i) * d + k];
        sum[k] = total;
      }
    });
  }
}

template <Accumulator S, class Layer, class Run>
void write_router_gradients(const layer_batch<Layer>& layers, const matrix_view<S>& gradient, bool accumulate,
                            const Run& executor) {
  executor(gradient.rows(), [&](index_t i) {
    const auto [layer, expert] = layers.find(i);
    const auto out = layers[layer].grad_router.row(expert);
    using element = typename std::remove_cvref_t<decltype(out)>::value_type;
    for (index_t k = 0; k < gradient.cols(); ++k) {
      out[k] = narrow<element>(accumulate ? widen<S>(out[k]) + gradient(i, k) : gradient(i, k));
    }
  });
}

/// use(the gradients of the rows), which are whole on every rank: as they are, or summed into `sums`, by
/// messages in `scratch`.
template <Accumulator S, class Comm, class Layer, class Placements, class Run, class Use>
void with_whole_gradients(const char* what, tokens_of_rows tokens, const Comm& comm,
                          const layer_batch<Layer>& batch, const Placements& placements,
                          const matrix_view<S>& sums, S* scratch, const Run& executor, const Use& use) {
  const layered_rows grad_rows(batch, [](const Layer& l) { return l.grad_rows; });
  switch (tokens) {
    case tokens_of_rows::same_on_all_ranks: return use(grad_rows);
    case tokens_of_rows::split_over_ranks:
      executor(batch.total(), [&](index_t i) { copy_into<S>(grad_rows.row(i), sums.row(i)); });
      sum_over_ranks<S>(what, comm, sums, placements, scratch, executor);
      return use(sums);
  }
  core::unknown_value("tokens_of_rows", tokens);
}

}  // namespace detail

/// Elements of the workspace of sharded_router_rows_vjp on this rank; `most` as in
/// sharded_router_rows_workspace.
template <class Layer>
[[nodiscard]] index_t sharded_router_rows_vjp_workspace(std::span<Layer> layers, index_t ranks,
                                                        index_t most = 0) {
  using layer = std::remove_const_t<Layer>;
  using experts = detail::experts_of<no_sum, layer, reference>;
  const detail::layer_batch<layer> batch(layers);
  const index_t n = batch.total();
  const index_t d = batch.hidden_dim();
  return 6 * n * d + n + detail::settled_scratch<experts>(batch, ranks) +
         std::max(experts::received(ranks, batch, most), ranks * d);
}
/// Of one layer.
template <class Shard, class R, class GR, class RG, class G>
[[nodiscard]] index_t sharded_router_rows_vjp_workspace(const sharded_layer_vjp<Shard, R, GR, RG, G>& layer,
                                                        index_t ranks, index_t most = 0) {
  return sharded_router_rows_vjp_workspace(std::span(&layer, 1), ranks, most);
}

/// The backward of sharded_router_rows, of all layers in one call. The gradient to the routers is whole and
/// the same on every rank: do not sum it again. That of the weights, Ā = (Ar) z̄ᵀ + (Az̄) rᵀ, each rank has for
/// what it holds, and it needs no message: y = Ar and w = Az̄ of a neuron are where the neuron is. So each
/// weight's gradient is on one rank, once.
///
/// comm, options: as in the forward; tape: what it saved; tokens: whose tokens grad_rows comes from; mode: of
/// both gradients; workspace: sharded_router_rows_vjp_workspace(…) elements. What is written lies apart from
/// all else, but grad_router may be grad_rows. With no_gradient M is a constant in every step, whatever
/// options.through says.
///
/// Cost: with a backend that has the fused read one read of this rank's weights and one update of their
/// gradient a step; two small messages, one of N · (D + 3) elements a step for r̄ = z̄M, and one of N · D where
/// tokens are split; for columns, two of N · (2F + D). Sums as in the forward. Nothing is allocated. Throws
/// as the forward.
template <Communicator Comm, class Layer, class Backend = reference, class Run = serial_executor>
void sharded_router_rows_vjp(const Comm& comm, std::span<Layer> layers,
                             std::type_identity_t<vector_view<const detail::layer_scalar<Layer>>> tape,
                             router_options options, tokens_of_rows tokens, gradient_mode mode,
                             std::type_identity_t<vector_view<detail::layer_scalar<Layer>>> workspace,
                             const Backend& backend = {}, const Run& executor = {}) {
  constexpr const char* what = "sharded_router_rows_vjp";
  using layer = std::remove_const_t<Layer>;
  using S = detail::layer_scalar<layer>;
  using experts_type = detail::experts_of<Comm, layer, Backend>;
  if constexpr (std::same_as<detail::gradient_of<layer>, no_gradient>) options.through = differentiate::none;
  const detail::layer_batch<layer> batch(layers);
  const index_t n = batch.total();
  const index_t d = batch.hidden_dim();
  const index_t steps_scratch = router_rows_vjp_workspace(n, 0, d);
  detail::workspace_pieces<S> pieces(workspace);
  const auto placements =
      detail::settle<experts_type>(what, comm, batch, workspace, steps_scratch + n * d, pieces, [&] {
        detail::expect_sharded_backward(what, batch, options, tape, mode, workspace);
        detail::call_signature signature = detail::signature_of(what, batch, options);
        signature.mix(static_cast<std::uint64_t>(tokens));
        return signature;
      });
  const vector_view<S> scratch = pieces.vector(steps_scratch);
  const matrix_view<S> sums = pieces.matrix(n, d);
  const auto parts = detail::kind_of<layer>::template of<S>(batch, backend);
  const experts_type experts(comm, batch, parts, placements, pieces);
  const auto target = detail::target_of<S>(batch, mode);
  const detail::layered_radius<S, layer> radius{batch, options.radius};
  detail::backward_steps<S, experts_type, decltype(target), Run, decltype(radius)> steps(
      experts, target, executor, options, radius, tape, scratch);
  const detail::layered_rows router(batch, [](const layer& l) { return l.router; });
  const index_t own = experts_type::own_scratch(batch);
  S* const message = pieces.vector(own).data() + own;
  detail::with_whole_gradients<S>(what, tokens, comm, batch, placements, sums, message, executor,
                                  [&](const auto& gradient) {
                                    detail::write_router_gradients<S>(batch, steps.run(router, gradient),
                                                                      core::accumulates(mode), executor);
                                  });
}
/// Of one layer.
template <Communicator Comm, class Shard, class R, class GR, class RG, class G, class Backend = reference,
          class Run = serial_executor, class Layer = sharded_layer_vjp<Shard, R, GR, RG, G>>
void sharded_router_rows_vjp(const Comm& comm, const sharded_layer_vjp<Shard, R, GR, RG, G>& layer,
                             std::type_identity_t<vector_view<const detail::layer_scalar<Layer>>> tape,
                             const router_options& options, tokens_of_rows tokens, gradient_mode mode,
                             std::type_identity_t<vector_view<detail::layer_scalar<Layer>>> workspace,
                             const Backend& backend = {}, const Run& executor = {}) {
  sharded_router_rows_vjp(comm, std::span(&layer, 1), tape, options, tokens, mode, workspace, backend,
                          executor);
}

MPIROUTER_END
