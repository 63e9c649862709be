// The batched step and its backward over experts of one type: compiled in one translation unit for each.
// Router, rows and their gradients arrive in the type of the sums, so that nothing else multiplies the
// instantiations.
#pragma once

#include "arrays.hpp"
#include "threads.hpp"

#include <mpi_router/router/router_factors.hpp>
#include <mpi_router/router/router_options.hpp>

namespace mpi_router_c {

template <Accumulator S>
struct forward_call {
  const mpi_router_experts& experts;
  const matrix_view<S>& router;
  const matrix_view<S>& rows;
  const router_options& options;
  const vector_view<S>& workspace;
  const router_by_products<S>& told;
  const callback_executor& run;
};

template <Accumulator S>
struct backward_call {
  const mpi_router_experts& experts;
  const matrix_view<S>& router;
  const vector_view<const S>& tape;
  const matrix_view<S>& grad_rows;
  const router_options& options;
  const matrix_view<S>& grad_router;
  gradient_mode mode;
  const vector_view<S>& workspace;
  const callback_executor& run;
};

/// What there is for experts of one type, with sums in S.
template <Accumulator S>
struct rows_functions {
  void (*forward)(const forward_call<S>&);
  void (*stateful)(const forward_call<S>&);
  void (*written)(const backward_call<S>&, const mpi_router_experts& grad_experts);
  void (*factored)(const backward_call<S>&, const router_factors<S>&);
  void (*detached)(const backward_call<S>&);
};

extern const rows_functions<double> rows_of_f64;
extern const rows_functions<float> rows_of_f32;
extern const rows_functions<float> rows_of_bf16;
extern const rows_functions<float> rows_of_f16;

/// body(functions) for experts of that type.
template <class Body>
decltype(auto) with_rows_of(mpi_router_dtype experts, const Body& body) {
  switch (experts) {
    case MPIROUTER_F64: return body(rows_of_f64);
    case MPIROUTER_F32: return body(rows_of_f32);
    case MPIROUTER_BF16: return body(rows_of_bf16);
    default: return body(rows_of_f16);
  }
}

}  // namespace mpi_router_c
