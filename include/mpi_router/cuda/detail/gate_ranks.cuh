// Up to 8 experts out of up to 256, several tokens at a time in a warp.
//
// A few lanes share a token. Sorting networks, then exchanges among these lanes, bring the token's largest
// keys to all of them; an expert is chosen if its key is one of those, and its place is the number of larger
// ones. Keys alone are sorted, which halves the work; where two of them are equal, so that the experts' order
// decides, or where a score is not finite, the whole warp takes that token once more (gate_token.cuh).
#pragma once

#include <mpi_router/cuda/detail/gate_token.cuh>
#include <mpi_router/cuda/detail/tensor.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int most_ranked = 8;       // experts that are chosen
constexpr int experts_of_lane = 32;  // that a lane looks at
constexpr int gate_ranks_threads = 128;

__device__ __forceinline__ void put_larger_first(unsigned& a, unsigned& b) {
  const unsigned larger = max(a, b);
  b = min(a, b);
  a = larger;
}
/// Batcher's odd-even merge sort, largest first.
__device__ __forceinline__ void sort_eight(unsigned* k) {
  constexpr int pairs[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6},
                                {5, 7}, {1, 2}, {5, 6}, {0, 4}, {1, 5}, {2, 6}, {3, 7},
                                {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (int i = 0; i < 19; ++i) {
    put_larger_first(k[pairs[i][0]], k[pairs[i][1]]);
  }
}
/// Of two sorted eights the largest eight, sorted: the larger of each key and its opposite, then a bitonic
/// sort.
__device__ __forceinline__ void merge_eights(unsigned* k, const unsigned* other) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    k[j] = max(k[j], other[7 - j]);
  }
#pragma unroll
  for (int distance = 4; distance > 0; distance /= 2) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if ((j & distance) == 0) {
        put_larger_first(k[j], k[j + distance]);
      }
    }
  }
}

/// x of all `lanes` lanes of a token.
template <int lanes, class Combine>
__device__ __forceinline__ float over_token(float x, const Combine& combine) {
#pragma unroll
  for (int mask = lanes / 2; mask >= 1; mask /= 2) {
    x = combine(x, __shfl_xor_sync(0xffffffffU, x, mask));
  }
  return x;
}

template <class Visit>
__device__ __forceinline__ void for_each_bit(unsigned bits, const Visit& visit) {
  for (; bits != 0; bits &= bits - 1) {
    visit(__ffs(static_cast<int>(bits)) - 1);
  }
}

/// The chosen as a token's lanes share them: each has those among its own experts, bits of `own`.
template <int lanes, class Raw>
struct shared_choice {
  unsigned own;
  const Raw& raw;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
    for_each_bit(own, [&](int i) { visit(i, raw(i)); });
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) {
    __syncwarp();
    return over_token<lanes>(x, [](float a, float b) { return a + b; });
  }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) {
    __syncwarp();
    return over_token<lanes>(x, [](float a, float b) { return fmaxf(a, b); });
  }
};
/// The chosen where their sorted keys tell all: every lane has every one of them.
struct sorted_choice {
  const unsigned* keys;
  int count;

  template <class Visit>
  __device__ __forceinline__ void visit(const Visit& visit) const {
#pragma unroll
    for (int k = 0; k < most_ranked; ++k) {
      if (k < count) {
        visit(k, from_sortable(keys[k]));
      }
    }
  }
  [[nodiscard]] __device__ __forceinline__ static float total(float x) { return x; }
  [[nodiscard]] __device__ __forceinline__ static float largest(float x) { return x; }
};

/// `lanes` lanes for each token. Chunk c of a lane's experts are four from 4 (c · lanes + lane) on.
template <int lanes>
__global__ void __launch_bounds__(gate_ranks_threads, 4)
    gate_ranks_kernel(const __grid_constant__ gate_args a) {
  constexpr int tokens_of_warp = 32 / lanes;
  __shared__ unsigned keys_of_block[experts_of_lane][gate_ranks_threads];
  extern __shared__ unsigned load[];  // [N], where it is counted
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int n = a.num_experts;
  clear_loads(a, load);
  const auto larger = [](float x, float y) { return fmaxf(x, y); };
  const auto sum_of = [](float x, float y) { return x + y; };
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int sub = lane % lanes;
  const auto expert = [sub](int i) { return (i / 4 * lanes + sub) * 4 + i % 4; };
  unsigned* const own_keys = &keys_of_block[0][threadIdx.x];
  const bool aligned = aligned_to_16(a.logits, a.logits_stride * 4, n * 4LL);
  constexpr int warps = gate_ranks_threads / 32;
  const long long step = static_cast<long long>(gridDim.x) * warps * tokens_of_warp;
  long long first = (static_cast<long long>(blockIdx.x) * warps + threadIdx.x / 32) * tokens_of_warp;
  for (; first < a.tokens; first += step) {
    // Lanes beyond the last token take it too, for all of a warp must take part in its exchanges.
    const long long wanted = first + lane / lanes;
    const long long token = min(wanted, a.tokens - 1);
    const float* const logits = a.logits + token * a.logits_stride;
    float x[experts_of_lane];
#pragma unroll
    for (int c = 0; c < experts_of_lane; c += 4) {
      if (aligned && expert(c) < n) {
        const float4 four = *reinterpret_cast<const float4*>(logits + expert(c));
        x[c] = four.x;
        x[c + 1] = four.y;
        x[c + 2] = four.z;
        x[c + 3] = four.w;
      } else {
#pragma unroll
        for (int i = c; i < c + 4; ++i) {
          x[i] = expert(i) < n ? logits[expert(i)] : -INFINITY;
        }
      }
    }
    // The scores. A NaN among them makes their sum one; of logits, which may be infinite, each is looked at.
    const auto transform = [&](const auto& of) {
#pragma unroll
      for (int i = 0; i < experts_of_lane; ++i) {
        x[i] = of(x[i], i);
      }
    };
    float largest = 0.0F;
    float sum = 0.0F;
    if (!a.score_first) {
      transform([&](float logit, int) {
        sum += isnan(logit) ? logit : 0.0F;
        return logit;
      });
    } else if (a.score == score_function::softmax) {
      largest = x[0];
      transform([&](float logit, int) {
        largest = fmaxf(largest, logit);
        return logit;
      });
      largest = over_token<lanes>(largest, larger);
      transform([&](float logit, int) {
        const float e = expf(logit - largest);
        sum += e;
        return e;
      });
    } else if (a.score == score_function::sigmoid) {
      transform([&](float logit, int) {
        const float s = score_of(score_function::sigmoid, logit);
        sum += s;
        return s;
      });
    } else {
      transform([&](float logit, int) {
        const float s = score_of(score_function::sqrtsoftplus, logit);
        sum += s;
        return s;
      });
    }
    sum = over_token<lanes>(sum, sum_of);
    bool clear = !isnan(sum) && isfinite(largest);
    if (a.score_first && a.score == score_function::softmax) {
      const float per_sum = 1.0F / sum;
      transform([&](float e, int) { return e * per_sum; });
    }
    if (a.bias != nullptr) {
      transform([&](float score, int i) { return expert(i) < n ? score + a.bias[expert(i)] : score; });
    }
    const bool positive = a.score_first && a.bias == nullptr;
    unsigned keys[experts_of_lane];
#pragma unroll
    for (int i = 0; i < experts_of_lane; ++i) {
      keys[i] = positive ? __float_as_uint(x[i]) | 0x80000000U  // what sortable() makes of them
                         : sortable(x[i]);
      keys[i] = expert(i) < n ? keys[i] : 0U;
      own_keys[i * gate_ranks_threads] = keys[i];
    }

    // The largest keys of all of a token's lanes.
#pragma unroll
    for (int i = 0; i < experts_of_lane; i += 8) {
      sort_eight(keys + i);
      if (i > 0) {
        merge_eights(keys, keys + i);
      }
    }
#pragma unroll
    for (int mask = 1; mask < lanes; mask *= 2) {
      unsigned other[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        other[j] = __shfl_xor_sync(0xffffffffU, keys[j], mask);
      }
      merge_eights(keys, other);
    }
    unsigned least = keys[0];
#pragma unroll
    for (int j = 1; j < most_ranked; ++j) {
      clear = clear && (j >= a.top_k || keys[j] != keys[j - 1]);
      least = j < a.top_k ? keys[j] : least;
    }
    unsigned chosen = 0;  // of this lane's experts
#pragma unroll
    for (int i = 0; i < experts_of_lane; ++i) {
      chosen |= own_keys[i * gate_ranks_threads] >= least ? 1U << i : 0U;
    }
    // The last place may be shared as well: then more are not below it than are to be chosen.
    const float count = over_token<lanes>(static_cast<float>(__popc(chosen)), sum_of);
    clear = clear && count == static_cast<float>(a.top_k);
    chosen = clear && wanted == token ? chosen : 0U;
    const auto leave = [&](const weighing& by, const auto& raw) {
      bool finite = by.defined();
      for_each_bit(chosen, [&](int i) {
        const unsigned key = own_keys[i * gate_ranks_threads];
        int rank = 0;
#pragma unroll
        for (int j = 0; j < most_ranked; ++j) {
          rank += keys[j] > key ? 1 : 0;
        }
        const float weight = by.weight(raw(i));
        a.weights[token * a.top_k + rank] = weight;
        a.experts[token * a.top_k + rank] = expert(i);
        finite = finite && isfinite(weight);
      });
      __syncwarp();
      const bool all_finite = over_token<lanes>(finite ? 0.0F : 1.0F, larger) == 0.0F;
      clear = clear && all_finite;
    };
    if (a.bias == nullptr) {
      leave(weighing(a, sorted_choice{keys, a.top_k}),
            [&](int i) { return from_sortable(own_keys[i * gate_ranks_threads]); });
    } else {
      const auto raw = [&](int i) { return raw_score(a, logits[expert(i)], largest, sum); };
      leave(weighing(a, shared_choice<lanes, decltype(raw)>{chosen, raw}), raw);
    }
    if (clear && a.load != nullptr) {
      for_each_bit(chosen, [&](int i) { atomicAdd(load + expert(i), 1U); });
    }
    if (clear && a.statuses != nullptr && sub == 0 && wanted == token) {
      a.statuses[token] = status::ok;
    }
    const unsigned done = __ballot_sync(0xffffffffU, clear);
    for (int t = 0; done != 0xffffffffU && t < tokens_of_warp && first + t < a.tokens; ++t) {
      if ((done >> (t * lanes) & 1U) == 0) {
        take_token<lanes>(a, first + t, nullptr, load);
      }
    }
  }
  add_loads(a, load);
}

}  // namespace detail
MPIROUTER_CUDA_END
