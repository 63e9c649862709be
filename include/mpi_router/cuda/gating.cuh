// From logits to experts on a GPU: selection, weights (Eq. 6), and how even the loads are.
#pragma once

#include <mpi_router/core/gating_options.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/gate/launch.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Shapes, options and memory of a gate; what is written lies apart from what is read.
inline void expect_gate(const char* name, const context& ctx,
                        const matrix_view<const float, device_space>& logits, const gating_options& options,
                        const float* selection_bias, const gate_output& out, const status* statuses) {
  const index_t tokens = logits.rows();
  const index_t experts = logits.cols();
  expect_context(name, ctx);
  core::check_gating(name, options, experts);
  expect(experts <= most_gate_experts, name, ": ", experts, " experts, where ", most_gate_experts,
         " are the most");
  expect(logits.col_stride() == 1 || experts == 1, name, ": the logits have column stride ",
         logits.col_stride());
  expect(tokens == 0 || (out.weights != nullptr && out.experts != nullptr), name, ": null output");
  const index_t chosen = tokens * options.top_k;
  const named_range input{"the logits", core::addresses(logits)};
  const named_range bias{"the selection bias", addresses_of(selection_bias, experts)};
  const named_range mask{"the statuses of the tokens", addresses_of(statuses, tokens)};
  const named_range weights{"the weights", addresses_of(out.weights, chosen)};
  const named_range ids{"the expert ids", addresses_of(out.experts, chosen)};
  const named_range states{"the statuses", addresses_of(out.statuses, tokens)};
  const named_range load{"the load", addresses_of(out.load, experts)};
  expect_apart(name, weights, {input, bias, mask, ids, states, load});
  expect_apart(name, ids, {input, bias, mask, states, load});
  expect_apart(name, load, {input, bias, mask, states});
  expect_apart(name, states, {input, bias});
  expect(out.statuses == statuses || !core::overlap(states.range, mask.range), name,
         ": the statuses and the statuses of the tokens overlap");
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Selects K experts for each token and weighs them: gate() of the host, with the same options, order, ties,
/// and treatment of NaN, of infinities and of logits of any depth (router/gating.hpp). logits [T, N] in f32,
/// rows contiguous; selection_bias: N floats that are added to what experts are selected by, or null;
/// statuses: T of device memory, or null: tokens that are not routed (is_routed) are padding, get the ids −1,
/// weights of zero and the status masked; it may be out.statuses itself. An expert that the bias closes (−∞
/// or NaN) and that has to fill a place keeps its id, with weight zero, and its token becomes closed_expert.
///
/// One launch: a few lanes for each token where up to 8 of up to 256 experts are chosen without groups, else
/// a warp; exp and log are those of CUDA, so weights agree with the host's to a few units in the last place.
/// Deterministic; stream-ordered; no workspace. Tokens that are not routed count for no load. N up to 8192.
/// Throws usage_error on shapes, options, overlap, and another current device than the context's.
inline void gate(const context& ctx, const matrix_view<const float, device_space>& logits,
                 const gating_options& options, const float* selection_bias, const gate_output& out,
                 const status* statuses = nullptr) {
  constexpr const char* name = "cuda::gate";
  detail::expect_gate(name, ctx, logits, options, selection_bias, out, statuses);
  if (logits.rows() == 0) {
    return;
  }
  const int n = static_cast<int>(logits.cols());
  const int size = n / static_cast<int>(options.n_group);
  const auto counted = static_cast<int>(core::experts_in_group_score(options, size));
  const bool sums_groups = options.topk_group < options.n_group && counted > 1;
  const bool score_first = options.order == selection_order::score_then_select;
  const detail::gate_args args{
      logits.data(),
      logits.row_stride(),
      selection_bias,
      statuses,
      out.weights,
      out.experts,
      out.statuses,
      out.load,
      logits.rows(),
      n,
      static_cast<int>(options.top_k),
      options.score_function,
      core::with_score(options.score_function, []<class Score>(Score) { return Score::is_exponential; }),
      score_first && (selection_bias != nullptr || sums_groups),
      score_first,
      options.renormalize,
      static_cast<float>(options.scaling_factor),
      static_cast<int>(options.n_group),
      static_cast<int>(options.topk_group),
      size,
      counted};
  detail::launch_gate(ctx, args);
}

/// MaxVio = max load / mean load − 1 and the entropy of the load in nats, from `load` (N counts, as gate adds
/// them up; of a batch, or summed over many for the global ones); both 0 where nothing was routed. Each
/// result one double in device memory, or null.
inline void balance(const context& ctx, const int* load, index_t num_experts, double* max_violation,
                    double* entropy) {
  constexpr const char* name = "cuda::balance";
  detail::expect_context(name, ctx);
  detail::expect(num_experts >= 1 && num_experts <= detail::most_extent, name, ": ", num_experts, " experts");
  detail::expect(load != nullptr, name, ": null load");
  detail::launch_balance(ctx, load, static_cast<int>(num_experts), max_violation, entropy);
}

MPIROUTER_CUDA_END
