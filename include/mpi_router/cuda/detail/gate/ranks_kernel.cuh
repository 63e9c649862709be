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

/// A token as one of its lanes sees it.
struct ranked_token {
  long long token;
  bool is_own;  // lanes beyond the last token take it too, for all of a warp must take part in its exchanges
  bool counts;
  bool defined = false;  // whether what its logits say is defined
  float largest = 0.0F;  // of its logits
  float sum = 0.0F;      // of its scores, where wanted
  unsigned best[8] = {};
  unsigned chosen = 0;  // of the lane's experts
  bool tied = false;
  int closed = 0;  // of the chosen
};

/// Chooses a token's experts.
template <int lanes, int own>
__device__ __forceinline__ void choose(const gate_args& a, token_keys<lanes, own>& keys, const float* logits,
                                       bool aligned, unsigned* chosen_of_lanes, ranked_token& t) {
  const int n = a.num_experts;
  unsigned most;
  keys.load(logits, n, aligned, t.largest, most);
  t.defined = most <= 0x7f800000U && (!a.softmax_first() || isfinite(t.largest));
  t.sum = keys.score(a, t.largest);
  keys.rank(a, a.by_scores && a.softmax_first() ? 1.0F / t.sum : 1.0F, t.best);
  const unsigned chosen = keys.choose(a.top_k, n, t.best, chosen_of_lanes, t.tied);
  t.counts = a.counts(t.token);
  t.chosen = t.defined && t.counts && t.is_own ? chosen : 0U;
}

/// Writes the chosen and their weights, by a weighing and what of expert i is weighed.
template <int lanes, int own, class Weighing, class Raw>
__device__ __forceinline__ void write_chosen(const gate_args& a, const token_keys<lanes, own>& keys,
                                             const unsigned* chosen_of_lanes, const Weighing& by,
                                             const Raw& raw, ranked_token& t) {
  bool finite = a.has_experts(by.nothing(), t.closed);
  for_each_bit(t.chosen, [&](int i) {
    const int k = keys.place(i, t.best, t.tied, chosen_of_lanes);
    const float weight = by.weight(raw(i));
    a.weights[t.token * a.top_k + k] = weight;
    a.experts[t.token * a.top_k + k] = keys.expert(i);
    finite = finite && isfinite(weight);
  });
  __syncwarp();
  t.defined = over_token<lanes>(finite ? 0.0F : 1.0F, larger_of{}) == 0.0F && t.defined;
}

/// Weighs the chosen.
template <int lanes, int own>
__device__ __forceinline__ void weigh(const gate_args& a, const token_keys<lanes, own>& keys,
                                      const float* logits, const unsigned* chosen_of_lanes, ranked_token& t) {
  core::with_score(a.score, [&]<class Score>(Score) {
    if (a.bias == nullptr) {
      write_chosen(
          a, keys, chosen_of_lanes, weighing<Score>(a, sorted_choice{t.best, a.top_k}, t.largest, t.sum),
          [&](int i) { return from_sortable(keys.key(i)); }, t);
      return;
    }
    for_each_bit(t.chosen, [&](int i) { t.closed += a.closes(keys.expert(i)) ? 1 : 0; });
    __syncwarp();
    t.closed = over_token<lanes>(t.closed, sum_of{});
    const auto raw = [&](int i) { return a.closes(keys.expert(i)) ? -INFINITY : logits[keys.expert(i)]; };
    write_chosen(a, keys, chosen_of_lanes,
                 weighing<Score>(a, shared_choice<lanes, decltype(raw)>{t.chosen, raw}, t.largest, t.sum),
                 raw, t);
  });
}

/// Tells what became of a token, and writes what one without weights has.
template <int lanes, int own>
__device__ __forceinline__ void tell(const gate_args& a, const token_keys<lanes, own>& keys,
                                     const ranked_token& t) {
  if (!t.is_own) {
    return;
  }
  if (!t.defined || !t.counts) [[unlikely]] {
    for (int k = keys.sub(); k < a.top_k; k += lanes) {
      a.experts[t.token * a.top_k + k] = t.counts ? k : -1;
      a.weights[t.token * a.top_k + k] = 0.0F;
    }
  }
  if (a.statuses != nullptr && keys.sub() == 0) {
    a.statuses[t.token] = state_of_token(t.counts, t.defined, t.closed);
  }
}

template <int lanes, int own>
__global__ void __launch_bounds__(gate_ranks_threads, gate_ranks_blocks)
    gate_ranks_kernel(const __grid_constant__ gate_args a) {
  constexpr int tokens_of_warp = 32 / lanes;
  __shared__ uint4 keys_of_block[own / 4][gate_ranks_threads];
  __shared__ unsigned chosen_of_lanes[gate_ranks_threads];
  extern __shared__ unsigned load[];  // [N], where it is counted
  wait_for_previous_kernel();
  let_next_kernel_start();
  clear_loads(a, load);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  token_keys<lanes, own> keys(keys_of_block);
  const bool aligned = aligned_to_16(a.logits, a.logits_stride * 4, a.num_experts * 4LL);
  constexpr int warps = gate_ranks_threads / 32;
  const long long step = static_cast<long long>(gridDim.x) * warps * tokens_of_warp;
  long long first = (static_cast<long long>(blockIdx.x) * warps + threadIdx.x / 32) * tokens_of_warp;
#pragma unroll 1
  for (; first < a.tokens; first += step) {
    const long long wanted = first + lane / lanes;
    ranked_token t{.token = min(wanted, a.tokens - 1), .is_own = wanted < a.tokens};
    const float* const logits = a.logits + t.token * a.logits_stride;
    choose(a, keys, logits, aligned, chosen_of_lanes, t);
    weigh(a, keys, logits, chosen_of_lanes, t);
    tell(a, keys, t);
    if (t.defined && a.load != nullptr) {  // none is chosen for tokens that do not count
      for_each_bit(t.chosen, [&](int i) { atomicAdd(load + keys.expert(i), 1U); });
    }
  }
  add_loads(a, load);
}

MPIROUTER_CUDA_DETAIL_END
