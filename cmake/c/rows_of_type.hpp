// What rows.hpp declares, for experts of type T.
#pragma once

#include "host_backend.hpp"
#include "rows.hpp"

#include <mpi_router/router/router_rows_vjp.hpp>

namespace mpi_router_c {

template <Scalar T>
constexpr rows_functions<accumulator_t<T>> compiled_rows() {
  using S = accumulator_t<T>;
  return {
      .forward =
          [](const forward_call<S>& c) {
            router_rows(view_of<const T>(c.experts), c.router, c.rows, c.options, c.workspace, c.told,
                        host_backend{}, c.run);
          },
      .stateful =
          [](const forward_call<S>& c) {
            stateful_router_rows(view_of<const T>(c.experts), c.router, c.options, c.workspace, c.told,
                                 host_backend{}, c.run);
          },
      .written =
          [](const backward_call<S>& c, const mpi_router_experts& grad_experts) {
            const auto into = [&]<class G>(std::type_identity<G>) {
              router_rows_vjp(view_of<const T>(c.experts), c.router, c.tape, c.grad_rows, c.options,
                              c.grad_router, view_of<G>(grad_experts), c.mode, c.workspace, host_backend{},
                              c.run);
            };
            if (!std::is_same_v<T, S> && grad_experts.dtype == MPIROUTER_F32) {
              into(std::type_identity<S>{});
            } else {
              into(std::type_identity<T>{});
            }
          },
      .factored =
          [](const backward_call<S>& c, const router_factors<S>& factors) {
            router_rows_vjp_factored(view_of<const T>(c.experts), c.router, c.tape, c.grad_rows, c.options,
                                     c.grad_router, factors, c.mode, c.workspace, host_backend{}, c.run);
          },
      .detached =
          [](const backward_call<S>& c) {
            router_rows_vjp_detached(view_of<const T>(c.experts), c.router, c.tape, c.grad_rows, c.options,
                                     c.grad_router, c.mode, c.workspace, host_backend{}, c.run);
          }};
}

}  // namespace mpi_router_c
