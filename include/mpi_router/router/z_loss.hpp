// The loss that keeps the logits small, and its gradient.
#pragma once

#include <mpi_router/router/gating.hpp>

MPIROUTER_BEGIN
namespace detail {

/// log Σ e^x; NaN-free false where it is not finite.
template <Accumulator S>
[[nodiscard]] bool log_sum_exp(const vector_view<const S>& x, S& result) noexcept {
  S largest = -infinite<S>;
  for (index_t i = 0; i < x.size(); ++i) {
    if (is_nan(x[i])) {
      return false;
    }
    largest = std::max(largest, x[i]);
  }
  if (!is_finite(largest)) {
    return false;
  }
  result = largest +
           std::log(sum_terms<S>(x.size(), [&](index_t i) { return exp_of_nonpositive(x[i] - largest); }));
  return true;
}

}  // namespace detail

/// The router z-loss, coefficient 1: the mean over tokens of (log Σ_i e^{x_i})² (Zoph et al. 2022, ST-MoE).
/// logits: [T, N]; workspace: T elements are enough, ⌈T/256⌉ are used. Tokens where it is not finite add
/// nothing. O(T·N); bitwise the same for every executor.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S z_loss(std::type_identity_t<matrix_view<const S>> logits, const vector_view<S>& workspace,
                       const Run& executor = {}) {
  const index_t blocks = detail::token_blocks(logits.rows());
  detail::expect(workspace.size() >= blocks, "z_loss: the workspace has ", workspace.size(),
                 " elements, not ", blocks);
  detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
    S sum{0};
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      if (detail::log_sum_exp<S>(logits.row(t), value)) {
        sum += value * value;
      }
    }
    workspace[block] = sum;
  });
  S total{0};
  for (index_t block = 0; block < blocks; ++block) {
    total += workspace[block];
  }
  return blocks > 0 ? total / static_cast<S>(logits.rows()) : S{0};
}

/// Its gradient: grad_logits ← or += grad_loss · 2 log Σ e^x · softmax(x) / T.
template <Accumulator S, class Run = serial_executor>
void z_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, std::type_identity_t<S> grad_loss,
                const matrix_view<S>& grad_logits, gradient_mode mode, const Run& executor = {}) {
  detail::expect(grad_logits.rows() == logits.rows() && grad_logits.cols() == logits.cols(),
                 "z_loss_vjp: the gradient to the logits is [", grad_logits.rows(), ", ", grad_logits.cols(),
                 "], not [", logits.rows(), ", ", logits.cols(), "]");
  detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t) {
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      const bool finite = detail::log_sum_exp<S>(logits.row(t), value);
      const S factor = finite ? grad_loss * S{2} * value / static_cast<S>(logits.rows()) : S{0};
      for (index_t i = 0; i < logits.cols(); ++i) {
        const S gradient = finite ? factor * std::exp(logits(t, i) - value) : S{0};
        grad_logits(t, i) = mode == gradient_mode::write ? gradient : grad_logits(t, i) + gradient;
      }
    }
  });
}

MPIROUTER_END
