// Where the gradient to the weights that are here goes: into shards like them, into factors, or nowhere. What
// sharded_rows_vjp.hpp is made of.
#pragma once

#include <mpi_router/distributed/sharded_call.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

MPIROUTER_BEGIN

/// Stands for a gradient to the experts that is not wanted: M is a constant, as in router_rows_vjp_detached.
struct no_gradient {};

namespace detail {

template <class Layer>
using gradient_of = std::remove_cvref_t<decltype(std::declval<Layer&>().grad_experts)>;

/// Which of the experts that are here the i-th of a layer is; −1 where nothing of it is.
template <class Layer>
[[nodiscard]] index_t here(const Layer& layer, index_t expert) {
  const shard_placement& placement = layer.experts.placement();
  const index_t k = expert - placement.first_expert;
  return k >= 0 && k < placement.num_experts ? k : -1;
}

/// The gradient goes into shards like those of the experts.
template <Accumulator S, class Layer>
struct into_shards {
  using shard = gradient_of<Layer>;
  using element = typename shard::element_type;
  const layer_batch<Layer>& layers;
  gradient_mode mode;

  [[nodiscard]] rank2_factors<S> factors(index_t, index_t, const rank2_factors<S>& scratch) const {
    return scratch;
  }
  template <class T, class Backend>
  void pull(const Backend& backend, index_t layer, index_t k, index_t first, bool is_last_step,
            const matrix_view<const T>& a, const rank2_factors<S>& f, const vector_view<S>& image) const {
    const into_matrices<S, element, shard> matrices{layers[layer].grad_experts, mode};
    matrices.pull(backend, k, first, is_last_step, a, f, image);
  }
  /// Of columns, whose projections are known for all at once.
  void add(index_t layer, index_t expert, bool is_last_step, const rank2_factors<S>& columns,
           const rank2_factors<S>&) const {
    add_rank2<S>(columns, layers[layer].grad_experts[expert],
                 is_last_step ? mode : gradient_mode::accumulate);
  }
  void degenerate(index_t i, bool is_last_step, const rank2_factors<S>&) const {
    const auto [layer, expert] = layers.find(i);
    const index_t k = here(layers[layer], expert);
    if (k < 0 || !is_last_step || mode != gradient_mode::write) return;
    const auto gradient = layers[layer].grad_experts[k];
    for (index_t f = 0; f < gradient.rows(); ++f) {
      for (index_t d = 0; d < gradient.cols(); ++d) gradient(f, d) = narrow<element>(S{0});
    }
  }
};

/// The gradient stays in factors, which are the caller's.
template <Accumulator S, class Layer>
struct into_sharded_factors {
  const layer_batch<Layer>& layers;

  [[nodiscard]] rank2_factors<S> factors(index_t term, index_t i, const rank2_factors<S>& scratch) const {
    const auto [layer, expert] = layers.find(i);
    const index_t k = here(layers[layer], expert);
    return k < 0 ? scratch : layers[layer].grad_experts.at(term, k);
  }
  template <class T, class Backend>
  void pull(const Backend& backend, index_t, index_t, index_t, bool, const matrix_view<const T>& a,
            const rank2_factors<S>& f, const vector_view<S>& image) const {
    pull_back<S>(backend, a, f, image);
  }
  void add(index_t, index_t, bool, const rank2_factors<S>& columns, const rank2_factors<S>& whole) const {
    copy_into<S>(columns.projection, whole.projection);
    copy_into<S>(columns.dual_projection, whole.dual_projection);
  }
  void degenerate(index_t, bool, const rank2_factors<S>&) const {}
};

/// There is none.
template <Accumulator S>
struct into_nothing {
  [[nodiscard]] rank2_factors<S> factors(index_t, index_t, const rank2_factors<S>& scratch) const {
    return scratch;
  }
  template <class... Ignored>
  void pull(const Ignored&...) const {}
  template <class... Ignored>
  void add(const Ignored&...) const {}
  void degenerate(index_t, bool, const rank2_factors<S>&) const {}
};

template <Accumulator S, class Layer>
[[nodiscard]] auto target_of(const layer_batch<Layer>& layers, gradient_mode mode) {
  if constexpr (std::same_as<gradient_of<Layer>, no_gradient>) {
    return into_nothing<S>{};
  } else if constexpr (std::same_as<gradient_of<Layer>, router_factors<S>>) {
    return into_sharded_factors<S, Layer>{layers};
  } else {
    return into_shards<S, Layer>{layers, mode};
  }
}

/// The gradient of a layer is for the weights that are here.
template <Accumulator S, class Layer>
void expect_gradient(const char* what, const Layer& layer, const router_options& options) {
  const shard_placement& placement = layer.experts.placement();
  if constexpr (std::same_as<gradient_of<Layer>, router_factors<S>>) {
    const bool columns = placement.kind == shard_placement::form::columns;
    expect(placement.kind != shard_placement::form::rows, what, ": a run of rows has no factors");
    const expert_shape whole = layer.experts.shape();
    expect_factors(what, layer.grad_experts,
                   columns ? whole
                           : expert_shape{placement.num_experts,
                                          placement.end_neuron - placement.first_neuron, whole.hidden_dim},
                   options);
  } else if constexpr (!std::same_as<gradient_of<Layer>, no_gradient>) {
    static_assert(requires { layer.experts.local(); }, "the gradient of operators is in router_factors");
    expect(layer.grad_experts.shape() == layer.experts.shape() && layer.grad_experts.placement() == placement,
           what, ": the gradient is for other experts or neurons than those that are here");
  }
}

}  // namespace detail
MPIROUTER_END
