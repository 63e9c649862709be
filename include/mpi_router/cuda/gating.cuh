// From logits to experts on a GPU: selection, weights (Eq. 6), and how even the loads are.
#pragma once

#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/gate_ranks.cuh>
#include <mpi_router/cuda/detail/overlap.cuh>
#include <mpi_router/cuda/detail/reduce.cuh>

MPIROUTER_CUDA_BEGIN

namespace detail {

/// Shapes, options and memory of a gate; what is written lies apart from what is read.
inline void expect_gate(const char* name, const context& ctx,
                        const matrix_view<const float, device_space>& logits, const gating_options& options,
                        const float* selection_bias, const gate_output& out, const status* statuses) {
  const index_t tokens = logits.rows();
  const index_t experts = logits.cols();
  expect_context(name, ctx);
  core::check_gating(name, options, experts);
  expect(experts <= 8192, name, ": ", experts, " experts, where 8192 are the most");
  expect(logits.col_stride() == 1 || experts == 1, name, ": the logits have column stride ",
         logits.col_stride());
  expect(tokens == 0 || (out.weights != nullptr && out.experts != nullptr), name, ": null output");
  const index_t chosen = tokens * options.top_k;
  const memory_range input{"the logits", core::addresses(logits)};
  const memory_range bias{"the selection bias", addresses_of(selection_bias, experts)};
  const memory_range mask{"the statuses of the tokens", addresses_of(statuses, tokens)};
  const memory_range weights{"the weights", addresses_of(out.weights, chosen)};
  const memory_range ids{"the expert ids", addresses_of(out.experts, chosen)};
  const memory_range states{"the statuses", addresses_of(out.statuses, tokens)};
  const memory_range load{"the load", addresses_of(out.load, experts)};
  expect_apart(name, weights, {input, bias, mask, ids, states, load});
  expect_apart(name, ids, {input, bias, mask, states, load});
  expect_apart(name, load, {input, bias, mask, states});
  expect_apart(name, states, {input, bias});
  expect(out.statuses == statuses || !core::overlap(states.range, mask.range), name,
         ": the statuses and the statuses of the tokens overlap");
}

}  // namespace detail

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
  const detail::gate_args args{logits.data(),
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
                               score_first && (selection_bias != nullptr || sums_groups),
                               score_first,
                               options.renormalize,
                               static_cast<float>(options.scaling_factor),
                               static_cast<int>(options.n_group),
                               static_cast<int>(options.topk_group),
                               size,
                               counted};
  if (n <= 256 && args.top_k <= detail::most_ranked && args.top_groups == args.groups) {
    const auto run = [&](auto kernel, int lanes) {
      const int at_once = detail::gate_ranks_threads / lanes;
      const index_t blocks = (logits.rows() + at_once - 1) / at_once;
      const index_t most = out.load != nullptr ? static_cast<index_t>(ctx.multiprocessors) * 5 : 0x7fffffff;
      detail::launch("gate_ranks_kernel", ctx,
                     {static_cast<unsigned>(blocks < most ? blocks : most), detail::gate_ranks_threads,
                      static_cast<std::size_t>(out.load != nullptr ? n : 0) * 4},
                     kernel, args);
    };
    n <= 64    ? run(detail::gate_ranks_kernel<4, 16>, 4)
    : n <= 128 ? run(detail::gate_ranks_kernel<4, 32>, 4)
               : run(detail::gate_ranks_kernel<8, 32>, 8);
    return;
  }
  const bool in_registers = n <= 512;
  const int warps = in_registers ? 8 : 1;
  const int scratch = (in_registers ? 0 : n) + (args.top_groups < args.groups ? args.groups : 0);
  const index_t wanted = (logits.rows() + warps - 1) / warps;
  // Counting loads, a block takes many tokens, for it adds its counts to those of all at its end.
  const index_t most = out.load != nullptr ? static_cast<index_t>(ctx.multiprocessors) * 5 : 0x7fffffff;
  const detail::launch_shape shape{
      static_cast<unsigned>(wanted < most ? wanted : most), static_cast<unsigned>(32 * warps),
      static_cast<std::size_t>(warps * scratch + (out.load != nullptr ? n : 0)) * 4};
  const auto run = [&](auto kernel) { detail::launch("gate_kernel", ctx, shape, kernel, args, scratch); };
  if (n <= 64) {
    run(detail::gate_kernel<2>);
  } else if (n <= 128) {
    run(detail::gate_kernel<4>);
  } else if (n <= 256) {
    run(detail::gate_kernel<8>);
  } else if (n <= 512) {
    run(detail::gate_kernel<16>);
  } else {
    run(detail::gate_kernel<0>);
  }
}

namespace detail {
template <class = void>
__global__ void __launch_bounds__(256)
    balance_kernel(const int* load, int n, double* max_violation, double* entropy) {
  __shared__ double scratch[most_warps];
  __shared__ int most[8];
  wait_for_previous_kernel();
  double total[1] = {0.0};
  int largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
    total[0] += load[i];
    largest = max(largest, load[i]);
  }
  sum_over_block(total, scratch, 256);
  largest = __reduce_max_sync(0xffffffffU, largest);
  if (threadIdx.x % 32 == 0) {
    most[threadIdx.x / 32] = largest;
  }
  __syncthreads();
  for (const int m : most) {
    largest = max(largest, m);
  }
  double bits[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
    const double p = load[i] / total[0];
    bits[0] -= load[i] > 0 ? p * log(p) : 0.0;
  }
  sum_over_block(bits, scratch, 256);
  if (threadIdx.x == 0) {
    if (max_violation != nullptr) {
      *max_violation = total[0] > 0.0 ? largest / (total[0] / n) - 1.0 : 0.0;
    }
    if (entropy != nullptr) {
      *entropy = bits[0];
    }
  }
}
}  // namespace detail

/// MaxVio = max load / mean load − 1 and the entropy of the load in nats, from `load` (N counts, as gate adds
/// them up; of a batch, or summed over many for the global ones); both 0 where nothing was routed. Each
/// result one double in device memory, or null.
inline void balance(const context& ctx, const int* load, index_t num_experts, double* max_violation,
                    double* entropy) {
  constexpr const char* name = "cuda::balance";
  detail::expect_context(name, ctx);
  detail::expect(num_experts >= 1 && num_experts <= 0x3fffffff, name, ": ", num_experts, " experts");
  detail::expect(load != nullptr, name, ": null load");
  detail::launch("balance_kernel", ctx, {1, 256}, detail::balance_kernel<>, load,
                 static_cast<int>(num_experts), max_violation, entropy);
}

MPIROUTER_CUDA_END
