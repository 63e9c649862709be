// The backward of the gate: from the weights of the experts to the logits. That of the logits, on to tokens
// and rows, is in logits.hpp.
#pragma once

#include <mpi_router/core/options.hpp>
#include <mpi_router/router/gating.hpp>

MPIROUTER_BEGIN

namespace detail {

/// Whoever names closed experts says by which bias.
template <Accumulator S>
void check_closed(const char* what, std::span<const status> statuses,
                  const vector_view<const S>& selection_bias) {
  const bool is_closed = std::find(statuses.begin(), statuses.end(), status::closed_expert) != statuses.end();
  expect(!is_closed || selection_bias.size() != 0, what,
         ": some tokens have closed experts, and no selection bias says which these are");
}

}  // namespace detail

/// The backward of gate and of gate_weights: grad_logits ← or += the gradient of Σ weights · grad_weights
/// with respect to the logits. The choice of experts is constant, and so are the biases. Finite logits give
/// finite gradients, however far from zero or from the best ones they are.
///
/// logits, options, experts: as in the forward; grad_weights: [T, K]; grad_logits: [T, N]; workspace:
/// gating_workspace(T, N) elements; statuses: T, what the gate told of each token, or empty. Tokens that they
/// leave out or that have no weights (non_finite) give nothing: rows of zeros where gradients are written.
/// selection_bias: as in the forward, or empty; it closes experts, whose weights are constants: needed where
/// statuses have closed_expert. O(T·(N + K²)). Bitwise the same for every executor. Throws usage_error on
/// shapes, overlap, ids out of range, and an expert that a token has twice, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate_vjp(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
              std::span<const expert_id> experts, std::type_identity_t<matrix_view<const S>> grad_weights,
              const matrix_view<S>& grad_logits, gradient_mode mode,
              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
              std::span<const status> statuses = {},
              std::type_identity_t<vector_view<const S>> selection_bias = {}) {
  constexpr const char* what = "gate_vjp";
  const index_t n = logits.cols();
  const bool accumulate = core::accumulates(mode);
  detail::check_gate<S>(what, logits, options, selection_bias, statuses, workspace);
  detail::check_ids(what, experts, options.top_k, statuses, logits.rows(), n);
  detail::check_weights(what, "the gradients of the weights", grad_weights, logits.rows(), options.top_k);
  detail::check_gradient<S>(what, logits, grad_logits);
  detail::check_closed<S>(what, statuses, selection_bias);
  detail::expect_apart(what,
                       {{"the gradient to the logits", detail::addresses(grad_logits)},
                        detail::used_workspace<S>(workspace, logits)},
                       {{"the logits", detail::addresses(logits)},
                        {"the gradients of the weights", detail::addresses(grad_weights)},
                        {"the selection bias", detail::addresses(selection_bias)},
                        {"the expert ids", detail::addresses_of(experts)},
                        {"the statuses", detail::addresses_of(statuses)}});
  detail::check_distinct(what, experts, options.top_k, statuses);
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      for (index_t t = first; t < first + count; ++t) {
        if (!accumulate) {
          detail::set_zero(grad_logits.row(t));
        }
        if (detail::counts(statuses, t)) {
          detail::gate_token_vjp<Score, S>(
              options, logits.row(t), selection_bias, experts.data() + t * options.top_k, grad_weights.row(t),
              workspace.data() + block * detail::token_scratch(n), grad_logits.row(t));
        }
      }
    });
  });
}

MPIROUTER_END
