// The keys of a token that a few lanes share, in shared memory: before they are keys, they are logits, then
// scores.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/gate/choice.cuh>
#include <mpi_router/cuda/detail/gate/sort_eight.cuh>
#include <mpi_router/cuda/detail/gate/weighing.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cmath>

MPIROUTER_CUDA_DETAIL_BEGIN

/// `lanes` lanes for each token, each with `own` experts: four from 4 (q · lanes + lane) on for every q.
/// Loops over experts take eight at a time and are not unrolled further: the instruction cache is cold.
template <int lanes, int own>
class token_keys {
 public:
  using block_memory = uint4[own / 4][gate_ranks_threads];

  __device__ __forceinline__ explicit token_keys(block_memory& memory)
      : own_(&memory[0][threadIdx.x]), sub_(static_cast<int>(threadIdx.x) % 32 % lanes) {}

  [[nodiscard]] __device__ __forceinline__ int sub() const { return sub_; }
  [[nodiscard]] __device__ __forceinline__ int expert(int i) const {
    return (i / 4 * lanes + sub_) * 4 + i % 4;
  }
  /// Key i of the lane `other` lanes further on.
  [[nodiscard]] __device__ __forceinline__ unsigned key(int i, int other = 0) const {
    return reinterpret_cast<const unsigned*>(own_ + i / 4 * gate_ranks_threads + other)[i % 4];
  }

  /// Loads the logits. `largest`: of all of them; `most`: of the magnitudes' bits, above those of infinity
  /// where there is a NaN.
  __device__ __forceinline__ void load(const float* logits, int n, bool aligned, float& largest,
                                       unsigned& most) {
    largest = -INFINITY;
    most = 0;
    if (aligned) [[likely]] {
      float4 x[own / 4];
#pragma unroll
      for (int q = 0; q < own / 4; ++q) {
        x[q] = expert(4 * q) < n ? *reinterpret_cast<const float4*>(logits + expert(4 * q))
                                 : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
      }
#pragma unroll
      for (int q = 0; q < own / 4; ++q) {
        own_[q * gate_ranks_threads] = make_uint4(__float_as_uint(x[q].x), __float_as_uint(x[q].y),
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
    largest = over_token<lanes>(largest, larger_of{});
    most = over_token<lanes>(most, [](unsigned x, unsigned y) { return max(x, y); });
  }
  /// Makes scores of logits where experts are selected by them, and returns their sum; that of the softmax
  /// where weights are shares of all.
  [[nodiscard]] __device__ __forceinline__ float score(const gate_args& a, float largest) {
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
      core::with_score(a.score, [&]<class Score>(Score) {
        transform([&](float x) { return score_of<Score>(Score::is_exponential ? x - largest : x); });
      });
      sum = over_token<lanes>(sum, sum_of{});
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
      sum = over_token<lanes>(sum, sum_of{});
    }
    return sum;
  }
  /// Makes keys of what experts are selected by, times `factor` where there is a bias. `best`: the token's
  /// largest, of a lane's experts first, then of all of its lanes.
  __device__ __forceinline__ void rank(const gate_args& a, float factor, unsigned (&best)[8]) {
    const int n = a.num_experts;
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
  }
  /// The lane's experts that are chosen, as bits: those with one of the `top_k` best keys. `tied`: two keys
  /// are equal, of some token of the warp; then what is chosen goes to `chosen_of_lanes` as well.
  [[nodiscard]] __device__ __forceinline__ unsigned choose(int top_k, int n, const unsigned (&best)[8],
                                                           unsigned* chosen_of_lanes, bool& tied) const {
    unsigned least = best[0];
    tied = false;
#pragma unroll
    for (int j = 1; j < most_ranked; ++j) {
      tied = tied || (j < top_k && best[j] == best[j - 1]);
      least = j < top_k ? best[j] : least;
    }
    unsigned chosen = 0;
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
    tied = over_token<lanes>(__popc(chosen), sum_of{}) != top_k || tied;
    if (__any_sync(0xffffffffU, tied) != 0) [[unlikely]] {
      chosen = break_ties(top_k, n, least, chosen);
      chosen_of_lanes[threadIdx.x] = chosen;
      __syncwarp();
    }
    return chosen;
  }
  /// The place of chosen expert i among the chosen: the number of larger keys, and of equal ones of lower
  /// index.
  [[nodiscard]] __device__ __forceinline__ int place(int i, const unsigned (&best)[8], bool tied,
                                                     const unsigned* chosen_of_lanes) const {
    const unsigned its_key = key(i);
    int before = 0;
#pragma unroll
    for (int j = 0; j < most_ranked; ++j) {
      before += best[j] > its_key ? 1 : 0;
    }
    if (tied) [[unlikely]] {
#pragma unroll 1
      for (int other = -sub_; other < lanes - sub_; ++other) {
        for_each_bit((chosen_of_lanes + threadIdx.x)[other], [&](int e) {
          before += key(e, other) == its_key && expert(e) + 4 * other < expert(i) ? 1 : 0;
        });
      }
    }
    return before;
  }

 private:
  __device__ __forceinline__ void load_eight(int first, unsigned (&k)[8]) const {
    const uint4 low = own_[first / 4 * gate_ranks_threads];
    const uint4 high = own_[(first / 4 + 1) * gate_ranks_threads];
    k[0] = low.x, k[1] = low.y, k[2] = low.z, k[3] = low.w;
    k[4] = high.x, k[5] = high.y, k[6] = high.z, k[7] = high.w;
  }
  __device__ __forceinline__ void store_eight(int first, const unsigned (&k)[8]) {
    own_[first / 4 * gate_ranks_threads] = make_uint4(k[0], k[1], k[2], k[3]);
    own_[(first / 4 + 1) * gate_ranks_threads] = make_uint4(k[4], k[5], k[6], k[7]);
  }
  /// Of the experts that share the last place those of the lowest indices.
  [[nodiscard]] __device__ __forceinline__ unsigned break_ties(int top_k, int n, unsigned least,
                                                               unsigned chosen) const {
    unsigned last = 0;
#pragma unroll 1
    for (int i = 0; i < own; ++i) {
      last |= key(i) == least ? 1U << i : 0U;
    }
    chosen &= ~last;
    int missing = top_k - over_token<lanes>(__popc(chosen), sum_of{});
#pragma unroll 1
    for (; __any_sync(0xffffffffU, missing > 0) != 0; --missing) {
      const int mine = last != 0 ? expert(__ffs(static_cast<int>(last)) - 1) : n;
      const int next = over_token<lanes>(mine, [](int x, int y) { return min(x, y); });
      const unsigned taken = missing > 0 && mine == next ? last & (0U - last) : 0U;
      chosen |= taken;
      last &= ~taken;
    }
    return chosen;
  }

  uint4* own_;
  int sub_;  // of the token's lanes
};

MPIROUTER_CUDA_DETAIL_END
