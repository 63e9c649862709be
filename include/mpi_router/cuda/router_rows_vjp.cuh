// The gradient of the batched step on a GPU: to the rows, and to the gate matrices in one of three forms.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/device/expect_step.cuh>
#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/finish/launch.cuh>
#include <mpi_router/cuda/detail/finish/nothing.cuh>
#include <mpi_router/cuda/detail/generic/vector_vjp_launch.cuh>
#include <mpi_router/cuda/detail/generic/vjp_launch.cuh>
#include <mpi_router/cuda/detail/panels/vjp_launch.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/cuda/detail/plan/vjp_plan.hpp>
#include <mpi_router/cuda/detail/rows/vjp_launch.cuh>

#include <cstddef>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A backward_path in `mode`.
template <class T, class G, vjp_mode mode>
struct backward_plan : backward_path<T, G> {
  backward_plan(const context& ctx, const expert_batch_view<const T, device_space>& experts,
                const expert_strides& gradient, void* data)
      : backward_path<T, G>(ctx, experts.shape(), experts.strides(), gradient, mode, data) {}
};

/// One read of the weights where the plan has one, else two, or the generic path; then the sums of the parts.
template <vjp_mode mode, class T, class G>
void run_backward(const context& ctx, const backward_plan<T, G, mode>& plan,
                  const expert_batch_view<const T, device_space>& experts, const any_matrix& router,
                  const dual_source& dual, const any_matrix& to_router,
                  const expert_batch_view<G, device_space>& grad_experts, const gradient_factors& factors) {
  const batch<const T> weights(experts);
  const batch<G> gradient(grad_experts);
  const auto use = [&](const auto& images) {
    if (to_router.data != nullptr) {
      collect(ctx, experts.num_experts(),
              collect_args<std::remove_cvref_t<decltype(images)>>{
                  images, to_router, nullptr, dual.saved.statuses,
                  dual.passes_on() ? dual.grad_rows : any_matrix(), static_cast<int>(experts.hidden_dim())});
    }
  };
  [[maybe_unused]] const bool in_floats = !router.is_double() && !dual.grad_rows.is_double();
  if constexpr (has_vectors<T> && has_vectors<G>) {
    if (in_floats && plan.rows.vectors > 0) {
      row_vjp<T, G, mode>(ctx, plan.rows, weights, experts.shape(), router, dual, to_router, gradient,
                          factors, plan.sums);
      return plan.rows.cluster > 0 ? void() : use(slot_images{plan.sums, plan.rows.part});
    }
    if (in_floats && plan.panels.lanes > 0) {
      const auto pull = [&](const auto& columns, const auto& to) {
        panel_vjp<mode>(ctx, plan.panels, columns, experts.shape(), router, dual, to_router, to, factors,
                        plan.sums);
      };
      plan.in_pairs ? pull(in_pairs(weights), in_pairs(gradient)) : pull(weights, gradient);
      return plan.panels.members > 0 ? void() : use(slot_images{plan.sums, plan.panels.part});
    }
  }
  if constexpr (has_vectors<T>) {
    if (in_floats && plan.in_vectors) {
      vjp_in_two_reads<T, G, mode>(ctx, weights, experts.shape(), router, dual, gradient, factors,
                                   plan.generic, plan.scaled);
      return use(matrix_images{any_matrix(plan.generic.u, experts.hidden_dim())});
    }
  }
  generic_vjp<T, G, mode>(ctx, weights, experts.shape(), router, dual, gradient, factors, plan.generic);
  use(matrix_images{any_matrix(plan.generic.u, experts.hidden_dim())});
}

template <vjp_mode mode, class T, class G>
void backward(const char* name, const context& ctx, const expert_batch_view<const T, device_space>& experts,
              const given_matrix& router, const saved_step& saved, const given_matrix& grad_rows,
              const given_matrix& grad_router, const expert_batch_view<G, device_space>& grad_experts,
              const gradient_factors& factors, const workspace& scratch, const step_options& options,
              bool of_all = true) {
  static_assert(!std::is_const_v<G>, "router_rows_vjp: an output is const");
  expect_context(name, ctx);
  expect_experts(name, experts);
  const double radius = expect_radius(name, options, experts.total_experts());
  expect_one_step_back(name, options);
  const backward_plan<T, G, mode> plan(
      ctx, experts, mode == vjp_mode::factored ? experts.strides() : grad_experts.strides(), scratch.data);
  expect_backward(name, experts, router, saved, grad_rows, grad_router, factors, scratch, plan.bytes);
  expect_gradient_apart(name, experts, grad_experts, router, saved, grad_rows, grad_router,
                        addresses_of(scratch, plan.bytes));
  if (experts.num_experts() == 0) {
    return;
  }
  const any_matrix& to_router = grad_router.elements();
  const dual_source dual{grad_rows.elements(),
                         any_matrix(saved.direction, experts.hidden_dim()),
                         saved,
                         radius,
                         options.degenerate,
                         of_all};
  if (experts.empty()) {
    return backward_of_nothing(name, ctx, experts.shape(), dual, to_router, factors);
  }
  run_backward(ctx, plan, experts, router.elements(), dual, to_router, grad_experts, factors);
}

/// `of_all`: these neurons are all that the saved direction was made of.
template <class T, class G>
void backward_in_mode(const char* name, const context& ctx,
                      const expert_batch_view<const T, device_space>& experts, const given_matrix& router,
                      const saved_step& saved, const given_matrix& grad_rows, const given_matrix& grad_router,
                      const expert_batch_view<G, device_space>& grad_experts, gradient_mode mode,
                      const workspace& scratch, const step_options& options, bool of_all) {
  const expert_shape a = experts.shape(), b = grad_experts.shape();
  expect(a == b, name, ": gradient of shape [", b.num_experts, ", ", b.ffn_dim, ", ", b.hidden_dim,
         "] for experts [", a.num_experts, ", ", a.ffn_dim, ", ", a.hidden_dim, "]");
  const auto run = [&]<vjp_mode as>(std::integral_constant<vjp_mode, as>) {
    backward<as, T, G>(name, ctx, experts, router, saved, grad_rows, grad_router, grad_experts, {}, scratch,
                       options, of_all);
  };
  switch (mode) {
    case gradient_mode::write: return run(std::integral_constant<vjp_mode, vjp_mode::write>{});
    case gradient_mode::accumulate: return run(std::integral_constant<vjp_mode, vjp_mode::accumulate>{});
  }
  core::usage_failure("cuda::router_rows_vjp: no such gradient_mode");
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Bytes of workspace that router_rows_vjp needs.
template <class T, class G>
[[nodiscard]] std::size_t router_rows_vjp_workspace(const context& ctx,
                                                    const expert_batch_view<T, device_space>& experts,
                                                    const expert_batch_view<G, device_space>& grad_experts,
                                                    gradient_mode mode) {
  using value = std::remove_const_t<T>;
  const expert_strides& gradient = grad_experts.strides();
  switch (mode) {
    case gradient_mode::write:
      return detail::backward_plan<value, G, detail::vjp_mode::write>(ctx, experts, gradient, nullptr).bytes;
    case gradient_mode::accumulate:
      return detail::backward_plan<value, G, detail::vjp_mode::accumulate>(ctx, experts, gradient, nullptr)
          .bytes;
  }
  core::usage_failure("cuda::router_rows_vjp_workspace: no such gradient_mode");
}

/// The gradient of one step rows = C · rM / ‖rM‖ (router_rows). Given grad_rows = ḡ [N, D], that of the
/// result, with z = rM and ẑ = z/‖z‖: z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)); grad_router = z̄M [N, D]; grad_experts = (A r)
/// z̄ᵀ + (A z̄) rᵀ, written, or added to what is there. Orthogonal to r and to A. A row whose status was not ok
/// gives none to A, and passes its own on if `options.degenerate` says keep, as the row itself went through;
/// else it is zero.
///
/// experts, router and options as in the forward, `saved` what it left; grad_router may be a default-made
/// view: not wanted. grad_experts has the shape of experts, any layout (the gate half of a fused tensor) and
/// storage type: f32 to accumulate over many micro-batches; values beyond its range become infinite. One read
/// of the weights and one write, or read and write, of the gradient where both have stride 1 along D and D ≤
/// 8192 (to accumulate in f32 on sm_86, sm_89 and sm_120 somewhat less: 6064 where the weights are f32), and
/// on sm_90, sm_100 and sm_103 with D ≤ 16384 where both have stride 1 along F, or both stride 2 and all
/// other strides even (gate and up interleaved). Of such an interleaved gradient whole vectors are read and
/// written: what lies between and beside its elements, the other half of the pairs, stays as it is; nothing
/// else may write it meanwhile, nor may another expert or layer of the call lie there. Two reads
/// of the weights, and the same of the gradient, where one axis of theirs has stride 1; else, and where
/// router or grad_rows are f64, by the generic path (two reads, f64). Deterministic, stream-ordered, no
/// allocation. Throws usage_error on shapes, overlap and another current device.
template <class T, class G, class R, class U, class V>
void router_rows_vjp(const context& ctx, const expert_batch_view<T, device_space>& experts,
                     const matrix_view<R, device_space>& router, const saved_step& saved,
                     const matrix_view<U, device_space>& grad_rows,
                     const matrix_view<V, device_space>& grad_router,
                     const expert_batch_view<G, device_space>& grad_experts, gradient_mode mode,
                     const workspace& scratch, const step_options& options) {
  static_assert(!std::is_const_v<V>, "router_rows_vjp: an output is const");
  const expert_batch_view<const std::remove_const_t<T>, device_space> weights = experts;
  detail::backward_in_mode("cuda::router_rows_vjp", ctx, weights, router, saved, grad_rows, grad_router,
                           grad_experts, mode, scratch, options, true);
}

/// Bytes of workspace that router_rows_vjp_factored needs.
template <class T>
[[nodiscard]] std::size_t router_rows_vjp_factored_workspace(
    const context& ctx, const expert_batch_view<T, device_space>& experts) {
  using value = std::remove_const_t<T>;
  return detail::backward_plan<value, value, detail::vjp_mode::factored>(ctx, experts, experts.strides(),
                                                                         nullptr)
      .bytes;
}

/// The same gradient with Ā left in factored form, Ā = y z̄ᵀ + w rᵀ: nothing of the size of the weights is
/// written. Any of the factors may be null. Otherwise as router_rows_vjp.
template <class T, class R, class U, class V>
void router_rows_vjp_factored(const context& ctx, const expert_batch_view<T, device_space>& experts,
                              const matrix_view<R, device_space>& router, const saved_step& saved,
                              const matrix_view<U, device_space>& grad_rows,
                              const matrix_view<V, device_space>& grad_router,
                              const gradient_factors& factors, const workspace& scratch,
                              const step_options& options) {
  static_assert(!std::is_const_v<V>, "router_rows_vjp_factored: an output is const");
  using value = std::remove_const_t<T>;
  const expert_batch_view<const value, device_space> weights = experts;
  detail::backward<detail::vjp_mode::factored, value, value>(
      "cuda::router_rows_vjp_factored", ctx, weights, router, saved, grad_rows, grad_router,
      expert_batch_view<value, device_space>{}, factors, scratch, options);
}

MPIROUTER_CUDA_END
