// The backward of the gate: from the weights of the experts to the logits, and on to tokens and rows.
#pragma once

#include <mpi_router/router/gating.hpp>
#include <mpi_router/router/load.hpp>

MPIROUTER_BEGIN

namespace detail {

/// One token. grad_logits += the gradient of the weights' inner product with grad; the choice of experts is
/// constant.
template <Accumulator S>
void gate_token_vjp(const vector_view<const S>& logits, const gating_options& options, const expert_id* ids,
                    const vector_view<const S>& grad, S* scratch, const vector_view<S>& grad_logits) {
  const index_t n = logits.size();
  const index_t top_k = options.top_k;
  const bool is_softmax = options.score_function == score_function::softmax;
  const bool over_all = is_softmax && options.order == selection_order::score_then_select;

  // Scores: of all experts where their softmax is, otherwise of the selected ones.
  const vector_view<S> scores(scratch, n);
  const vector_view<S> chosen(scratch + n, top_k);
  const vector_view<S> upstream(scratch + 2 * n, top_k);  // gradient to the chosen scores
  for (index_t i = 0; i < n; ++i) {
    scores[i] = logits[i];
  }
  if (has_nan(vector_view<const S>(scores))) {
    return;
  }
  if (over_all) {
    if (!softmax(scores)) {
      return;
    }
    for (index_t k = 0; k < top_k; ++k) {
      chosen[k] = scores[ids[k]];
    }
  } else if (!selected_scores(options, logits, ids, chosen)) {
    return;
  }

  // w_k = c s_k / Σ s: s̄_k = c (ḡ_k − Σ_j ḡ_j s_j / Σ s) / Σ s.
  const S divisor = weight_divisor<S>(options, [&](index_t k) { return chosen[k]; });
  const S scale = static_cast<S>(options.scaling_factor);
  S mean{0};
  for (index_t k = 0; k < top_k; ++k) {
    if (!is_finite(chosen[k])) {
      return;
    }
    mean += grad[k] * (chosen[k] / divisor);
  }
  S along{0};
  for (index_t k = 0; k < top_k; ++k) {
    upstream[k] = scale * ((grad[k] - (options.renormalize ? mean : S{0})) / divisor);
    along += chosen[k] * upstream[k];
  }

  // Softmax: x̄ = s ∘ (s̄ − Σ s̄ s), over what it ran over; otherwise x̄ = s̄ s′.
  if (over_all) {
    for (index_t i = 0; i < n; ++i) {
      grad_logits[i] -= scores[i] * along;
    }
  }
  for (index_t k = 0; k < top_k; ++k) {
    const S derivative =
        is_softmax ? chosen[k] : score_derivative(options.score_function, logits[ids[k]], chosen[k]);
    grad_logits[ids[k]] += derivative * (upstream[k] - (is_softmax && !over_all ? along : S{0}));
  }
}

}  // namespace detail

/// The backward of gate: grad_logits ← or += the gradient of Σ weights · grad_weights with respect to the
/// logits. The choice of experts is constant, and with it the bias; tokens that were non_finite give nothing.
///
/// logits, options, experts: as in the forward; grad_weights: [T, K]; grad_logits: [T, N]; workspace:
/// gating_workspace(T, N) elements. O(T·N). Bitwise the same for every executor. Throws usage_error on
/// shapes and on ids out of range.
template <Accumulator S, class Run = serial_executor>
void gate_vjp(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
              std::span<const expert_id> experts, std::type_identity_t<matrix_view<const S>> grad_weights,
              const matrix_view<S>& grad_logits, gradient_mode mode,
              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  core::check_gating("gate_vjp", options, n);
  detail::check_ids("gate_vjp", experts, options.top_k, {}, t, n);
  detail::expect(grad_weights.rows() == t && grad_weights.cols() == options.top_k,
                 "gate_vjp: the gradient of the weights is [", grad_weights.rows(), ", ", grad_weights.cols(),
                 "], not [T = ", t, ", K = ", options.top_k, "]");
  detail::expect(grad_logits.rows() == t && grad_logits.cols() == n,
                 "gate_vjp: the gradient to the logits is [", grad_logits.rows(), ", ", grad_logits.cols(),
                 "], not [", t, ", ", n, "]");
  detail::expect(workspace.size() >= gating_workspace(t, n) && workspace.is_contiguous(),
                 "gate_vjp: the workspace has ", workspace.size(), " elements, not ", gating_workspace(t, n));
  detail::for_token_blocks(executor, t, [&](index_t first, index_t count, index_t block) {
    for (index_t token = first; token < first + count; ++token) {
      const auto out = grad_logits.row(token);
      for (index_t i = 0; mode == gradient_mode::write && i < n; ++i) {
        out[i] = S{0};
      }
      detail::gate_token_vjp<S>(logits.row(token), options, experts.data() + token * options.top_k,
                                grad_weights.row(token), workspace.data() + block * detail::token_scratch(n),
                                out);
    }
  });
}

/// The backward of router_logits: grad_tokens ← or += Ḡ R′, grad_rows ← or += Ḡᵀ X, with Ḡ = grad_logits, [T,
/// N]. An empty view asks for nothing. One task for each 256 tokens, then one for each 64 columns of
/// grad_rows: every element is summed in the order of the tokens, whoever runs it. Throws usage_error on
/// shapes.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires(MatrixProduct<Product, S, S, S> && MatrixProduct<Product, S, std::remove_const_t<X>, S>)
void router_logits_vjp(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                       std::type_identity_t<matrix_view<const S>> grad_logits,
                       const matrix_view<S>& grad_tokens,
                       const std::type_identity_t<matrix_view<S>>& grad_rows, gradient_mode mode,
                       const Run& executor = {}, const Product& product = {}) {
  const auto same = [](const auto& a, const auto& b) {
    return (a.rows() == 0 && a.cols() == 0) || (a.rows() == b.rows() && a.cols() == b.cols());
  };
  detail::expect(tokens.cols() == rows.cols() && grad_logits.rows() == tokens.rows() &&
                     grad_logits.cols() == rows.rows() && same(grad_tokens, tokens) && same(grad_rows, rows),
                 "router_logits_vjp: tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(),
                 ", ", rows.cols(), "], gradients [", grad_logits.rows(), ", ", grad_logits.cols(), "], [",
                 grad_tokens.rows(), ", ", grad_tokens.cols(), "], [", grad_rows.rows(), ", ",
                 grad_rows.cols(), "]");
  if (!grad_tokens.empty()) {
    detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
      product.multiply(grad_logits.middle_rows(first, count), rows, grad_tokens.middle_rows(first, count),
                       mode);
    });
  }
  if (!grad_rows.empty()) {
    constexpr index_t width = 64;
    const index_t d = tokens.cols();
    executor(d / width + (d % width != 0 ? 1 : 0), [&](index_t block) {
      const index_t first = block * width;
      const index_t count = std::min(width, d - first);
      product.multiply(grad_logits.transposed(),
                       matrix_view<const std::remove_const_t<X>>(tokens.middle_cols(first, count)),
                       grad_rows.middle_cols(first, count), mode);
    });
  }
}

MPIROUTER_END
