// Experts whose columns are spread over ranks: projections are sums, which go first, and images are pieces.
#pragma once

#include <mpi_router/distributed/agreement.hpp>
#include <mpi_router/distributed/parts.hpp>
#include <mpi_router/manifold/image.hpp>
#include <mpi_router/router/step_tape.hpp>

MPIROUTER_BEGIN
namespace detail {

template <Accumulator S, class Comm, class Layer, class Parts>
class column_experts {
 public:
  /// Elements of scratch for what this rank sends, two projections or the pieces of its images, and sums.
  [[nodiscard]] static index_t own_scratch(const layer_batch<Layer>& layers) {
    return 2 * message(layers, layers.hidden_dim());
  }
  [[nodiscard]] static index_t received(index_t ranks, const layer_batch<Layer>& layers, index_t most) {
    return ranks * message(layers, most > 0 ? most : layers.hidden_dim());
  }

  /// Elements that this call receives.
  [[nodiscard]] static index_t needed(const layer_batch<Layer>& layers,
                                      const gathered_placements<S>& placements) {
    return placements.ranks() * message(layers, most_columns(layers, placements));
  }
  static void expect_whole(const char* what, const layer_batch<Layer>& layers,
                           const gathered_placements<S>& placements, const vector_view<S>&) {
    for (index_t l = 0; l < layers.count(); ++l) {
      expect_all_columns(what, placements, l, layers.shape(l));
    }
  }

  /// scratch: own_scratch(…) + needed(…) elements.
  column_experts(const Comm& comm, const layer_batch<Layer>& layers, const Parts& parts,
                 const gathered_placements<S>& placements, workspace_pieces<S> scratch)
      : comm_(comm),
        layers_(layers),
        parts_(parts),
        placements_(placements),
        shape_{layers.total(), 0, layers.hidden_dim()},
        mine_(scratch.vector(message(layers, layers.hidden_dim())).data()),
        sums_(scratch.vector(message(layers, layers.hidden_dim())).data()),
        all_(scratch.vector(0).data()) {}

  [[nodiscard]] const expert_shape& shape() const { return shape_; }
  [[nodiscard]] index_t partial() const { return 0; }

  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>&, const Run& executor) const {
    project(0, [&](index_t i) { return rows.row(i); }, executor);
    add_up(projections(layers_), executor);
    executor(shape_.num_experts, [&](index_t i) {
      const auto y = sum(0, i);
      energies[i] = sum_terms<S>(y.size(), [&](index_t f) { return y[f] * y[f]; });
    });
    lift(0, images, executor);
  }
  /// Squares that leave the range of S are not scaled here: ρ comes from the image, or the status says it.
  [[nodiscard]] row_image<S> measure(index_t, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    return measure_image(row, u, energy, never_again{});
  }
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target& target, bool is_last_step, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>&, const Run& executor) const {
    project(0, [&](index_t i) { return factors_of(i).row; }, executor);
    project(1, [&](index_t i) { return factors_of(i).dual_row; }, executor);
    add_up(2 * projections(layers_), executor);
    executor(shape_.num_experts, [&](index_t i) {
      if (!has_step(i)) return;
      const auto f = factors_of(i);
      const auto [layer, expert] = layers_.find(i);
      const rank2_factors<S> here{sum(0, i), columns_of(f.dual_row, layer), sum(1, i),
                                  columns_of(f.row, layer)};
      target.add(layer, expert, is_last_step, here, f);
    });
    lift(1, images, executor);
    executor(shape_.num_experts, [&](index_t i) {
      if (!has_step(i)) fill_zero(images.row(i));
    });
  }

 private:
  /// F of every expert of all layers.
  [[nodiscard]] static index_t projections(const layer_batch<Layer>& layers) {
    return layers.sum([&](index_t l) { return layers.shape(l).num_experts * layers.shape(l).ffn_dim; });
  }
  [[nodiscard]] static index_t message(const layer_batch<Layer>& layers, index_t most_columns) {
    return std::max(2 * projections(layers), layers.total() * most_columns);
  }
  /// The most columns that any rank has.
  [[nodiscard]] static index_t most_columns(const layer_batch<Layer>& layers,
                                            const gathered_placements<S>& placements) {
    return layers.most([&](index_t l) {
      index_t most = 0;
      for (index_t rank = 0; rank < placements.ranks(); ++rank) {
        const shard_placement p = placements(rank, l);
        most = std::max(most, p.end_neuron - p.first_neuron);
      }
      return most;
    });
  }
  template <class V>
  [[nodiscard]] auto columns_of(const V& row, index_t layer) const {
    const shard_placement& here = layers_[layer].experts.placement();
    return V(row.data() + here.first_neuron, here.end_neuron - here.first_neuron);
  }
  [[nodiscard]] vector_view<S> projection(S* base, index_t which, index_t i) const {
    const auto [layer, expert] = layers_.find(i);
    index_t before = which * projections(layers_);
    for (index_t l = 0; l < layer; ++l) before += layers_.shape(l).num_experts * layers_.shape(l).ffn_dim;
    const index_t f = layers_.shape(layer).ffn_dim;
    return {base + before + expert * f, f};
  }
  [[nodiscard]] vector_view<S> sum(index_t which, index_t i) const { return projection(sums_, which, i); }

  /// This rank's part of y = A x of every expert.
  template <class Rows, class Run>
  void project(index_t which, const Rows& rows, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      const auto [layer, expert] = layers_.find(i);
      auto&& op = parts_.at(layer, expert);
      op.project(columns_of(vector_view<const S>(rows(i)), layer), projection(mine_, which, i));
    });
  }
  /// The sums over the ranks, in their order.
  template <class Run>
  void add_up(index_t elements, const Run& executor) const {
    const index_t ranks = placements_.ranks();
    if constexpr (core::sums_by_backend<Comm>) {
      std::copy_n(mine_, elements, sums_);
      comm_.all_reduce_sum(vector_view<S>(sums_, elements));
      return;
    }
    comm_.all_gather(vector_view<const S>(mine_, elements), vector_view<S>(all_, ranks * elements));
    const index_t tasks = std::max(shape_.num_experts, index_t{1});
    executor(tasks, [&](index_t task) {
      for (index_t k = elements * task / tasks; k < elements * (task + 1) / tasks; ++k) {
        S total = all_[k];
        for (index_t rank = 1; rank < ranks; ++rank) total += all_[rank * elements + k];
        sums_[k] = total;
      }
    });
  }
  /// u = yA: each rank its columns, for all to have.
  template <class Run>
  void lift(index_t which, const matrix_view<S>& images, const Run& executor) const {
    const index_t ranks = placements_.ranks();
    const index_t most = most_columns(layers_, placements_);
    const index_t elements = shape_.num_experts * most;
    std::fill_n(mine_, elements, S{0});
    executor(shape_.num_experts, [&](index_t i) {
      const auto [layer, expert] = layers_.find(i);
      const shard_placement& here = layers_[layer].experts.placement();
      auto&& op = parts_.at(layer, expert);
      op.lift(vector_view<const S>(sum(which, i)),
              vector_view<S>(mine_ + i * most, here.end_neuron - here.first_neuron));
    });
    comm_.all_gather(vector_view<const S>(mine_, elements), vector_view<S>(all_, ranks * elements));
    executor(shape_.num_experts, [&](index_t i) {
      const index_t layer = layers_.find(i).layer;
      for (index_t rank = 0; rank < ranks; ++rank) {
        const shard_placement p = placements_(rank, layer);
        const S* const piece = all_ + rank * elements + i * most;
        for (index_t d = p.first_neuron; d < p.end_neuron; ++d) images(i, d) = piece[d - p.first_neuron];
      }
    });
  }

  const Comm& comm_;
  const layer_batch<Layer>& layers_;
  const Parts& parts_;
  const gathered_placements<S>& placements_;
  expert_shape shape_;
  S* mine_;
  S* sums_;
  S* all_;
};

}  // namespace detail
MPIROUTER_END
