// From tokens to experts: logits, selection, weights (Eq. 6).
#pragma once

#include <mpi_router/router/products.hpp>
#include <mpi_router/router/router_options.hpp>
#include <mpi_router/router/selection.hpp>

MPIROUTER_BEGIN_TYPES

/// What a gate tells of T tokens. The views are the caller's.
template <Accumulator S>
struct gate_output {
  matrix_view<S> weights;           ///< [T, K], best expert first
  std::span<expert_id> experts;     ///< T · K, row after row
  std::span<status> statuses = {};  ///< T, or empty: ok, or non_finite
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Elements of scratch for T tokens and N experts.
[[nodiscard]] constexpr index_t gating_workspace(index_t num_tokens, index_t num_experts) noexcept;

namespace detail {

/// Tokens are cut into blocks of this many, whatever runs them.
inline constexpr index_t token_block = 256;

[[nodiscard]] constexpr index_t token_blocks(index_t num_tokens) noexcept {
  return num_tokens / token_block + (num_tokens % token_block != 0 ? 1 : 0);
}

/// Calls body(first, count, block) for each block of tokens.
template <class Run, class Body>
void for_token_blocks(const Run& executor, index_t num_tokens, const Body& body) {
  executor(token_blocks(num_tokens), [&](index_t block) {
    const index_t first = block * token_block;
    body(first, std::min(token_block, num_tokens - first), block);
  });
}

template <Accumulator S>
void check_gate(const char* what, const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& bias, const gate_output<S>& out,
                const vector_view<S>& workspace) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  core::check_gating(what, options, n);
  expect(bias.size() == 0 || bias.size() == n, what, ": a bias of ", bias.size(), " elements for ", n,
         " experts");
  expect(out.weights.rows() == t && out.weights.cols() == options.top_k, what, ": the weights are [",
         out.weights.rows(), ", ", out.weights.cols(), "], not [T = ", t, ", K = ", options.top_k, "]");
  expect(static_cast<index_t>(out.experts.size()) == t * options.top_k, what, ": ", out.experts.size(),
         " expert ids, not T · K = ", t * options.top_k);
  expect(out.statuses.empty() || static_cast<index_t>(out.statuses.size()) == t, what, ": ",
         out.statuses.size(), " statuses for ", t, " tokens");
  expect(workspace.size() >= gating_workspace(t, n) && workspace.is_contiguous(), what,
         ": the workspace has ", workspace.size(), " elements, not ", gating_workspace(t, n));
}

template <Accumulator S, class X>
void check_product(const char* what, const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                   const matrix_view<S>& logits) {
  expect(tokens.cols() == rows.cols() && logits.rows() == tokens.rows() && logits.cols() == rows.rows(), what,
         ": tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(), ", ", rows.cols(),
         "], logits [", logits.rows(), ", ", logits.cols(), "]");
}

template <Accumulator S>
void gate_block(const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& bias, const gate_output<S>& out, S* scratch, index_t first,
                index_t count) {
  for (index_t t = first; t < first + count; ++t) {
    expert_id* const ids = out.experts.data() + t * options.top_k;
    const status s = gate_token<S>(logits.row(t), options, bias, scratch, ids, out.weights.row(t));
    if (!out.statuses.empty()) {
      out.statuses[static_cast<std::size_t>(t)] = s;
    }
  }
}

}  // namespace detail

[[nodiscard]] constexpr index_t gating_workspace(index_t num_tokens, index_t num_experts) noexcept {
  return detail::token_blocks(num_tokens) * detail::token_scratch(num_experts);
}

/// Selects K experts for each token and weighs them, as `options` says (router/gating_options.hpp has the
/// table of model families).
///
/// logits: [T, N], any strides; bias: N elements added to what experts are selected by, never to their
/// weights, or empty; out: see gate_output; workspace: gating_workspace(T, N) elements. Experts of a token
/// come best first, ties to the lower index; a NaN that a bias makes counts as −∞. A token with a NaN logit,
/// or whose weights would not be finite (softmax of +∞ or of nothing but −∞), gets the experts 0 … K − 1 with
/// weight zero and the status non_finite. O(T·N) plus the insertions into K places. Nothing is allocated;
/// bitwise the same for every executor. Throws usage_error on shapes and options.
template <Accumulator S, class Run = serial_executor>
void gate(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
          std::type_identity_t<vector_view<const S>> bias, const gate_output<S>& out,
          std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  detail::check_gate<S>("gate", logits, options, bias, out, workspace);
  detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
    detail::gate_block<S>(logits, options, bias, out,
                          workspace.data() + block * detail::token_scratch(logits.cols()), first, count);
  });
}

/// The logits of all tokens, x R′ᵀ: tokens [T, D] of any storage type, rows [N, D], logits [T, N], summed in
/// S. One task for each 256 tokens. Throws usage_error on shapes.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void router_logits(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                   const matrix_view<S>& logits, const Run& executor = {}, const Product& product = {}) {
  detail::check_product<S>("router_logits", tokens, rows, logits);
  detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
    product.multiply(matrix_view<const std::remove_const_t<X>>(tokens.middle_rows(first, count)),
                     rows.transposed(), logits.middle_rows(first, count), gradient_mode::write);
  });
}

/// router_logits and gate in one pass over the tokens: each block of logits is used while it is in the cache.
/// The logits are kept, for the backward and the losses.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void route(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
           const gating_options& options, std::type_identity_t<vector_view<const S>> bias,
           const matrix_view<S>& logits, const gate_output<S>& out,
           std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
           const Product& product = {}) {
  detail::check_product<S>("route", tokens, rows, logits);
  detail::check_gate<S>("route", logits, options, bias, out, workspace);
  detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t block) {
    product.multiply(matrix_view<const std::remove_const_t<X>>(tokens.middle_rows(first, count)),
                     rows.transposed(), logits.middle_rows(first, count), gradient_mode::write);
    detail::gate_block<S>(logits, options, bias, out,
                          workspace.data() + block * detail::token_scratch(logits.cols()), first, count);
  });
}

MPIROUTER_END
