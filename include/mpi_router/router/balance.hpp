// The losses that keep the load even, each with its gradient to the logits: N Σ_i f_i P_i, with f_i the share
// of expert i in the choices and P_i the mean over tokens of its score over the sum of scores.
//
// clang-format off
//   variant   f and P of                                   Megatron-Core    also
//   sequence  each sequence by itself; the mean of those   seq_aux_loss     Switch, the paper, DeepSeek
//   batch     all T tokens as one sequence, L = T          aux_loss         1/K of that of transformers
//   global    f of all micro-batches and ranks             global_aux_loss
// clang-format on
//
// Even loads give 1. In the gradient the counts are constants. The loss that keeps logits small: z_loss.hpp.
//
// Tokens count that the statuses leave in (router/mask.hpp) and that have probabilities: a NaN logit, or no
// sum of scores that is finite and above zero, leaves one out without a status. The loss is what the others
// alone would give; a sequence without any is none.
#pragma once

#include <mpi_router/router/load.hpp>
#include <mpi_router/router/sequence_sums.hpp>

#include <numeric>

MPIROUTER_BEGIN

/// Elements of scratch for the losses of T tokens in sequences of L, and N experts.
[[nodiscard]] constexpr index_t balance_workspace(index_t num_tokens, index_t num_experts,
                                                  index_t sequence_length) noexcept {
  const index_t sequences = sequence_length > 0 ? num_tokens / sequence_length : 0;
  return sequences *
         (detail::token_blocks(sequence_length) * detail::block_sums<float>::size(num_experts) + num_experts);
}

namespace detail {

/// What a balance loss reads.
template <Accumulator S>
struct balance_input {
  const char* what;
  matrix_view<const S> logits;
  std::span<const expert_id> experts;  ///< of the sequence and batch losses
  index_t top_k;
  std::span<const index_t> load;  ///< of the global loss
  std::span<const status> statuses;
};

template <Accumulator S>
void check_balance(const balance_input<S>& in, index_t sequence_length, const vector_view<S>& workspace,
                   const matrix_view<S>& grad) {
  const index_t size = balance_workspace(in.logits.rows(), in.logits.cols(), sequence_length);
  check_mask(in.what, in.statuses, in.logits.rows());
  expect(workspace.size() >= size && workspace.is_contiguous(), in.what, ": the workspace has ",
         workspace.size(), " elements (stride ", workspace.stride(), "), not ", size, " contiguous ones");
  expect_apart(
      in.what,
      {{"the workspace", first_elements(workspace, size)}, {"the gradient to the logits", addresses(grad)}},
      {{"the logits", addresses(in.logits)},
       {"the expert ids", addresses_of(in.experts)},
       {"the load", addresses_of(in.load)},
       {"the statuses", addresses_of(in.statuses)}});
}

/// The factors of the probabilities in N Σ f P, as means over sequences: N f_i / (V S) with V tokens that
/// count in each of S sequences.
template <class Sums, class S>
void set_factors(const Sums& sums, const balance_input<S>& in) {
  const auto n = static_cast<double>(in.logits.cols());
  const index_t loads = std::accumulate(in.load.begin(), in.load.end(), index_t{0});
  index_t sequences = 0;
  for (index_t s = 0; s < sums.blocks.sequences(); ++s) {
    sequences += sums.tokens(s) > 0 ? 1 : 0;
  }
  for (index_t s = 0; s < sums.blocks.sequences(); ++s) {
    const index_t tokens = sums.tokens(s);
    const index_t choices = in.load.empty() ? in.top_k * tokens : loads;
    const double scale =
        static_cast<double>(tokens) * static_cast<double>(sequences) * static_cast<double>(choices);
    for (index_t i = 0; i < in.logits.cols(); ++i) {
      const index_t chosen = in.load.empty() ? sums.choices(s, i) : in.load[static_cast<std::size_t>(i)];
      sums.factors(s)[i] = scale > 0 ? static_cast<S>(n * static_cast<double>(chosen) / scale) : S{0};
    }
  }
}

/// use(sums) once the tokens and their choices are counted, and the factors are there.
template <Accumulator S, class Run, class Use>
void with_sums(score_function f, const balance_input<S>& in, const sequence_blocks& blocks, S* workspace,
               bool adds, const Run& executor, const Use& use) {
  core::with_score(f, [&]<class Score>(Score) {
    const sequence_sums<Score, S> sums{blocks, in.logits, in.statuses, workspace};
    sums.gather(in.experts, in.top_k, adds, executor);
    set_factors(sums, in);
    use(sums);
  });
}

template <Accumulator S, class Run>
[[nodiscard]] S balance(score_function f, const balance_input<S>& in, const sequence_blocks& blocks,
                        S* workspace, const Run& executor) {
  S loss{0};
  with_sums<S>(f, in, blocks, workspace, true, executor,
               [&](const auto& sums) { loss = sums.weighted_sum(); });
  return loss;
}

template <Accumulator S, class Run>
void balance_vjp(score_function f, const balance_input<S>& in, const sequence_blocks& blocks, S grad_loss,
                 const matrix_view<S>& grad, bool accumulate, S* workspace, const Run& executor) {
  with_sums<S>(f, in, blocks, workspace, false, executor,
               [&](const auto& sums) { sums.weighted_sum_vjp(grad_loss, grad, accumulate, executor); });
}

template <Accumulator S>
void check_loads(const balance_input<S>& in) {
  expect(static_cast<index_t>(in.load.size()) == in.logits.cols(), in.what, ": loads of ", in.load.size(),
         " experts, not ", in.logits.cols());
}

}  // namespace detail

/// The sequence-level balance loss, coefficient 1. logits: [T, N]; T/L sequences of L tokens one after the
/// other; experts: T · K ids; workspace: balance_workspace(T, N, L) elements, apart from all else; statuses:
/// T, what the gate told of each token, or empty. L = T is the batch variant; sequences of several lengths
/// are sequences of the longest, with masked tokens. 0 where no token counts. O(T·N); bitwise the same for
/// every executor. Throws usage_error on shapes, overlap, and ids out of range, before anything is written.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                             const vector_view<S>& workspace, const Run& executor = {},
                             std::span<const status> statuses = {}) {
  const detail::balance_input<S> in{"balance_loss", logits, experts, top_k, {}, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), sequence_length);
  detail::check_ids(in.what, experts, top_k, statuses, logits.rows(), logits.cols());
  detail::check_balance<S>(in, sequence_length, workspace, {});
  return detail::balance<S>(f, in, blocks, workspace.data(), executor);
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. None for tokens that do not count.
template <Accumulator S, class Run = serial_executor>
void balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                      std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                      std::type_identity_t<S> grad_loss, const matrix_view<S>& grad_logits,
                      gradient_mode mode, std::type_identity_t<vector_view<S>> workspace,
                      const Run& executor = {}, std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  const detail::balance_input<S> in{"balance_loss_vjp", logits, experts, top_k, {}, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), sequence_length);
  detail::check_ids(in.what, experts, top_k, statuses, logits.rows(), logits.cols());
  detail::check_gradient<S>(in.what, logits, grad_logits);
  detail::check_balance<S>(in, sequence_length, workspace, grad_logits);
  detail::balance_vjp<S>(f, in, blocks, grad_loss, grad_logits, accumulate, workspace.data(), executor);
}

/// The global balance loss of these T tokens, coefficient 1: N Σ_i f_i P_i with f_i = load_i / Σ load.
/// `load`: N counts, summed over all the micro-batches and ranks that are to be even together (count_load); P
/// is of those of these tokens that count, so that the mean of the losses over micro-batches and ranks,
/// weighed by how many count, is the loss of them all. workspace: balance_workspace(T, N, T). 0 where no
/// token counts or nothing was routed. Throws usage_error on shapes and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S global_balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                                    std::span<const index_t> load, const vector_view<S>& workspace,
                                    const Run& executor = {}, std::span<const status> statuses = {}) {
  const detail::balance_input<S> in{"global_balance_loss", logits, {}, 1, load, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), logits.rows());
  detail::check_loads(in);
  detail::check_balance<S>(in, logits.rows(), workspace, {});
  return detail::balance<S>(f, in, blocks, workspace.data(), executor);
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. The load is constant. None for tokens
/// that do not count.
template <Accumulator S, class Run = serial_executor>
void global_balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const index_t> load, std::type_identity_t<S> grad_loss,
                             const matrix_view<S>& grad_logits, gradient_mode mode,
                             std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
                             std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  const detail::balance_input<S> in{"global_balance_loss_vjp", logits, {}, 1, load, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), logits.rows());
  detail::check_loads(in);
  detail::check_gradient<S>(in.what, logits, grad_logits);
  detail::check_balance<S>(in, logits.rows(), workspace, grad_logits);
  detail::balance_vjp<S>(f, in, blocks, grad_loss, grad_logits, accumulate, workspace.data(), executor);
}

MPIROUTER_END
