// The projections of a panel: each thread's part is summed over the block, and over the blocks of a cluster
// that share the panel's rows.
#pragma once

#include <mpi_router/cuda/detail/device/cluster.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/panels/place.cuh>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Sums each of `width` values over the lanes that differ above bit log2(lanes). Afterwards lane l holds in
/// v[0 … left) the sums of the values from (l >> (5 − halvings)) · left on.
template <int width, int lanes>
struct panel_reduction {
  static constexpr int log2(int x) { return x <= 1 ? 0 : 1 + log2(x / 2); }
  static constexpr int halvings = log2(width) < log2(32 / lanes) ? log2(width) : log2(32 / lanes);
  static constexpr int left = width >> halvings;

  __device__ __forceinline__ static void run(float (&v)[width], int lane) {
    halve_over_warp<width, 16, left>(v, lane);
    add_over_warp<left, (16 >> halvings), lanes>(v);
  }
  /// One of the lanes that hold the same sums.
  [[nodiscard]] __device__ __forceinline__ static bool writes(int lane) {
    return (lane & ((32 >> halvings) - 1) & ~(lanes - 1)) == 0;
  }
};

/// There are two places for an exchange, used in turn: a block that has all parts of one knows that nobody
/// reads those of the one before any more.
template <int width, int lanes>
class panel_exchange {
 public:
  /// All threads of the block call it first.
  __device__ __forceinline__ explicit panel_exchange(const panel_memory& memory) : memory_(memory) {
    if (threadIdx.x == 0) {
      barrier_init(&memory.leader->arrived, 1);
      barrier_init(memory.arrived, 1);
      barrier_init(memory.arrived + 1, 1);
      publish_barriers();
    }
    cluster_arrive();
    cluster_wait();
  }

  /// Sums this thread's part of the projections of its columns over all that share them.
  __device__ __forceinline__ void sum(const panel_place<width, lanes>& at, float (&y)[width]) {
    using reduction = panel_reduction<width, lanes>;
    reduction::run(y, at.lane);
    float* const by_warp = memory_.by_warp + turn_ * at.warps * at.panel;
    float* const parts = memory_.by_block + turn_ * most_cluster * at.panel;
    if (reduction::writes(at.lane)) {
      float* const to = by_warp + at.thread / 32 * at.panel + at.own +
                        (at.lane >> (5 - reduction::halvings)) * reduction::left;
#pragma unroll
      for (int i = 0; i < reduction::left; ++i) {
        to[i] = y[i];
      }
    }
    __syncthreads();
    swap(at, by_warp, parts, memory_.arrived + turn_);
    turn_ ^= 1;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      y[i] = 0.0F;
    }
    for (int b = 0; b < at.blocks; ++b) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        const float4 part = *reinterpret_cast<const float4*>(parts + b * at.panel + at.own + i);
        y[i] += part.x;
        y[i + 1] += part.y;
        y[i + 2] += part.z;
        y[i + 3] += part.w;
      }
    }
  }
  /// Which image the leader of the cluster is sent: 0, 1, 0, …
  [[nodiscard]] __device__ __forceinline__ unsigned image_turn() {
    const unsigned turn = parity_ >> 2;
    parity_ ^= 4U;
    return turn;
  }

 private:
  /// Each block adds up what its warps have, and sends it to all blocks.
  __device__ __forceinline__ void swap(const panel_place<width, lanes>& at, const float* by_warp,
                                       float* parts, std::uint64_t* arrived) {
    if (at.thread == 0 && at.blocks > 1) {
      barrier_expect(arrived, static_cast<unsigned>(at.blocks * at.panel) * 4);
    }
#pragma unroll 1
    for (int i = at.thread; i < at.blocks * at.panel; i += panel_threads) {
      const int c = i % at.panel;
      float sum = 0.0F;
#pragma unroll
      for (int w = 0; w < at.warps; ++w) {
        sum += by_warp[w * at.panel + c];
      }
      if (at.blocks == 1) {
        parts[c] = sum;
      } else {
        send_remote(parts + at.rank * at.panel + c, at.first_block + i / at.panel, sum, arrived);
      }
    }
    if (at.blocks == 1) {
      __syncthreads();
    } else {
      barrier_wait<writers::cluster>(arrived, parity_ >> turn_ & 1U);
      parity_ ^= 1U << turn_;
    }
  }

  const panel_memory& memory_;
  int turn_ = 0;
  unsigned parity_ = 0;  // bit `turn`: of that exchange; bit 2: of the leader's inbox
};

MPIROUTER_CUDA_DETAIL_END
