// What rows.hpp declares, for experts of type T.
#pragma once

#include "rows.hpp"

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/cuda/router_rows_vjp.cuh>

namespace mpi_router_c {

[[nodiscard]] inline cuda::detail::given_matrix of_any_type(const mpi_router_matrix& m) {
  return with_type(m.dtype, [&]<class R>(std::type_identity<R>) {
    return cuda::detail::given_matrix(view_of<R, device_space>(m));
  });
}
[[nodiscard]] inline cuda::detail::given_matrix of_any_type(const mpi_router_matrix* m) {
  return m == nullptr ? cuda::detail::given_matrix() : of_any_type(*m);
}

/// body(view) of a gradient to experts in T: of their type or that of their sums.
template <Scalar T, class Body>
decltype(auto) with_gradient(const mpi_router_experts& grad_experts, const Body& body) {
  using S = accumulator_t<T>;
  if constexpr (!std::is_same_v<T, S>) {
    if (grad_experts.dtype == MPIROUTER_F32) {
      return body(view_of<S, device_space>(grad_experts));
    }
  }
  return body(view_of<T, device_space>(grad_experts));
}

template <Scalar T>
constexpr gpu_rows_functions compiled_gpu_rows() {
  return {.forward_bytes =
              [](const cuda::context& ctx, const mpi_router_experts& experts, index_t steps) {
                return cuda::router_rows_workspace(ctx, view_of<const T, device_space>(experts), steps);
              },
          .written_bytes =
              [](const cuda::context& ctx, const mpi_router_experts& experts,
                 const mpi_router_experts& grad_experts, gradient_mode mode) {
                return with_gradient<T>(grad_experts, [&](const auto& gradient) {
                  return cuda::router_rows_vjp_workspace(ctx, view_of<const T, device_space>(experts),
                                                         gradient, mode);
                });
              },
          .factored_bytes =
              [](const cuda::context& ctx, const mpi_router_experts& experts) {
                return cuda::router_rows_vjp_factored_workspace(ctx, view_of<const T, device_space>(experts));
              },
          .forward =
              [](const gpu_forward& c) {
                cuda::detail::forward<T>(c.what, c.ctx, view_of<const T, device_space>(c.experts),
                                         of_any_type(c.router), of_any_type(c.rows), c.told, c.saved,
                                         c.scratch, c.options);
              },
          .written =
              [](const gpu_backward& c, const mpi_router_experts& grad_experts, gradient_mode mode) {
                with_gradient<T>(grad_experts, [&](const auto& gradient) {
                  cuda::detail::backward_in_mode(c.what, c.ctx, view_of<const T, device_space>(c.experts),
                                                 of_any_type(c.router), c.saved, of_any_type(c.grad_rows),
                                                 of_any_type(c.grad_router), gradient, mode, c.scratch,
                                                 c.options, true);
                });
              },
          .factored =
              [](const gpu_backward& c, const cuda::gradient_factors& factors) {
                cuda::detail::backward<cuda::detail::vjp_mode::factored, T, T>(
                    c.what, c.ctx, view_of<const T, device_space>(c.experts), of_any_type(c.router), c.saved,
                    of_any_type(c.grad_rows), of_any_type(c.grad_router), {}, factors, c.scratch, c.options);
              }};
}

}  // namespace mpi_router_c
