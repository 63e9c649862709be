// M of an expert whose type is known when the program runs: what verify/ needs of an operator, behind
// functions, so that its searches are compiled once.
#pragma once

#include "arrays.hpp"

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/verify/gram_in_double.hpp>

#include <functional>
#include <vector>

namespace mpi_router_c {

/// A model of GramOperator and ScalableGramOperator.
template <Accumulator S>
struct any_operator {
  using scalar = S;
  using matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;

  [[nodiscard]] index_t dimension() const noexcept { return hidden_dim; }
  [[nodiscard]] index_t ffn_dim() const noexcept { return neurons; }
  S apply(vector_view<const S> x, vector_view<S> u) { return apply_(x, u); }
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) { return apply_scaled_(x, u); }
  [[nodiscard]] matrix images(const matrix& x) { return images_(x); }

  index_t hidden_dim = 0;
  index_t neurons = 0;
  std::function<S(vector_view<const S>, vector_view<S>)> apply_;
  std::function<scaled_energy<S>(vector_view<const S>, vector_view<S>)> apply_scaled_;
  std::function<matrix(const matrix&)> images_;
};

/// Of expert i, with sums in double.
[[nodiscard]] any_operator<double> operator_in_double(const mpi_router_experts& experts, index_t i);

/// Of expert i, with sums in float; what is stored in double is rounded, to `rounded`, which it then reads.
[[nodiscard]] any_operator<float> operator_in_float(const mpi_router_experts& experts, index_t i,
                                                    std::vector<float>& rounded);

/// Row i as doubles.
[[nodiscard]] std::vector<double> row_in_double(const mpi_router_matrix& rows, index_t i);

}  // namespace mpi_router_c
