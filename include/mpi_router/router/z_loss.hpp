// The loss that keeps the logits small, and its gradient.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/options.hpp>
#include <mpi_router/router/mask.hpp>
#include <mpi_router/router/scores.hpp>
#include <mpi_router/router/token_blocks.hpp>

#include <atomic>

MPIROUTER_BEGIN
namespace detail {

/// The largest logit; false where log Σ e^x is not finite, and the token does not count.
template <Accumulator S>
[[nodiscard]] bool finite_largest(const vector_view<const S>& x, S& largest) noexcept {
  if (x.is_contiguous()) {
    largest = largest_of(x.data(), x.size());
  } else {
    largest = -infinite<S>;
    for (index_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, x[i]);
    }
  }
  return is_finite(largest) && !has_nan(x);
}

/// log Σ e^x; false where it is not finite.
template <Accumulator S>
[[nodiscard]] bool log_sum_exp(const vector_view<const S>& x, S& result) noexcept {
  S largest{};
  if (!finite_largest(x, largest)) {
    return false;
  }
  result = largest +
           std::log(sum_terms<S>(x.size(), [&](index_t i) { return exp_of_nonpositive(x[i] - largest); }));
  return true;
}

/// Σ over blocks of count_in(first, count, block), numbers of tokens: they add up to the same in any order.
template <class Run, class Count>
[[nodiscard]] index_t count_tokens(const Run& executor, index_t num_tokens, const Count& count_in) {
  std::atomic<index_t> total{0};
  for_token_blocks(executor, num_tokens, [&](index_t first, index_t count, index_t block) {
    total += count_in(first, count, block);
  });
  return total;
}

}  // namespace detail

/// The router z-loss, coefficient 1: the mean over tokens of (log Σ_i e^{x_i})² (Zoph et al. 2022, ST-MoE).
/// logits: [T, N]; workspace: T elements are enough, ⌈T/256⌉ are used; statuses: T, which tokens count
/// (router/mask.hpp), or empty. Tokens where it is not finite do not count. 0 where none counts. O(T·N);
/// bitwise the same for every executor. Throws usage_error on shapes and overlap.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S z_loss(std::type_identity_t<matrix_view<const S>> logits, const vector_view<S>& workspace,
                       const Run& executor = {}, std::span<const status> statuses = {}) {
  const index_t blocks = detail::token_blocks(logits.rows());
  detail::check_mask("z_loss", statuses, logits.rows());
  detail::expect(workspace.size() >= blocks && workspace.is_contiguous(), "z_loss: the workspace has ",
                 workspace.size(), " elements, not ", blocks, " contiguous ones");
  detail::expect_apart(
      "z_loss", {"the workspace", detail::first_elements(workspace, blocks)},
      {{"the logits", detail::addresses(logits)}, {"the statuses", detail::addresses_of(statuses)}});
  const auto sum_block = [&](index_t first, index_t count, index_t block) {
    index_t counted = 0;
    workspace[block] = S{0};
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      if (detail::counts(statuses, t) && detail::log_sum_exp<S>(logits.row(t), value)) {
        workspace[block] += value * value;
        ++counted;
      }
    }
    return counted;
  };
  const index_t counted = detail::count_tokens(executor, logits.rows(), sum_block);
  double total = 0;
  for (index_t block = 0; block < blocks; ++block) {
    total += workspace[block];
  }
  return counted > 0 ? static_cast<S>(total / static_cast<double>(counted)) : S{0};
}

/// Its gradient: grad_logits ← or += grad_loss · 2 log Σ e^x · softmax(x) / V, V the tokens that count. None
/// for the others.
template <Accumulator S, class Run = serial_executor>
void z_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, std::type_identity_t<S> grad_loss,
                const matrix_view<S>& grad_logits, gradient_mode mode, const Run& executor = {},
                std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  detail::check_mask("z_loss_vjp", statuses, logits.rows());
  detail::check_gradient<S>("z_loss_vjp", logits, grad_logits);
  detail::expect_apart(
      "z_loss_vjp", {"the gradient to the logits", detail::addresses(grad_logits)},
      {{"the logits", detail::addresses(logits)}, {"the statuses", detail::addresses_of(statuses)}});
  const auto count_block = [&](index_t first, index_t count, index_t) {
    index_t counted = 0;
    for (index_t t = first; t < first + count; ++t) {
      S largest{};
      counted += detail::counts(statuses, t) && detail::finite_largest<S>(logits.row(t), largest) ? 1 : 0;
    }
    return counted;
  };
  const index_t counted = detail::count_tokens(executor, logits.rows(), count_block);
  const S factor = counted > 0 ? grad_loss * S{2} / static_cast<S>(counted) : S{0};
  detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t) {
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      if (!accumulate) {
        detail::set_zero(grad_logits.row(t));
      }
      if (detail::counts(statuses, t) && detail::log_sum_exp<S>(logits.row(t), value)) {
        for (index_t i = 0; i < logits.cols(); ++i) {
          grad_logits(t, i) += factor * value * detail::exp_of_nonpositive(logits(t, i) - value);
        }
      }
    }
  });
}

MPIROUTER_END
