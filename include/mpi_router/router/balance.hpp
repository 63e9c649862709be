// The losses that keep the load even, each with its gradient to the logits.
//
// With p the scores of a token over all experts, divided by their sum, each loss is N Σ_i f_i P_i: f_i is how
// often expert i was chosen over the number of choices, P_i the mean of p_i. They differ in what both are of.
//
// clang-format off
//   variant   f and P of                                   Megatron-Core    also
//   sequence  each sequence by itself; the mean of those   seq_aux_loss     Switch, the paper, DeepSeek
//   batch     all T tokens as one sequence, L = T          aux_loss
//   global    f of all micro-batches and ranks             global_aux_loss
// clang-format on
//
// Even loads give 1. The counts are constants of the gradient. Coefficients are the caller's. The loss that
// keeps the logits small is in z_loss.hpp.
#pragma once

#include <mpi_router/router/gating.hpp>
#include <mpi_router/router/load.hpp>

MPIROUTER_BEGIN

/// Elements of scratch for the losses of T tokens in sequences of L, and N experts.
[[nodiscard]] constexpr index_t balance_workspace(index_t num_tokens, index_t num_experts,
                                                  index_t sequence_length) noexcept {
  const index_t sequences = sequence_length > 0 ? num_tokens / sequence_length : 0;
  return sequences * (detail::token_blocks(sequence_length) * 2 + 1) * num_experts;
}

namespace detail {

/// p in place of the logits; the sum of the scores. Nothing where they are not defined: such a token counts
/// for nothing.
template <Accumulator S>
[[nodiscard]] bool probabilities(score_function f, const vector_view<const S>& logits,
                                 const vector_view<S>& p, S& total) noexcept {
  for (index_t i = 0; i < p.size(); ++i) {
    p[i] = logits[i];
  }
  if (has_nan(vector_view<const S>(p)) || !all_scores(f, p)) {
    return false;
  }
  if (f == score_function::softmax) {
    total = S{1};
    return true;
  }
  total = sum_terms<S>(p.size(), [&](index_t i) { return p[i]; });
  if (!(total > S{0}) || !is_finite(total)) {
    return false;
  }
  for (index_t i = 0; i < p.size(); ++i) {
    p[i] /= total;
  }
  return true;
}

/// x̄ += the gradient of Σ weight_i p_i. `p` is scratch.
template <Accumulator S, class Weight>
void probabilities_vjp(score_function f, const vector_view<const S>& logits, const vector_view<S>& p,
                       Weight weight, const vector_view<S>& grad) noexcept {
  S total{};
  if (!probabilities(f, logits, p, total)) {
    return;
  }
  const S mean = sum_terms<S>(p.size(), [&](index_t i) { return weight(i) * p[i]; });
  for (index_t i = 0; i < p.size(); ++i) {
    const S derivative =
        f == score_function::softmax ? p[i] : score_derivative(f, logits[i], p[i] * total) / total;
    grad[i] += derivative * (weight(i) - mean);
  }
}

/// Blocks of tokens that end at the ends of sequences; a loss is summed block by block.
struct sequence_blocks {
  index_t length;
  index_t per_sequence;
  index_t count;

  sequence_blocks(const char* what, index_t num_tokens, index_t sequence_length)
      : length(num_tokens == 0 && sequence_length == 0 ? 1 : sequence_length),  // L = T = 0 is no work
        per_sequence(token_blocks(length)) {
    expect(length >= 1 && num_tokens % length == 0, what, ": ", num_tokens,
           " tokens do not fall into sequences of length ", length);
    count = num_tokens / length * per_sequence;
  }
  [[nodiscard]] index_t first(index_t block) const noexcept {
    return block / per_sequence * length + block % per_sequence * token_block;
  }
  [[nodiscard]] index_t end(index_t block) const noexcept {
    return std::min(first(block) + token_block, (block / per_sequence + 1) * length);
  }
};

template <Accumulator S>
void check_balance(const char* what, const matrix_view<const S>& logits, index_t sequence_length,
                   const vector_view<S>& workspace) {
  const index_t size = balance_workspace(logits.rows(), logits.cols(), sequence_length);
  expect(workspace.size() >= size && workspace.is_contiguous(), what, ": the workspace has ",
         workspace.size(), " elements, not ", size);
}

template <Accumulator S>
void check_gradient(const char* what, const matrix_view<const S>& logits, const matrix_view<S>& grad) {
  expect(grad.rows() == logits.rows() && grad.cols() == logits.cols(), what,
         ": the gradient to the logits is [", grad.rows(), ", ", grad.cols(), "], not [", logits.rows(), ", ",
         logits.cols(), "]");
}

template <Accumulator S>
void clear(gradient_mode mode, const vector_view<S>& grad) noexcept {
  for (index_t i = 0; mode == gradient_mode::write && i < grad.size(); ++i) {
    grad[i] = S{0};
  }
}

/// Counts of the experts chosen by the tokens of each sequence, [T/L, N], as S.
template <Accumulator S>
[[nodiscard]] matrix_view<const S> count_sequences(std::span<const expert_id> experts, index_t top_k,
                                                   std::span<const status> statuses,
                                                   const sequence_blocks& blocks, index_t num_experts,
                                                   S* memory) {
  const matrix_view<S> load = row_major(memory, blocks.count / blocks.per_sequence, num_experts);
  const auto length = static_cast<std::size_t>(blocks.length);
  const auto size = length * static_cast<std::size_t>(top_k);
  for (index_t s = 0; s < load.rows(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    clear(gradient_mode::write, load.row(s));
    for_entries(experts.subspan(at * size, size), top_k,
                statuses.empty() ? statuses : statuses.subspan(at * length, length),
                [&](index_t, index_t expert) { load(s, expert) += S{1}; });
  }
  return load;
}

/// Σ_s Σ_i load_s(i) Σ_t p_i over the tokens of each sequence that are not left out. load(s, i) is constant.
template <Accumulator S, class Load, class Run>
[[nodiscard]] S weighted_probabilities(const sequence_blocks& blocks, score_function f,
                                       const matrix_view<const S>& logits, std::span<const status> statuses,
                                       const Load& load, S* sums, const Run& executor) {
  const index_t n = logits.cols();
  executor(blocks.count, [&](index_t block) {
    const vector_view<S> sum(sums + block * 2 * n, n);
    const vector_view<S> p(sums + block * 2 * n + n, n);
    clear(gradient_mode::write, sum);
    for (index_t t = blocks.first(block); t < blocks.end(block); ++t) {
      S total{};
      if (counts(statuses, t) && probabilities(f, logits.row(t), p, total)) {
        for (index_t i = 0; i < n; ++i) {
          sum[i] += p[i];
        }
      }
    }
  });
  S result{0};
  for (index_t block = 0; block < blocks.count; ++block) {
    const S* const sum = sums + block * 2 * n;
    result += sum_terms<S>(n, [&](index_t i) { return load(block / blocks.per_sequence, i) * sum[i]; });
  }
  return result;
}

/// Its gradient times `factor`.
template <Accumulator S, class Load, class Run>
void weighted_probabilities_vjp(const sequence_blocks& blocks, score_function f,
                                const matrix_view<const S>& logits, std::span<const status> statuses,
                                const Load& load, S factor, const matrix_view<S>& grad, gradient_mode mode,
                                S* scratch, const Run& executor) {
  executor(blocks.count, [&](index_t block) {
    const vector_view<S> p(scratch + block * 2 * logits.cols(), logits.cols());
    for (index_t t = blocks.first(block); t < blocks.end(block); ++t) {
      clear(mode, grad.row(t));
      if (counts(statuses, t)) {
        probabilities_vjp<S>(
            f, logits.row(t), p, [&](index_t i) { return factor * load(block / blocks.per_sequence, i); },
            grad.row(t));
      }
    }
  });
}

}  // namespace detail

/// The sequence-level balance loss, coefficient 1. logits: [T, N], T/L sequences of L tokens one after the
/// other; experts: T · K ids; workspace: balance_workspace(T, N, L) elements; statuses: T, what the gate told
/// of each token, or empty. L = T is the batch variant; sequences of several lengths are several calls.
/// Tokens that are not ok add nothing to f and P, which stay means over L. Without statuses tokens without
/// scores (NaN) add nothing to P, but to f the experts 0 … K − 1 that the gate gave them. O(T·N); bitwise the
/// same for every executor. Throws usage_error on shapes and ids out of range.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                             const vector_view<S>& workspace, const Run& executor = {},
                             std::span<const status> statuses = {}) {
  const index_t n = logits.cols();
  const detail::sequence_blocks blocks("balance_loss", logits.rows(), sequence_length);
  detail::check_balance<S>("balance_loss", logits, sequence_length, workspace);
  detail::check_ids("balance_loss", experts, top_k, statuses, logits.rows(), n);
  const auto load = detail::count_sequences<S>(experts, top_k, statuses, blocks, n,
                                               workspace.data() + blocks.count * 2 * n);
  const S sum =
      detail::weighted_probabilities<S>(blocks, f, logits, statuses, load, workspace.data(), executor);
  const auto tokens = static_cast<S>(logits.rows());
  return tokens > S{0}
             ? sum * (static_cast<S>(n) / (static_cast<S>(top_k) * static_cast<S>(sequence_length) * tokens))
             : S{0};
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. None for tokens that are not ok.
template <Accumulator S, class Run = serial_executor>
void balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                      std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                      std::type_identity_t<S> grad_loss, const matrix_view<S>& grad_logits,
                      gradient_mode mode, std::type_identity_t<vector_view<S>> workspace,
                      const Run& executor = {}, std::span<const status> statuses = {}) {
  const index_t n = logits.cols();
  const detail::sequence_blocks blocks("balance_loss_vjp", logits.rows(), sequence_length);
  detail::check_balance<S>("balance_loss_vjp", logits, sequence_length, workspace);
  detail::check_ids("balance_loss_vjp", experts, top_k, statuses, logits.rows(), n);
  detail::check_gradient<S>("balance_loss_vjp", logits, grad_logits);
  const auto load = detail::count_sequences<S>(experts, top_k, statuses, blocks, n,
                                               workspace.data() + blocks.count * 2 * n);
  const S factor = grad_loss * static_cast<S>(n) /
                   (static_cast<S>(top_k) * static_cast<S>(sequence_length) * static_cast<S>(logits.rows()));
  detail::weighted_probabilities_vjp<S>(blocks, f, logits, statuses, load, factor, grad_logits, mode,
                                        workspace.data(), executor);
}

/// The global balance loss of these T tokens, coefficient 1: N Σ_i f_i P_i with f_i = load_i / Σ load.
/// `load`: N counts, summed over all the micro-batches and ranks that are to be even together (count_load); P
/// is of these tokens, so that the mean of the losses over micro-batches and ranks of one size is the loss of
/// them all. workspace: balance_workspace(T, N, T).
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S global_balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                                    std::span<const index_t> load, const vector_view<S>& workspace,
                                    const Run& executor = {}) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  const detail::sequence_blocks blocks("global_balance_loss", t, t);
  detail::check_balance<S>("global_balance_loss", logits, t, workspace);
  detail::expect(static_cast<index_t>(load.size()) == n, "global_balance_loss: loads of ", load.size(),
                 " experts, not ", n);
  const double total = mean_load(load) * static_cast<double>(n);
  if (t == 0 || !(total > 0)) {
    return S{0};
  }
  const S sum = detail::weighted_probabilities<S>(
      blocks, f, logits, {},
      [&](index_t, index_t i) {
        return static_cast<S>(static_cast<double>(load[static_cast<std::size_t>(i)]) / total);
      },
      workspace.data(), executor);
  return sum * (static_cast<S>(n) / static_cast<S>(t));
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. The load is constant.
template <Accumulator S, class Run = serial_executor>
void global_balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const index_t> load, std::type_identity_t<S> grad_loss,
                             const matrix_view<S>& grad_logits, gradient_mode mode,
                             std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  const detail::sequence_blocks blocks("global_balance_loss_vjp", t, t);
  detail::check_balance<S>("global_balance_loss_vjp", logits, t, workspace);
  detail::check_gradient<S>("global_balance_loss_vjp", logits, grad_logits);
  detail::expect(static_cast<index_t>(load.size()) == n, "global_balance_loss_vjp: loads of ", load.size(),
                 " experts, not ", n);
  const double total = mean_load(load) * static_cast<double>(n);
  const double factor = total > 0 ? static_cast<double>(n) / (total * static_cast<double>(t)) : 0.0;
  detail::weighted_probabilities_vjp<S>(
      blocks, f, logits, {},
      [&](index_t, index_t i) {
        return static_cast<S>(static_cast<double>(load[static_cast<std::size_t>(i)]) * factor);
      },
      grad_loss, grad_logits, mode, workspace.data(), executor);
}

MPIROUTER_END
