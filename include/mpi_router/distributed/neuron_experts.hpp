// Experts whose neurons are spread over ranks as what the batched step and its backward are written over.
#pragma once

#include <mpi_router/distributed/neuron_sums.hpp>
#include <mpi_router/distributed/parts.hpp>
#include <mpi_router/router/step_tape.hpp>

MPIROUTER_BEGIN
namespace detail {

template <Accumulator S, class Comm, class Layer, class Parts>
class neuron_experts {
 public:
  using sums = neuron_sums<S, Comm, Layer, Parts>;

  /// Elements of scratch: of this rank's own, for the projections of a backward, for what does not fit in S.
  [[nodiscard]] static index_t own_scratch(const layer_batch<Layer>& layers) {
    return sums::own_scratch(layers) + 4 * layers.total() + projection_scratch(layers);
  }
  /// Elements that it receives, where no rank has a part of more than `most` experts of a layer; 0: it may be
  /// all.
  [[nodiscard]] static index_t received(index_t ranks, const layer_batch<Layer>& layers, index_t most) {
    const index_t slots =
        layers.sum([&](index_t l) { return most > 0 ? most : layers.shape(l).num_experts; });
    return ranks * slots * sums::partial::size(layers.hidden_dim());
  }

  /// Elements that this call receives.
  [[nodiscard]] static index_t needed(const layer_batch<Layer>& layers,
                                      const gathered_placements<S>& placements) {
    const index_t slots = layers.sum([&](index_t l) { return placements.most_experts(l); });
    return placements.ranks() * slots * sums::partial::size(layers.hidden_dim());
  }
  static void expect_whole(const char* what, const layer_batch<Layer>& layers,
                           const gathered_placements<S>& placements, const vector_view<S>& scratch) {
    for (index_t l = 0; l < layers.count(); ++l) {
      expect_all_neurons(what, placements, l, layers.shape(l), scratch);
    }
  }

  /// scratch: own_scratch(…) + needed(…) elements.
  neuron_experts(const Comm& comm, const layer_batch<Layer>& layers, const Parts& parts,
                 const gathered_placements<S>& placements, workspace_pieces<S> scratch)
      : layers_(layers),
        parts_(parts),
        shape_{layers.total(), 0, layers.hidden_dim()},
        again_(scratch.vector(shape_.num_experts)),
        told_(scratch.vector(3 * shape_.num_experts)),
        projections_(scratch.vector(projection_scratch(layers))),
        sums_(comm, layers, placements, scratch) {}

  [[nodiscard]] const expert_shape& shape() const { return shape_; }
  [[nodiscard]] index_t partial() const { return 0; }

  /// images_i = rows_i M_i and the energies, summed over the ranks.
  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>&, const Run& executor) const {
    const auto all = [](index_t) { return true; };
    sums_.sum(all, computed(rows, [&](auto... of) { return parts_.apply(of...); }), executor,
              core::sums_by_backend<Comm>);
    executor(shape_.num_experts, [&](index_t i) {
      copy_into<S>(sums_.result(i).image(), images.row(i));
      energies[i] = sums_.result(i).energy();
    });
    if constexpr (Parts::is_scalable) multiply_again(rows, images, energies, executor);
  }
  [[nodiscard]] row_image<S> measure(index_t i, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    if constexpr (Parts::is_scalable) {
      return measure_image(row, u, energy, [&] { return told_of(i); });
    } else {
      return measure_image(row, u, energy, never_again{});
    }
  }
  /// images_i = dual_row_i M_i, summed over the ranks; the gradient to the neurons here goes to the target.
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target& target, bool is_last_step, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>&, const Run& executor) const {
    const auto pull = [&](index_t layer, index_t k, const neuron_run& run, const partial_image<S>& out) {
      const rank2_factors<S> f = factors_of(expert_of(layer, k));
      parts_.pull(target, layer, k, run, is_last_step, part_here(f, layer, k, run), out.image());
      out.set({});
    };
    sums_.sum(has_step, pull, executor, core::sums_by_backend<Comm>);
    executor(shape_.num_experts, [&](index_t i) {
      if (has_step(i)) {
        copy_into<S>(sums_.result(i).image(), images.row(i));
      } else {
        fill_zero(images.row(i));
      }
    });
  }

 private:
  [[nodiscard]] static index_t projection_scratch(const layer_batch<Layer>& layers) {
    return layers.most([&](index_t l) {
      const shard_placement& here = layers[l].experts.placement();
      return 2 * here.num_experts * here.most_neurons(layers.shape(l));
    });
  }
  [[nodiscard]] index_t expert_of(index_t layer, index_t k) const {
    return layers_.first(layer) + layers_[layer].experts.placement().first_expert + k;
  }
  /// The factors of a run of neurons: in those that are given, or in scratch.
  [[nodiscard]] rank2_factors<S> part_here(const rank2_factors<S>& f, index_t layer, index_t k,
                                           const neuron_run& run) const {
    if (f.projection.size() > 0) return part_of(f, run.first, run.size());
    const index_t most = layers_[layer].experts.placement().most_neurons(layers_.shape(layer));
    S* const at = projections_.data() + 2 * k * most + run.first;
    return {{at, run.size()}, f.dual_row, {at + most, run.size()}, f.row};
  }
  /// compute of neuron_sums: `apply` of the parts, of one row each.
  template <class Apply>
  [[nodiscard]] auto computed(const matrix_view<const S>& rows, const Apply& apply) const {
    return [this, rows, apply](index_t layer, index_t k, const neuron_run& run, const partial_image<S>& out) {
      out.set(apply(layer, k, run, rows.row(expert_of(layer, k)), out.image()));
    };
  }
  [[nodiscard]] scaled_energy<S> told_of(index_t i) const {
    return {told_[3 * i], static_cast<int>(told_[3 * i + 1]), static_cast<int>(told_[3 * i + 2])};
  }

  /// Where squares left the range of S, which all ranks see alike, the parts come once more with exponents.
  /// An energy of 0 is what makes measure() look for them.
  template <class Run>
  void multiply_again(const matrix_view<const S>& rows, const matrix_view<S>& images,
                      const vector_view<S>& energies, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      again_[i] = S{0};
      static_cast<void>(measure_image(rows.row(i), images.row(i), energies[i], [&] {
        again_[i] = S{1};
        return scaled_energy<S>{energies[i], 0, 0};
      }));
    });
    const auto wanted = [&](index_t i) { return again_[i] != S{0}; };
    index_t any = 0;
    for (index_t i = 0; i < shape_.num_experts; ++i) any += wanted(i) ? 1 : 0;
    if (any == 0) return;
    sums_.sum(wanted, computed(rows, [&](auto... of) { return parts_.apply_scaled(of...); }), executor,
              false);
    executor(shape_.num_experts, [&](index_t i) {
      if (!wanted(i)) return;
      const partial_image<S> sum = sums_.result(i);
      copy_into<S>(sum.image(), images.row(i));
      std::copy_n(&sum.energy(), 3, &told_[3 * i]);
      energies[i] = S{0};
    });
  }

  const layer_batch<Layer>& layers_;
  const Parts& parts_;
  expert_shape shape_;
  vector_view<S> again_, told_, projections_;
  mutable sums sums_;
};

}  // namespace detail
MPIROUTER_END
