// What a rank has of the experts, multiplied: dense neurons by a backend, or operators. What
// neuron_experts.hpp and column_experts.hpp are made of.
#pragma once

#include <mpi_router/backend/dense.hpp>
#include <mpi_router/distributed/layers.hpp>
#include <mpi_router/router/pullback.hpp>

MPIROUTER_BEGIN
namespace detail {

/// Dense neurons: any run of them.
template <Accumulator S, class Layer, class Backend>
struct dense_parts {
  static constexpr bool is_divisible = true;
  static constexpr bool is_scalable = true;
  using shard = std::remove_cvref_t<decltype(Layer::experts)>;
  using stored = std::remove_const_t<typename shard::element_type>;

  const layer_batch<Layer>& layers;
  const Backend& backend;

  [[nodiscard]] matrix_view<const stored> matrix(index_t layer, index_t k, const neuron_run& run) const {
    return matrix_view<const stored>(layers[layer].experts[k].middle_rows(run.first, run.size()));
  }
  scaled_energy<S> apply(index_t layer, index_t k, const neuron_run& run, const vector_view<const S>& row,
                         const vector_view<S>& u) const {
    return {backend.template apply<stored, S>(matrix(layer, k, run), row, u), 0, 0};
  }
  scaled_energy<S> apply_scaled(index_t layer, index_t k, const neuron_run& run,
                                const vector_view<const S>& row, const vector_view<S>& u) const {
    return reference{}.apply_scaled(matrix(layer, k, run), row, u);
  }
  template <class Target>
  void pull(const Target& target, index_t layer, index_t k, const neuron_run& run, bool is_last_step,
            const rank2_factors<S>& f, const vector_view<S>& image) const {
    target.pull(backend, layer, k, run.first, is_last_step, matrix(layer, k, run), f, image);
  }
};

/// Operators, each applied as a whole.
template <Accumulator S, class Layer>
struct operator_parts {
  static constexpr bool is_divisible = false;
  using operators = std::remove_cvref_t<decltype(std::declval<Layer>().experts.operators)>;
  using one = std::invoke_result_t<const operators&, index_t>;
  static constexpr bool is_scalable = ScalableGramOperator<one>;

  const layer_batch<Layer>& layers;

  [[nodiscard]] decltype(auto) at(index_t layer, index_t k) const {
    return layers[layer].experts.operators(k);
  }
  scaled_energy<S> apply(index_t layer, index_t k, const neuron_run&, const vector_view<const S>& row,
                         const vector_view<S>& u) const {
    auto&& op = at(layer, k);
    return {static_cast<S>(op.apply(row, u)), 0, 0};
  }
  scaled_energy<S> apply_scaled(index_t layer, index_t k, const neuron_run&, const vector_view<const S>& row,
                                const vector_view<S>& u) const
    requires is_scalable
  {
    auto&& op = at(layer, k);
    return op.apply_scaled(row, u);
  }
  template <class Target>
  void pull(const Target&, index_t layer, index_t k, const neuron_run&, bool, const rank2_factors<S>& f,
            const vector_view<S>& image) const {
    if constexpr (FactoredGramOperator<one>) {
      auto&& op = at(layer, k);
      pull_back(op, f, image);
    }
  }
};

/// Columns of dense experts, as operators.
template <Accumulator S, class Layer, class Backend>
struct dense_columns {
  using stored = std::remove_const_t<typename std::remove_cvref_t<decltype(Layer::experts)>::element_type>;
  const layer_batch<Layer>& layers;
  const Backend& backend;
  [[nodiscard]] auto at(index_t layer, index_t i) const {
    return dense_operator<stored, S, Backend>(matrix_view<const stored>(layers[layer].experts[i]), backend);
  }
};
/// Columns that are operators already.
template <class Layer>
struct operator_columns_of {
  const layer_batch<Layer>& layers;
  [[nodiscard]] decltype(auto) at(index_t layer, index_t i) const {
    return layers[layer].experts.operators(i);
  }
};

}  // namespace detail
MPIROUTER_END
