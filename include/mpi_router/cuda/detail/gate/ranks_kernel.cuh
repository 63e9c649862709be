// Up to 8 experts out of up to 256, several tokens at a time in a warp.
//
// A few lanes share a token. Sorting networks, then exchanges among these lanes, bring the token's largest
// keys to all of them; an expert is chosen if its key is one of those, and its place is the number of larger
// ones. Keys alone are sorted, which halves the work; only where two of them are equal does an expert's index
// count. A multiprocessor meets the kernel with a cold instruction cache, and few warps to hide it: so the
// loops over experts take eight at a time and are not unrolled further.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/gate/choice.cuh>
#include <mpi_router/cuda/detail/gate/loads.cuh>
#include <mpi_router/cuda/detail/gate/sort_eight.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// `lanes` lanes for each token, each with `own` experts: four from 4 (q · lanes + lane) on for every q.
template <int lanes, int own>
__global__ void __launch_bounds__(gate_ranks_threads, gate_ranks_blocks(own))
    gate_ranks_kernel(const __grid_constant__ gate_args a) {
  constexpr int tokens_of_warp = 32 / lanes;
  __shared__ uint4 keys_of_block[own / 4][gate_ranks_threads];  // before they are keys: logits, scores
  __shared__ unsigned chosen_of_lanes[gate_ranks_threads];
  extern __shared__ unsigned load[];  // [N], where it is counted
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int n = a.num_experts;
  clear_loads(a, load);
  const auto larger = [](float x, float y) { return fmaxf(x, y); };
  const auto sum_of = [](auto x, auto y) { return x + y; };
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int sub = lane % lanes;
  const auto expert = [sub](int i) { return (i / 4 * lanes + sub) * 4 + i % 4; };
  uint4* const own_keys = &keys_of_block[0][threadIdx.x];
  const auto key_of_lane = [own_keys](int i, int other) {  // `other` lanes further on
    return reinterpret_cast<const unsigned*>(own_keys + i / 4 * gate_ranks_threads + other)[i % 4];
  };
  const auto load_eight = [own_keys](int first, unsigned(&k)[8]) {
    const uint4 low = own_keys[first / 4 * gate_ranks_threads];
    const uint4 high = own_keys[(first / 4 + 1) * gate_ranks_threads];
    k[0] = low.x, k[1] = low.y, k[2] = low.z, k[3] = low.w;
    k[4] = high.x, k[5] = high.y, k[6] = high.z, k[7] = high.w;
  };
  const auto store_eight = [own_keys](int first, const unsigned(&k)[8]) {
    own_keys[first / 4 * gate_ranks_threads] = make_uint4(k[0], k[1], k[2], k[3]);
    own_keys[(first / 4 + 1) * gate_ranks_threads] = make_uint4(k[4], k[5], k[6], k[7]);
  };
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
    float largest = -INFINITY;
    unsigned most = 0;  // of the magnitudes' bits: above those of infinity where there is a NaN
    if (aligned) [[likely]] {
      float4 x[own / 4];
#pragma unroll
      for (int q = 0; q < own / 4; ++q) {
        x[q] = expert(4 * q) < n ? *reinterpret_cast<const float4*>(logits + expert(4 * q))
                                 : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      }
#pragma unroll
      for (int q = 0; q < own / 4; ++q) {
        own_keys[q * gate_ranks_threads] = make_uint4(__float_as_uint(x[q].x), __float_as_uint(x[q].y),
                                                      __float_as_uint(x[q].z), __float_as_uint(x[q].w));
        largest = fmaxf(fmaxf(largest, fmaxf(x[q].x, x[q].y)), fmaxf(x[q].z, x[q].w));
        most = max(max(most, max(magnitude_bits(x[q].x), magnitude_bits(x[q].y))),
                   max(magnitude_bits(x[q].z), magnitude_bits(x[q].w)));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < own; i += 8) {
        unsigned k[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float x = expert(i + j) < n ? logits[expert(i + j)] : -INFINITY;
          k[j] = __float_as_uint(x);
          largest = fmaxf(largest, x);
          most = max(most, magnitude_bits(x));
        }
        store_eight(i, k);
      }
    }
    largest = over_token<lanes>(largest, larger);
    most = over_token<lanes>(most, [](unsigned x, unsigned y) { return max(x, y); });
    bool defined = most <= 0x7f800000U && (!a.softmax_first() || isfinite(largest));

    // The scores, where they are selected by, or are shares of all.
    float sum = 0.0F;
    const auto transform = [&](const auto& of) {
#pragma unroll 1
      for (int i = 0; i < own; i += 8) {
        unsigned k[8];
        load_eight(i, k);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float x = of(__uint_as_float(k[j]));
          sum += x;
          k[j] = __float_as_uint(x);
        }
        store_eight(i, k);
      }
    };
    if (a.by_scores) {
      switch (a.score) {
        case score_function::softmax: transform([&](float logit) { return expf(logit - largest); }); break;
        case score_function::sigmoid:
          transform([](float logit) { return score_of(score_function::sigmoid, logit); });
          break;
        case score_function::sqrtsoftplus:
          transform([](float logit) { return score_of(score_function::sqrtsoftplus, logit); });
          break;
      }
      sum = over_token<lanes>(sum, sum_of);
    } else if (a.shares_of_all()) {
#pragma unroll 1
      for (int i = 0; i < own; i += 8) {
        unsigned k[8];
        load_eight(i, k);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          sum += expf(__uint_as_float(k[j]) - largest);
        }
      }
      sum = over_token<lanes>(sum, sum_of);
    }

    // The largest keys: of a lane's experts, then of all of the token's lanes.
    const float factor = a.by_scores && a.softmax_first() ? 1.0F / sum : 1.0F;
    unsigned best[8] = {};
#pragma unroll 1
    for (int i = 0; i < own; i += 8) {
      unsigned k[8];
      load_eight(i, k);
      if (a.bias == nullptr) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          k[j] = sortable_number(__uint_as_float(k[j]));
        }
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float score = __uint_as_float(k[j]) * factor;
          k[j] = sortable(expert(i + j) < n ? score + a.bias[expert(i + j)] : score);
        }
      }
      if (n < lanes * own) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          k[j] = expert(i + j) < n ? k[j] : 0U;
        }
      }
      store_eight(i, k);
      sort_eight(k);
      merge_eights(best, k);
    }
#pragma unroll
    for (int mask = 1; mask < lanes; mask *= 2) {
      unsigned other[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        other[j] = __shfl_xor_sync(0xffffffffU, best[j], mask);
      }
      merge_eights(best, other);
    }
    unsigned least = best[0];
    bool tied = false;
#pragma unroll
    for (int j = 1; j < most_ranked; ++j) {
      tied = tied || (j < a.top_k && best[j] == best[j - 1]);
      least = j < a.top_k ? best[j] : least;
    }
    unsigned chosen = 0;  // of this lane's experts
#pragma unroll 1
    for (int i = 0; i < own; i += 8) {
      unsigned k[8];
      load_eight(i, k);
      unsigned bits = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        bits |= k[j] >= least ? 1U << j : 0U;
      }
      chosen |= bits << i;
    }
    // The last place may be shared as well: then more are not below it than are to be chosen.
    tied = over_token<lanes>(__popc(chosen), sum_of) != a.top_k || tied;
    if (__any_sync(0xffffffffU, tied) != 0) [[unlikely]] {
      // Of the experts that share it those of the lowest indices.
      unsigned last = 0;
#pragma unroll 1
      for (int i = 0; i < own; ++i) {
        last |= key_of_lane(i, 0) == least ? 1U << i : 0U;
      }
      chosen &= ~last;
      int missing = a.top_k - over_token<lanes>(__popc(chosen), sum_of);
#pragma unroll 1
      for (; __any_sync(0xffffffffU, missing > 0) != 0; --missing) {
        const int mine = last != 0 ? expert(__ffs(static_cast<int>(last)) - 1) : n;
        const int next = over_token<lanes>(mine, [](int x, int y) { return min(x, y); });
        const unsigned taken = missing > 0 && mine == next ? last & (0U - last) : 0U;
        chosen |= taken;
        last &= ~taken;
      }
      chosen_of_lanes[threadIdx.x] = chosen;
      __syncwarp();
    }
    const auto place = [&](int i) {
      const unsigned key = key_of_lane(i, 0);
      int before = 0;
#pragma unroll
      for (int j = 0; j < most_ranked; ++j) {
        before += best[j] > key ? 1 : 0;
      }
      if (tied) [[unlikely]] {
#pragma unroll 1
        for (int other = -sub; other < lanes - sub; ++other) {
          for_each_bit((chosen_of_lanes + threadIdx.x)[other], [&](int e) {
            before += key_of_lane(e, other) == key && expert(e) + 4 * other < expert(i) ? 1 : 0;
          });
        }
      }
      return before;
    };
    const bool counts = a.counts(token);
    chosen = defined && counts && wanted == token ? chosen : 0U;
    int closed = 0;  // of the chosen
    const auto leave = [&](const weighing& by, const auto& raw) {
      bool finite = a.has_experts(by.nothing(), closed);
      for_each_bit(chosen, [&](int i) {
        const int k = place(i);
        const float weight = by.weight(raw(i));
        a.weights[token * a.top_k + k] = weight;
        a.experts[token * a.top_k + k] = expert(i);
        finite = finite && isfinite(weight);
      });
      __syncwarp();
      defined = over_token<lanes>(finite ? 0.0F : 1.0F, larger) == 0.0F && defined;
    };
    if (a.bias == nullptr) {
      leave(weighing(a, sorted_choice{best, a.top_k}, largest, sum),
            [&](int i) { return from_sortable(key_of_lane(i, 0)); });
    } else {
      for_each_bit(chosen, [&](int i) { closed += a.closes(expert(i)) ? 1 : 0; });
      __syncwarp();
      closed = over_token<lanes>(closed, sum_of);
      const auto raw = [&](int i) { return a.closes(expert(i)) ? -INFINITY : logits[expert(i)]; };
      leave(weighing(a, shared_choice<lanes, decltype(raw)>{chosen, raw}, largest, sum), raw);
    }
    if (wanted == token) {
      if (!defined || !counts) [[unlikely]] {
        for (int k = sub; k < a.top_k; k += lanes) {
          a.experts[token * a.top_k + k] = counts ? k : -1;
          a.weights[token * a.top_k + k] = 0.0F;
        }
      }
      if (a.statuses != nullptr && sub == 0) {
        a.statuses[token] = !counts      ? status::masked
                            : !defined   ? status::non_finite
                            : closed > 0 ? status::closed_expert
                                         : status::ok;
      }
    }
    if (defined && a.load != nullptr) {  // none is chosen for tokens that do not count
      for_each_bit(chosen, [&](int i) { atomicAdd(load + expert(i), 1U); });
    }
  }
  add_loads(a, load);
}

MPIROUTER_CUDA_DETAIL_END
