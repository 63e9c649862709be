// The layers of a call as one batch: their experts one after the other, each with the row and the radius of
// its own layer. So the step and its backward are those of router/.
#pragma once

#include <mpi_router/distributed/shards.hpp>
#include <mpi_router/router/expect_rows.hpp>

#include <span>

MPIROUTER_BEGIN
namespace detail {

/// An expert of the batch: which of which layer.
struct expert_of_layer {
  index_t layer;
  index_t expert;
};

template <class Layer>
class layer_batch {
 public:
  explicit layer_batch(std::span<const Layer> layers) : layers_(layers) {}

  [[nodiscard]] index_t count() const { return static_cast<index_t>(layers_.size()); }
  [[nodiscard]] const Layer& operator[](index_t layer) const {
    return layers_[static_cast<std::size_t>(layer)];
  }
  [[nodiscard]] const expert_shape& shape(index_t layer) const { return (*this)[layer].experts.shape(); }
  [[nodiscard]] index_t hidden_dim() const { return layers_.empty() ? 0 : shape(0).hidden_dim; }
  /// Experts of the layers before this one; of all, for count().
  [[nodiscard]] index_t first(index_t layer) const {
    index_t first = 0;
    for (index_t l = 0; l < layer; ++l) first += shape(l).num_experts;
    return first;
  }
  [[nodiscard]] index_t total() const { return first(count()); }
  [[nodiscard]] expert_of_layer find(index_t expert) const {
    index_t layer = 0;
    while (expert >= shape(layer).num_experts) expert -= shape(layer++).num_experts;
    return {layer, expert};
  }
  /// The most of what f(layer) gives.
  template <class F>
  [[nodiscard]] index_t most(const F& f) const {
    index_t most = 0;
    for (index_t layer = 0; layer < count(); ++layer) most = std::max(most, f(layer));
    return most;
  }
  template <class F>
  [[nodiscard]] index_t sum(const F& f) const {
    index_t sum = 0;
    for (index_t layer = 0; layer < count(); ++layer) sum += f(layer);
    return sum;
  }

 private:
  std::span<const Layer> layers_;
};

/// The [N, D] matrices of all layers, one below the other: of(layer) is one of them.
template <class Layer, class Of>
class layered_rows {
 public:
  layered_rows(const layer_batch<Layer>& layers, Of of) : layers_(layers), of_(of) {}
  [[nodiscard]] index_t rows() const { return layers_.total(); }
  [[nodiscard]] auto row(index_t i) const {
    const auto [layer, expert] = layers_.find(i);
    return of_(layers_[layer]).row(expert);
  }

 private:
  const layer_batch<Layer>& layers_;
  Of of_;
};

/// C of each expert of the batch, with the N of its layer.
template <Accumulator S, class Layer>
struct layered_radius {
  const layer_batch<Layer>& layers;
  const router_radius& radius;
  [[nodiscard]] S operator()(index_t i) const {
    return static_cast<S>(radius.of(layers.shape(layers.find(i).layer).num_experts));
  }
};

}  // namespace detail
MPIROUTER_END
