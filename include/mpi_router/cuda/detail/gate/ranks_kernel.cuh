// Up to 8 experts out of up to 256, several tokens at a time in a warp.
//
// A few lanes share a token. Sorting networks, then exchanges among these lanes, bring the token's largest
// keys to all of them; an expert is chosen if its key is one of those, and its place is the number of larger
// ones. Keys alone are sorted, which halves the work; only where two of them are equal does an expert's index
// count. A multiprocessor meets the kernel with a cold instruction cache, and few warps to hide it: so the
// loops over experts take eight at a time and are not unrolled further.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/gate/choice.cuh>
#include <mpi_router/cuda/detail/gate/loads.cuh>
#include <mpi_router/cuda/detail/gate/token_keys.cuh>
#include <mpi_router/cuda/detail/gate/weighing.cuh>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

template <int lanes, int own>
__global__ void __launch_bounds__(gate_ranks_threads, gate_ranks_blocks)
    gate_ranks_kernel(const __grid_constant__ gate_args a) {
  constexpr int tokens_of_warp = 32 / lanes;
  __shared__ uint4 keys_of_block[own / 4][gate_ranks_threads];
  __shared__ unsigned chosen_of_lanes[gate_ranks_threads];
  extern __shared__ unsigned load[];  // [N], where it is counted
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int n = a.num_experts;
  clear_loads(a, load);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  token_keys<lanes, own> keys(keys_of_block);
  const bool aligned = aligned_to_16(a.logits, a.logits_stride * 4, n * 4LL);
  constexpr int warps = gate_ranks_threads / 32;
  const long long step = static_cast<long long>(gridDim.x) * warps * tokens_of_warp;
  long long first = (static_cast<long long>(blockIdx.x) * warps + threadIdx.x / 32) * tokens_of_warp;
#pragma unroll 1
  for (; first < a.tokens; first += step) {
    // Lanes beyond the last token take it too, for all of a warp must take part in its exchanges.
    const long long wanted = first + lane / lanes;
    const long long token = min(wanted, a.tokens - 1);
    const float* const logits = a.logits + token * a.logits_stride;
    float largest;
    unsigned most;
    keys.load(logits, n, aligned, largest, most);
    bool defined = most <= 0x7f800000U && (!a.softmax_first() || isfinite(largest));
    const float sum = keys.score(a, largest);
    unsigned best[8] = {};
    keys.rank(a, a.by_scores && a.softmax_first() ? 1.0F / sum : 1.0F, best);
    bool tied;
    unsigned chosen = keys.choose(a.top_k, n, best, chosen_of_lanes, tied);
    const bool counts = a.counts(token);
    chosen = defined && counts && wanted == token ? chosen : 0U;
    int closed = 0;  // of the chosen
    const auto leave = [&](const auto& by, const auto& raw) {
      bool finite = a.has_experts(by.nothing(), closed);
      for_each_bit(chosen, [&](int i) {
        const int k = keys.place(i, best, tied, chosen_of_lanes);
        const float weight = by.weight(raw(i));
        a.weights[token * a.top_k + k] = weight;
        a.experts[token * a.top_k + k] = keys.expert(i);
        finite = finite && isfinite(weight);
      });
      __syncwarp();
      defined = over_token<lanes>(finite ? 0.0F : 1.0F, larger_of{}) == 0.0F && defined;
    };
    core::with_score(a.score, [&]<class Score>(Score) {
      if (a.bias == nullptr) {
        leave(weighing<Score>(a, sorted_choice{best, a.top_k}, largest, sum),
              [&](int i) { return from_sortable(keys.key(i)); });
        return;
      }
      for_each_bit(chosen, [&](int i) { closed += a.closes(keys.expert(i)) ? 1 : 0; });
      __syncwarp();
      closed = over_token<lanes>(closed, sum_of{});
      const auto raw = [&](int i) { return a.closes(keys.expert(i)) ? -INFINITY : logits[keys.expert(i)]; };
      leave(weighing<Score>(a, shared_choice<lanes, decltype(raw)>{chosen, raw}, largest, sum), raw);
    });
    if (wanted == token) {
      if (!defined || !counts) [[unlikely]] {
        for (int k = keys.sub(); k < a.top_k; k += lanes) {
          a.experts[token * a.top_k + k] = counts ? k : -1;
          a.weights[token * a.top_k + k] = 0.0F;
        }
      }
      if (a.statuses != nullptr && keys.sub() == 0) {
        a.statuses[token] = state_of_token(counts, defined, closed);
      }
    }
    if (defined && a.load != nullptr) {  // none is chosen for tokens that do not count
      for_each_bit(chosen, [&](int i) { atomicAdd(load + keys.expert(i), 1U); });
    }
  }
  add_loads(a, load);
}

MPIROUTER_CUDA_DETAIL_END
