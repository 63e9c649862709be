// From tokens to experts: logits, selection, weights (Eq. 6).
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/router/gate_token.hpp>
#include <mpi_router/router/logits.hpp>
#include <mpi_router/router/mask.hpp>
#include <mpi_router/router/router_options.hpp>

MPIROUTER_BEGIN_TYPES

/// What a gate tells of T tokens. The views are the caller's.
template <Accumulator S>
struct gate_output {
  matrix_view<S> weights;           ///< [T, K], best expert first
  std::span<expert_id> experts;     ///< T · K, row after row
  std::span<status> statuses = {};  ///< T, or empty: ok, non_finite, masked or closed_expert
};

/// The two biases that routers have, of N elements each or empty. They are never the same thing.
template <Accumulator S>
struct router_biases {
  vector_view<const S> logits{};     ///< added to the logits, as in gpt-oss; its gradient is Σ_t grad_logits
  vector_view<const S> selection{};  ///< added to what experts are selected by, never to their weights, as in
                                     ///< DeepSeek-V3; without a gradient. −∞ closes an expert
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Elements of scratch for T tokens and N experts.
[[nodiscard]] constexpr index_t gating_workspace(index_t num_tokens, index_t num_experts) noexcept {
  return detail::token_blocks(num_tokens) * detail::token_scratch(num_experts);
}

namespace detail {

/// What gate, gate_weights and gate_vjp ask of their options, the bias, the mask and the workspace.
template <Accumulator S>
void check_gate(const char* what, const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& selection_bias, std::span<const status> mask,
                const vector_view<S>& workspace) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  core::check_gating(what, options, n);
  expect(selection_bias.size() == 0 || selection_bias.size() == n, what, ": a selection bias of ",
         selection_bias.size(), " elements for ", n, " experts");
  check_mask(what, mask, t);
  expect(workspace.size() >= gating_workspace(t, n) && workspace.is_contiguous(), what,
         ": the workspace has ", workspace.size(), " elements (stride ", workspace.stride(), "), not ",
         gating_workspace(t, n), " contiguous ones");
}

template <class S>
void check_weights(const char* what, const char* name, const matrix_view<S>& weights, index_t num_tokens,
                   index_t top_k) {
  expect(weights.rows() == num_tokens && weights.cols() == top_k, what, ": ", name, " are [", weights.rows(),
         ", ", weights.cols(), "], not [T = ", num_tokens, ", K = ", top_k, "]");
}

template <Accumulator S>
[[nodiscard]] named_range used_workspace(const vector_view<S>& workspace,
                                         const matrix_view<const S>& logits) {
  return {"the workspace", first_elements(workspace, gating_workspace(logits.rows(), logits.cols()))};
}

/// Statuses for T tokens, and the mask apart from all that is written, except the statuses: it may be them.
inline void check_statuses(const char* what, std::span<const status> statuses, std::span<const status> mask,
                           index_t num_tokens, std::initializer_list<named_range> written) {
  check_mask(what, statuses, num_tokens);
  const named_range mask_range{"the mask", addresses_of(mask)};
  expect_apart(what, mask_range, written);
  if (mask.data() != statuses.data()) {
    expect_apart(what, mask_range, {{"the statuses", addresses_of(statuses)}});
  }
}

template <Accumulator S>
void check_output(const char* what, const matrix_view<const S>& logits, const gating_options& options,
                  const vector_view<const S>& selection_bias, const gate_output<S>& out,
                  std::span<const status> mask, const vector_view<S>& workspace) {
  check_weights(what, "the weights", out.weights, logits.rows(), options.top_k);
  expect(static_cast<index_t>(out.experts.size()) == logits.rows() * options.top_k, what, ": ",
         out.experts.size(), " expert ids, not T · K = ", logits.rows() * options.top_k);
  const named_range weights{"the weights", addresses(out.weights)};
  const named_range ids{"the expert ids", addresses_of(out.experts)};
  const named_range work = used_workspace(workspace, logits);
  check_statuses(what, out.statuses, mask, logits.rows(), {weights, ids, work});
  expect_apart(what, {weights, ids, work, {"the statuses", addresses_of(out.statuses)}},
               {{"the logits", addresses(logits)}, {"the selection bias", addresses(selection_bias)}});
}

/// token(t) for each of the tokens [first, first + count) that counts, masked(t) for the others; what became
/// of each.
template <class Token, class Masked>
void for_tokens(index_t first, index_t count, std::span<const status> mask, std::span<status> statuses,
                const Token& token, const Masked& masked) {
  for (index_t t = first; t < first + count; ++t) {
    status state = status::masked;
    if (counts(mask, t)) {
      state = token(t);
    } else {
      masked(t);
    }
    if (!statuses.empty()) {
      statuses[static_cast<std::size_t>(t)] = state;
    }
  }
}

template <class Score, Accumulator S>
void gate_block(const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& selection_bias, const gate_output<S>& out, S* scratch,
                std::span<const status> mask, index_t first, index_t count) {
  const auto ids = [&](index_t t) { return out.experts.data() + t * options.top_k; };
  for_tokens(
      first, count, mask, out.statuses,
      [&](index_t t) {
        return gate_token<Score, S>(options, logits.row(t), selection_bias, scratch, ids(t),
                                    out.weights.row(t));
      },
      [&](index_t t) {
        std::fill_n(ids(t), options.top_k, expert_id{-1});
        set_zero(out.weights.row(t));
      });
}

/// Throws usage_error where a token that counts names an expert twice.
inline void check_distinct(const char* what, std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses) {
  for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    for (index_t other = entry / top_k * top_k; other < entry; ++other) {
      expect(experts[static_cast<std::size_t>(other)] != expert, what, ": token ", entry / top_k,
             " has expert ", expert, " twice");
    }
  });
}

}  // namespace detail

/// Selects K experts for each token and weighs them, as `options` says (table: core/gating_options.hpp).
///
/// logits: [T, N], any strides; selection_bias: N elements, or empty: added to what experts are selected by,
/// never to their weights; a NaN that it makes counts as −∞. out: see gate_output; workspace:
/// gating_workspace(T, N) elements; mask: T statuses, or empty (router/mask.hpp); it may be out.statuses. A
/// token's experts come best first, ties to the lower index, also under -ffast-math: by logits in their exact
/// order, or, where there is a bias or a group's scores are added up, by scores as rounded to S.
///
/// Statuses: `ok`; `non_finite`, experts 0 … K − 1 with weights zero: a NaN logit, or weights that would not
/// be finite (softmax of +∞ or of nothing but −∞); `masked`, ids −1 with weights zero; `closed_expert`: the
/// selection bias (−∞ or NaN) leaves fewer than K experts open; closed ones fill up with weight zero, and the
/// open ones share the weights.
///
/// O(T·N) plus the insertions into K places. Nothing is allocated; bitwise the same for every executor.
/// Throws usage_error on shapes, options and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
          std::type_identity_t<vector_view<const S>> selection_bias, const gate_output<S>& out,
          std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
          std::span<const status> mask = {}) {
  detail::check_gate<S>("gate", logits, options, selection_bias, mask, workspace);
  detail::check_output<S>("gate", logits, options, selection_bias, out, mask, workspace);
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      detail::gate_block<Score, S>(logits, options, selection_bias, out,
                                   workspace.data() + block * detail::token_scratch(logits.cols()), mask,
                                   first, count);
    });
  });
}

/// The weights of experts that were chosen before (router replay): what gate gives where it chooses
/// `experts`, from the logits of now. Its backward is gate_vjp.
///
/// experts: T · K ids, K different ones in [0, N) for each token that counts, in any order; weights: [T, K];
/// workspace: gating_workspace(T, N) elements; mask: which tokens count, or empty; statuses: T, or empty:
/// what became of each token, as gate tells it; they may be the mask. selection_bias: N elements, or empty:
/// which experts are closed. Throws usage_error on shapes, ids and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate_weights(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
                  std::span<const expert_id> experts, const matrix_view<S>& weights,
                  std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
                  std::span<const status> mask = {}, std::span<status> statuses = {},
                  std::type_identity_t<vector_view<const S>> selection_bias = {}) {
  constexpr const char* what = "gate_weights";
  const index_t n = logits.cols();
  detail::check_gate<S>(what, logits, options, selection_bias, mask, workspace);
  detail::check_weights(what, "the weights", weights, logits.rows(), options.top_k);
  detail::check_ids(what, experts, options.top_k, mask, logits.rows(), n);
  detail::check_distinct(what, experts, options.top_k, mask);
  const detail::named_range out{"the weights", detail::addresses(weights)};
  const detail::named_range work = detail::used_workspace<S>(workspace, logits);
  detail::check_statuses(what, statuses, mask, logits.rows(), {out, work});
  detail::expect_apart(what, {out, work, {"the statuses", detail::addresses_of(statuses)}},
                       {{"the logits", detail::addresses(logits)},
                        {"the selection bias", detail::addresses(selection_bias)},
                        {"the expert ids", detail::addresses_of(experts)}});
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      S* const scratch = workspace.data() + block * detail::token_scratch(n);
      detail::for_tokens(
          first, count, mask, statuses,
          [&](index_t t) {
            return detail::weigh_token<Score, S>(options, detail::contiguous<S>(logits.row(t), scratch), n,
                                                 selection_bias, experts.data() + t * options.top_k,
                                                 scratch + n, weights.row(t));
          },
          [&](index_t t) { detail::set_zero(weights.row(t)); });
    });
  });
}

/// router_logits and gate in one pass over the tokens: each block of logits is used while it is in the cache.
/// The logits are kept, for the backward and the losses. See both for the arguments; `biases` has one for
/// each, say {.selection = b}, and {} is none. Logits of masked tokens are written, and not looked at.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void route(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
           const gating_options& options, const std::type_identity_t<router_biases<S>>& biases,
           const matrix_view<S>& logits, const gate_output<S>& out,
           std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
           const Product& product = {}, std::span<const status> mask = {}) {
  const matrix_view<const S> written = logits;
  detail::check_logits<S>("route", tokens, rows, biases.logits, logits);
  detail::check_gate<S>("route", written, options, biases.selection, mask, workspace);
  detail::check_output<S>("route", written, options, biases.selection, out, mask, workspace);
  const detail::named_range inputs[] = {{"the tokens", detail::addresses(tokens)},
                                        {"the rows", detail::addresses(rows)},
                                        {"the bias of the logits", detail::addresses(biases.logits)}};
  for (const detail::named_range& input : inputs) {
    detail::expect_apart("route", input,
                         {{"the weights", detail::addresses(out.weights)},
                          {"the expert ids", detail::addresses_of(out.experts)},
                          {"the statuses", detail::addresses_of(out.statuses)},
                          detail::used_workspace<S>(workspace, written)});
  }
  detail::expect_apart("route", {"the logits", detail::addresses(logits)},
                       {{"the selection bias", detail::addresses(biases.selection)},
                        {"the mask", detail::addresses_of(mask)}});
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t block) {
      detail::block_of_logits<X, S>(tokens, rows, biases.logits, logits, product, first, count);
      detail::gate_block<Score, S>(written, options, biases.selection, out,
                                   workspace.data() + block * detail::token_scratch(logits.cols()), mask,
                                   first, count);
    });
  });
}

/// One bias, without its name: it is the selection bias here, and that of the logits in other libraries.
template <Scalar X, Accumulator S, std::convertible_to<vector_view<const S>> Bias,
          class Run = serial_executor, class Product = plain_products>
[[deprecated("say which bias: {.logits = b} or {.selection = b}")]] void route(
    const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
    const gating_options& options, const Bias& bias, const matrix_view<S>& logits, const gate_output<S>& out,
    std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}, const Product& product = {}) {
  route<X, S>(tokens, rows, options, {.selection = bias}, logits, out, workspace, executor, product);
}

MPIROUTER_END
