// Experts whose neurons are spread over ranks, to be multiplied as if they were here: each rank its own
// neurons, one message, and the sum of the parts on every rank.
#pragma once

#include <mpi_router/distributed/agreement.hpp>
#include <mpi_router/distributed/layers.hpp>
#include <mpi_router/distributed/overlap.hpp>
#include <mpi_router/distributed/partial_images.hpp>
#include <mpi_router/manifold/image.hpp>
#include <mpi_router/router/step_tape.hpp>

MPIROUTER_BEGIN
namespace detail {

/// How a rank's part of one layer is cut for the tree.
struct leaf_tasks {
  shard_placement placement;
  const expert_shape& whole;
  bool is_divisible;  // an operator is one leaf, whatever it covers

  /// Leaves of an expert, at most: as many tasks an expert.
  [[nodiscard]] index_t leaves() const {
    if (!is_divisible || placement.num_experts == 0) return placement.num_experts == 0 ? 0 : 1;
    index_t most = 0;
    for (index_t k = 0; k < placement.num_experts; ++k) {
      const neuron_run run = run_of(k);
      most = std::max(most, leaf_with(whole.ffn_dim, run.end - 1) - leaf_with(whole.ffn_dim, run.first) + 1);
    }
    return most;
  }
  [[nodiscard]] index_t count() const { return placement.num_experts * leaves(); }
  [[nodiscard]] neuron_run run_of(index_t k) const {
    return placement.neurons(whole, placement.first_expert + k);
  }
  /// Which leaf of the tree the l-th of expert k is.
  [[nodiscard]] index_t leaf(index_t k, index_t l) const {
    return leaf_with(whole.ffn_dim, run_of(k).first) + l;
  }
  /// The neurons of it that are here, counted from the first that is here.
  [[nodiscard]] neuron_run part(index_t k, index_t l) const {
    const neuron_run run = run_of(k);
    if (!is_divisible) return {0, run.size()};
    const index_t at = leaf(k, l);
    const index_t first = std::max(run.first, leaf_start(whole.ffn_dim, at));
    const index_t end = std::min(run.end, at < tree_leaves ? leaf_start(whole.ffn_dim, at + 1) : 0);
    return {first - run.first, std::max(first, end) - run.first};
  }
};

/// The sums over all ranks, for all layers in one message, or in one each that is under way while the next
/// layer is read. Parts say whether runs of neurons may be cut.
template <Accumulator S, class Comm, class Layer, class Parts>
class neuron_sums {
 public:
  using partial = partial_image<S>;

  /// Elements of scratch for what is of this rank's own, and for what it sends; what it receives comes
  /// behind.
  [[nodiscard]] static index_t own_scratch(const layer_batch<Layer>& layers) {
    return (most_tasks(layers) + layers.total()) * partial::size(layers.hidden_dim());
  }

  neuron_sums(const Comm& comm, const layer_batch<Layer>& layers, const gathered_placements<S>& placements,
              workspace_pieces<S> scratch)
      : comm_(comm),
        layers_(layers),
        placements_(placements),
        d_(layers.hidden_dim()),
        slots_(first_slot(layers.count())),
        leaves_(scratch.vector(most_tasks(layers) * partial::size(d_)).data()),
        mine_(scratch.vector(layers.total() * partial::size(d_)).data()),
        all_(scratch.vector(0).data()) {}

  /// A part of every expert of the batch on this rank: compute(layer, k, run, partial) of each leaf for which
  /// wanted(i) holds; then the sums.
  template <class Wanted, class Compute, class Run>
  void sum(const Wanted& wanted, const Compute& compute, const Run& executor, bool by_backend = false) {
    by_backend_ = by_backend;
    const index_t sent = by_backend_ ? layers_.total() : slots_;
    std::fill_n(mine_, sent * partial::size(d_), S{0});
    core::messages_under_way<S, Comm> messages(comm_);
    for (index_t group = 0; group < groups(); ++group) {
      for (index_t layer = first_layer(group); layer < first_layer(group + 1); ++layer) {
        sum_leaves(layer, wanted, compute, executor);
      }
      if (!by_backend_) start(messages, group);
    }
    if constexpr (core::sums_by_backend<Comm>) {
      if (by_backend_) {
        comm_.all_reduce_sum(vector_view<S>(mine_, sent * partial::size(d_)));
        return;
      }
    }
    for (index_t group = 0; group < groups(); ++group) {
      messages.wait(static_cast<std::size_t>(group));
      const index_t first = layers_.first(first_layer(group));
      executor(layers_.first(first_layer(group + 1)) - first, [&](index_t i) {
        if (wanted(first + i)) add_ranks(first + i);
      });
    }
  }
  /// Of an expert of the batch; to be asked once after each sum.
  [[nodiscard]] partial result(index_t i) const {
    if (by_backend_) return slot(mine_, i);
    const auto [layer, expert] = layers_.find(i);
    return from_rank(first_with(layer, expert), layer, expert);
  }

 private:
  [[nodiscard]] static leaf_tasks tasks(const layer_batch<Layer>& layers, index_t layer) {
    return {layers[layer].experts.placement(), layers.shape(layer), Parts::is_divisible};
  }
  [[nodiscard]] static index_t most_tasks(const layer_batch<Layer>& layers) {
    return layers.most([&](index_t l) { return tasks(layers, l).count(); });
  }
  [[nodiscard]] partial slot(S* base, index_t at) const { return {base + at * partial::size(d_), d_}; }
  /// Where a layer's parts begin in a message.
  [[nodiscard]] index_t first_slot(index_t layer) const {
    index_t first = 0;
    for (index_t l = 0; l < layer; ++l) first += placements_.most_experts(l);
    return first;
  }
  /// Layers of one message: all of them, or each by itself.
  static constexpr bool overlaps = core::overlaps_layers<Comm>;
  [[nodiscard]] index_t groups() const { return overlaps ? layers_.count() : 1; }
  [[nodiscard]] index_t first_layer(index_t group) const {
    return overlaps ? group : group == 0 ? 0 : layers_.count();
  }
  [[nodiscard]] index_t group_of(index_t layer) const { return overlaps ? layer : 0; }
  void start(core::messages_under_way<S, Comm>& messages, index_t group) const {
    const index_t first = first_slot(first_layer(group));
    const index_t elements = (first_slot(first_layer(group + 1)) - first) * partial::size(d_);
    messages.start(
        vector_view<const S>(slot(mine_, first).data, elements),
        vector_view<S>(slot(all_, placements_.ranks() * first).data, elements * placements_.ranks()));
  }
  [[nodiscard]] partial from_rank(index_t rank, index_t layer, index_t expert) const {
    const index_t k = expert - placements_(rank, layer).first_expert;
    const index_t group = group_of(layer);
    const index_t first = first_slot(first_layer(group));
    const index_t sent = first_slot(first_layer(group + 1)) - first;
    return slot(all_, placements_.ranks() * first + rank * sent + first_slot(layer) - first + k);
  }
  /// The rank in whose part the sum over all is.
  [[nodiscard]] index_t first_with(index_t layer, index_t expert) const {
    index_t rank = 0;
    while (placements_(rank, layer).neurons(layers_.shape(layer), expert).size() == 0) ++rank;
    return rank;
  }

  template <class Wanted, class Compute, class Run>
  void sum_leaves(index_t layer, const Wanted& wanted, const Compute& compute, const Run& executor) {
    const leaf_tasks cut = tasks(layers_, layer);
    const index_t leaves = cut.leaves();
    const index_t first = layers_.first(layer) + cut.placement.first_expert;
    executor(cut.count(), [&](index_t task) {
      const index_t k = task / leaves;
      const neuron_run run = cut.part(k, task % leaves);
      if (run.size() > 0 && wanted(first + k)) compute(layer, k, run, slot(leaves_, task));
    });
    const index_t to = by_backend_ ? first : first_slot(layer);
    executor(cut.placement.num_experts, [&](index_t k) {
      if (!wanted(first + k)) return;
      const auto leaf_of = [&](index_t l) { return cut.part(k, l).size() > 0 ? cut.leaf(k, l) : -1; };
      const auto add = [&](index_t a, index_t b) {
        slot(leaves_, k * leaves + a).add(slot(leaves_, k * leaves + b));
      };
      const index_t sum = add_along_tree(0, leaves, 0, tree_leaves, leaf_of, add);
      if (sum >= 0) slot(mine_, to + k).copy_from(slot(leaves_, k * leaves + sum));
    });
  }
  /// The ranks' parts of an expert, added where the first of them is.
  void add_ranks(index_t i) const {
    const auto [layer, expert] = layers_.find(i);
    const expert_shape& whole = layers_.shape(layer);
    const auto leaf_of = [&, l = layer, e = expert](index_t rank) {
      const neuron_run run = placements_(rank, l).neurons(whole, e);
      return run.size() > 0 ? leaf_with(whole.ffn_dim, run.first) : -1;
    };
    const auto add = [&, l = layer, e = expert](index_t a, index_t b) {
      from_rank(a, l, e).add(from_rank(b, l, e));
    };
    static_cast<void>(add_along_tree(0, placements_.ranks(), 0, tree_leaves, leaf_of, add));
  }

  const Comm& comm_;
  const layer_batch<Layer>& layers_;
  const gathered_placements<S>& placements_;
  index_t d_;
  index_t slots_;
  S* leaves_;
  S* mine_;
  S* all_;
  bool by_backend_ = false;
};

}  // namespace detail
MPIROUTER_END
