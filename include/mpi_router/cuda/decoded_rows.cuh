// The batched step over experts that are decoded as they are read, and its gradient.
#pragma once

#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/decoded_experts.cuh>
#include <mpi_router/cuda/detail/decoded/launch.cuh>
#include <mpi_router/cuda/detail/device/expect_step.cuh>
#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/finish/launch.cuh>
#include <mpi_router/cuda/detail/finish/nothing.cuh>
#include <mpi_router/cuda/detail/finish/steps.cuh>
#include <mpi_router/cuda/detail/generic/vjp_launch.cuh>
#include <mpi_router/cuda/detail/plan/decoded_plan.hpp>
#include <mpi_router/cuda/detail/plan/expect.hpp>

#include <cstddef>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// use(images) of the rows, decoded once.
template <class Rows, class Use>
void step_of_decoded(const context& ctx, const decoded_plan& plan, const decoded_experts<Rows>& experts,
                     const any_matrix& router, const Use& use) {
  if (experts.empty()) return use(matrix_images{});
  use(decoded_step(ctx, plan, experts.rows(), experts.shape(), router));
}

/// router_rows of decoded experts; the rows and what is told go to `peers` too.
template <class Rows>
void forward(const char* name, const context& ctx, const decoded_experts<Rows>& experts,
             const given_matrix& router, const given_matrix& rows, const step_by_products& told,
             const saved_step& saved, const workspace& scratch, const step_options& options,
             const peer_copies& peers = {}) {
  expect_context(name, ctx);
  expect_experts(name, experts);
  expect(options.steps >= 1, name, ": ", options.steps, " steps");
  const double radius = expect_radius(name, options, experts.num_experts());
  const decoded_plan plan(ctx, experts.shape(), 1, options.steps, scratch.data);
  expect_forward(name, experts, router, rows, told, saved, scratch, plan.bytes);
  if (experts.num_experts() == 0) return;
  take_steps(plan, experts.hidden_dim(), router.elements(), rows.elements(), radius, told, saved, options,
             peers, [&](const finish_args& args, bool) {
               step_of_decoded(ctx, plan, experts, args.rows,
                               [&](const auto& images) { finish(ctx, experts.num_experts(), images, args); });
             });
}

/// router_rows_vjp_factored of decoded experts.
template <class Rows>
void backward(const char* name, const context& ctx, const decoded_experts<Rows>& experts,
              const given_matrix& router, const saved_step& saved, const given_matrix& grad_rows,
              const given_matrix& grad_router, const gradient_factors& factors, const workspace& scratch,
              const step_options& options) {
  expect_context(name, ctx);
  expect_experts(name, experts);
  const double radius = expect_radius(name, options, experts.num_experts());
  expect_one_step_back(name, options);
  const decoded_plan plan(ctx, experts.shape(), 2, 1, scratch.data);
  expect_backward(name, experts, router, saved, grad_rows, grad_router, factors, scratch, plan.bytes);
  const auto [n, f, d] = experts.shape();
  if (n == 0) return;
  const any_matrix& to_router = grad_router.elements();
  const dual_source dual{
      grad_rows.elements(), any_matrix(saved.direction, d), saved, radius, options.degenerate, false};
  if (experts.empty()) return backward_of_nothing(name, ctx, experts.shape(), dual, to_router, factors);
  launch("dual_kernel", ctx, {static_cast<unsigned>(n), generic_threads}, dual_kernel<>, dual,
         static_cast<const double*>(nullptr), static_cast<int>(d), plan.dual_rows);
  const decoded_images images = decoded_vjp(ctx, plan, experts.rows(), experts.shape(), router.elements());
  if (to_router.data != nullptr) {
    collect(
        ctx, n,
        collect_args<decoded_images>{images, to_router, nullptr, saved.statuses,
                                     dual.passes_on() ? dual.grad_rows : any_matrix(), static_cast<int>(d)});
  }
  narrow(ctx, n, plan.projections[0], factors.projection, saved.statuses, static_cast<int>(f));
  narrow(ctx, n, plan.projections[1], factors.dual_projection, saved.statuses, static_cast<int>(f));
  narrow(ctx, n, plan.dual_rows, factors.dual_row, saved.statuses, static_cast<int>(d));
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Bytes of workspace that router_rows needs.
template <class Rows>
[[nodiscard]] std::size_t router_rows_workspace(const context& ctx, const decoded_experts<Rows>& experts,
                                                index_t steps = 1) {
  return detail::decoded_plan(ctx, experts.shape(), 1, steps, nullptr).bytes;
}

/// The batched step as router_rows of cuda/router_rows.cuh (Eq. 4, 5), over experts that are decoded as they
/// are read: O(N·F·D), once a step, whatever D up to 32768 is. Sums in f32, with a scale of their own: for
/// weights between about 1e-30 and 1e30, and rows of any magnitude (of f64 where ‖r‖ and ‖rM‖ stay within
/// about 1e±150). Every sum in an order that depends on the shape and the device alone. ctx.inputs_at_rest
/// has no effect.
template <class Rows, class R, class O>
void router_rows(const context& ctx, const decoded_experts<Rows>& experts,
                 const matrix_view<R, device_space>& router, const matrix_view<O, device_space>& rows,
                 const step_by_products& told, const saved_step& saved, const workspace& scratch,
                 const step_options& options) {
  static_assert(!std::is_const_v<O>, "router_rows: the output is const");
  detail::forward("cuda::router_rows", ctx, experts, router, rows, told, saved, scratch, options);
}

/// Bytes of workspace that images_of_rows needs.
template <class Rows>
[[nodiscard]] std::size_t images_of_rows_workspace(const context& ctx, const decoded_experts<Rows>& experts) {
  return router_rows_workspace(ctx, experts, 1);
}

/// The partial form, as images_of_rows of cuda/router_rows.cuh.
template <class Rows, class R, class O>
void images_of_rows(const context& ctx, const decoded_experts<Rows>& experts,
                    const matrix_view<R, device_space>& router, const matrix_view<O, device_space>& images,
                    double* energies, const workspace& scratch) {
  static_assert(!std::is_const_v<O>, "images_of_rows: the images are const");
  constexpr const char* name = "cuda::images_of_rows";
  detail::expect_context(name, ctx);
  detail::expect_experts(name, experts);
  const detail::decoded_plan plan(ctx, experts.shape(), 1, 1, scratch.data);
  detail::expect_images(name, experts, router, images, energies, scratch, plan.bytes);
  if (experts.num_experts() == 0) return;
  detail::step_of_decoded(ctx, plan, experts, detail::any_matrix(router), [&](const auto& source) {
    detail::collect(
        ctx, experts.num_experts(),
        detail::collect_args<std::remove_cvref_t<decltype(source)>>{source,
                                                                    detail::any_matrix(images),
                                                                    energies,
                                                                    nullptr,
                                                                    {},
                                                                    static_cast<int>(experts.hidden_dim())});
  });
}

/// Bytes of workspace that router_rows_vjp_factored needs.
template <class Rows>
[[nodiscard]] std::size_t router_rows_vjp_factored_workspace(const context& ctx,
                                                             const decoded_experts<Rows>& experts) {
  return detail::decoded_plan(ctx, experts.shape(), 2, 1, nullptr).bytes;
}

/// The gradient of that step, as router_rows_vjp_factored of cuda/router_rows_vjp.cuh: r̄ = z̄ M for the router
/// of weights that stay as they are, and, where they are wanted, the factors of Ā = y z̄ᵀ + w rᵀ. One read.
template <class Rows, class R, class U, class V>
void router_rows_vjp_factored(const context& ctx, const decoded_experts<Rows>& experts,
                              const matrix_view<R, device_space>& router, const saved_step& saved,
                              const matrix_view<U, device_space>& grad_rows,
                              const matrix_view<V, device_space>& grad_router,
                              const gradient_factors& factors, const workspace& scratch,
                              const step_options& options) {
  static_assert(!std::is_const_v<V>, "router_rows_vjp_factored: an output is const");
  detail::backward("cuda::router_rows_vjp_factored", ctx, experts, router, saved, grad_rows, grad_router,
                   factors, scratch, options);
}

MPIROUTER_CUDA_END
