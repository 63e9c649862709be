// The gradient of the batched step on a GPU: to the rows, and to the gate matrices in one of three forms.
#pragma once

#include <mpi_router/cuda/detail/plain_vjp.cuh>
#include <mpi_router/cuda/detail/vjp_launch.cuh>
#include <mpi_router/cuda/router_rows.cuh>

MPIROUTER_CUDA_BEGIN

namespace detail {

/// A backward_path in `mode`.
template <class T, class G, vjp_mode mode>
struct backward_plan : backward_path<T, G> {
  backward_plan(const context& ctx, const expert_batch_view<const T, device_space>& experts,
                index_t gradient_hidden_stride, void* data)
      : backward_path<T, G>(ctx, experts.shape(), experts.strides().hidden, gradient_hidden_stride, mode,
                            data) {}
};

template <vjp_mode mode, class T, class G, class R, class U, class V>
void backward(const char* name, const context& ctx, const expert_batch_view<const T, device_space>& experts,
              const matrix_view<R, device_space>& rows, const saved_step& saved,
              const matrix_view<U, device_space>& grad_out, const matrix_view<V, device_space>& grad_rows,
              const expert_batch_view<G, device_space>& grad_experts, const gradient_factors& factors,
              const workspace& scratch, const step_options& options) {
  expect_context(name, ctx);
  expect_experts(name, experts);
  expect_rows(name, "rows", experts, rows);
  expect_rows(name, "grad_out", experts, grad_out);
  const bool wants_rows = grad_rows.data() != nullptr;
  if (wants_rows) {
    expect_rows(name, "grad_rows", experts, grad_rows);
    expect(!core::overlap(rows, grad_rows) && !core::overlap(grad_out, grad_rows), name,
           ": grad_rows overlaps rows or grad_out");
  }
  expect(options.radius > 0 && is_finite(options.radius), name,
         ": the radius must be positive and finite, not ", options.radius);
  expect(options.steps == 1, name, ": the gradient of ", options.steps,
         " steps; take it of one step at a time");
  const backward_plan<T, G, mode> plan(
      ctx, experts, mode == vjp_mode::factored ? 1 : grad_experts.strides().hidden, scratch.data);
  expect_workspace(name, scratch, plan.bytes);
  if (experts.num_experts() == 0 || experts.hidden_dim() == 0) {
    return;
  }
  expect(saved.direction != nullptr && saved.image_norm != nullptr && saved.statuses != nullptr, name,
         ": direction, image_norm and statuses of the forward are needed");
  const any_matrix to_rows = wants_rows ? any_matrix(grad_rows) : any_matrix();
  const int hidden = static_cast<int>(experts.hidden_dim());
  if (experts.ffn_dim() == 0) {  // every image was zero
    if (factors.dual_row != nullptr) {
      const auto size = static_cast<std::size_t>(experts.num_experts() * experts.hidden_dim());
      check("cudaMemsetAsync", cudaMemsetAsync(factors.dual_row, 0, size * sizeof(float), ctx.stream));
    }
    if (wants_rows) {
      collect(ctx, experts.num_experts(), collect_args<matrix_images>{{}, to_rows, nullptr, nullptr, hidden});
    }
    return;
  }
  const batch<const T> weights(experts);
  const batch<G> gradient(grad_experts);
  const dual_source dual{any_matrix(grad_out), any_matrix(saved.direction, experts.hidden_dim()), saved,
                         options.radius};
  if constexpr (sizeof(T) <= 4 && sizeof(G) <= 4) {
    if (plan.rows.vectors > 0) {
      return row_vjp<T, G, mode>(ctx, plan.rows, weights, experts.shape(), any_matrix(rows), dual, to_rows,
                                 gradient, factors, plan.sums);
    }
  }
  plain_vjp<T, G, mode>(ctx, weights, experts.shape(), any_matrix(rows), dual, to_rows, gradient, factors,
                        plan.plain);
}

}  // namespace detail

/// Bytes of workspace that router_rows_vjp needs.
template <class T, class G>
[[nodiscard]] std::size_t router_rows_vjp_workspace(const context& ctx,
                                                    const expert_batch_view<T, device_space>& experts,
                                                    const expert_batch_view<G, device_space>& grad_experts,
                                                    gradient_mode mode) {
  using value = std::remove_const_t<T>;
  const index_t stride = grad_experts.strides().hidden;
  return mode == gradient_mode::write
             ? detail::backward_plan<value, G, detail::vjp_mode::write>(ctx, experts, stride, nullptr).bytes
             : detail::backward_plan<value, G, detail::vjp_mode::accumulate>(ctx, experts, stride, nullptr)
                   .bytes;
}

/// The gradient of one step out = C · rM / ‖rM‖ (router_rows). Given grad_out = ḡ [N, D], with z = rM and ẑ =
/// z/‖z‖: z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)); grad_rows = z̄M [N, D]; grad_experts = (A r) z̄ᵀ + (A z̄) rᵀ, written, or
/// added to what is there. Orthogonal to r and to A. Zero for experts whose status was not ok.
///
/// experts and rows as in the forward, `saved` what it left. grad_rows may be a default-made view: not
/// wanted. grad_experts has the shape of experts, any layout (it may be the gate half of a fused tensor) and
/// storage type: of f32 to accumulate over many micro-batches. Reads the weights once and touches each
/// element of the gradient once, where both have stride 1 along D and D ≤ 8192; otherwise by the plain path
/// (weights read twice, f64). Deterministic, stream-ordered, no allocation. Values beyond the range of
/// grad_experts' type become infinite.
template <class T, class G, class R, class U, class V>
void router_rows_vjp(const context& ctx, const expert_batch_view<T, device_space>& experts,
                     const matrix_view<R, device_space>& rows, const saved_step& saved,
                     const matrix_view<U, device_space>& grad_out,
                     const matrix_view<V, device_space>& grad_rows,
                     const expert_batch_view<G, device_space>& grad_experts, gradient_mode mode,
                     const workspace& scratch, const step_options& options) {
  using value = std::remove_const_t<T>;
  constexpr const char* name = "cuda::router_rows_vjp";
  const expert_batch_view<const value, device_space> weights = experts;
  const expert_shape a = weights.shape(), b = grad_experts.shape();
  detail::expect(a == b, name, ": gradient of shape [", b.num_experts, ", ", b.ffn_dim, ", ", b.hidden_dim,
                 "] for experts [", a.num_experts, ", ", a.ffn_dim, ", ", a.hidden_dim, "]");
  if (mode == gradient_mode::write) {
    detail::backward<detail::vjp_mode::write, value, G>(name, ctx, weights, rows, saved, grad_out, grad_rows,
                                                        grad_experts, {}, scratch, options);
  } else {
    detail::backward<detail::vjp_mode::accumulate, value, G>(name, ctx, weights, rows, saved, grad_out,
                                                             grad_rows, grad_experts, {}, scratch, options);
  }
}

/// Bytes of workspace that router_rows_vjp_factored needs.
template <class T>
[[nodiscard]] std::size_t router_rows_vjp_factored_workspace(
    const context& ctx, const expert_batch_view<T, device_space>& experts) {
  using value = std::remove_const_t<T>;
  return detail::backward_plan<value, value, detail::vjp_mode::factored>(ctx, experts, 1, nullptr).bytes;
}

/// The same gradient with Ā left in factored form, Ā = y z̄ᵀ + w rᵀ: nothing of the size of the weights is
/// written. Any of the factors may be null. Otherwise as router_rows_vjp.
template <class T, class R, class U, class V>
void router_rows_vjp_factored(const context& ctx, const expert_batch_view<T, device_space>& experts,
                              const matrix_view<R, device_space>& rows, const saved_step& saved,
                              const matrix_view<U, device_space>& grad_out,
                              const matrix_view<V, device_space>& grad_rows, const gradient_factors& factors,
                              const workspace& scratch, const step_options& options) {
  using value = std::remove_const_t<T>;
  const expert_batch_view<const value, device_space> weights = experts;
  detail::backward<detail::vjp_mode::factored, value, value>(
      "cuda::router_rows_vjp_factored", ctx, weights, rows, saved, grad_out, grad_rows,
      expert_batch_view<value, device_space>{}, factors, scratch, options);
}

MPIROUTER_CUDA_END
