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
#include <type_traits>

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
/// reads those of the one before any more. (The sums of warps need but one where a barrier of the block
/// follows each exchange.) The projections of `probes` rows are exchanged at once.
template <int width, int lanes, int probes, bool one_place = false>
class panel_exchange {
 public:
  static constexpr int values = probes * width;  // of a thread: of the first probe, then of the others
  static constexpr int all = lanes * values;     // of a block

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
  __device__ __forceinline__ void sum(const panel_place<width, lanes>& at, float (&y)[values]) {
    using reduction = panel_reduction<values, lanes>;
    static_assert(piece % reduction::left == 0, "values that lie side by side");
    reduction::run(y, at.lane);
    if (reduction::writes(at.lane)) {
      float* const to = by_warp() + at.thread / 32 * all +
                        place_of(at.thread % lanes, (at.lane >> (5 - reduction::halvings)) * reduction::left);
#pragma unroll
      for (int i = 0; i < reduction::left; ++i) {
        to[i] = y[i];
      }
    }
    send(at);
    float* const parts = receive(at);
    const bool many = at.blocks > panel_few_blocks;
    if (many) {
      add_up(at, parts);
    }
    clear(y);
    for (int b = 0; b < (many ? 1 : at.blocks); ++b) {
      const float* const part = parts + b * all;
#pragma unroll
      for (int i = 0; i < values; i += piece) {
        add_piece(reinterpret_cast<const piece_type*>(part + place_of(at.thread % lanes, i)), y + i);
      }
    }
  }
  /// Where the warps put their sums, `all` each, before all threads of the block call send(): then these are
  /// added up, and on their way. receive() returns those of each block.
  [[nodiscard]] __device__ __forceinline__ float* by_warp() const {
    return memory_.by_warp + (one_place ? 0 : turn_ * panel_memory::warps * all);
  }
  __device__ __forceinline__ void send(const panel_place<width, lanes>& at) const {
    __syncthreads();
    send_sums(at, by_warp(), parts_of_turn(), memory_.arrived + turn_);
  }
  [[nodiscard]] __device__ __forceinline__ float* receive(const panel_place<width, lanes>& at) {
    if (at.blocks == 1) {
      __syncthreads();
    } else {
      barrier_wait<writers::cluster>(memory_.arrived + turn_, parity_ >> turn_ & 1U);
      parity_ ^= 1U << turn_;
    }
    float* const parts = parts_of_turn();
    turn_ ^= 1;
    return parts;
  }
  /// Which image the leader of the cluster is sent: 0, 1, 0, …
  [[nodiscard]] __device__ __forceinline__ unsigned image_turn() {
    const unsigned turn = parity_ >> 2;
    parity_ ^= 4U;
    return turn;
  }

 private:
  static_assert(panel_threads % all == 0, "a thread sends one projection");
  static constexpr int piece = values < 4 ? values : 4;
  using piece_type = std::conditional_t<(piece == 4), float4, float2>;

  /// Where value i of a thread that is the `lane`th of its row lies: pieces of neighbours side by side, so
  /// that no two of them are in the same bank.
  [[nodiscard]] __device__ __forceinline__ static int place_of(int lane, int i) {
    return i / piece * (lanes * piece) + lane * piece + i % piece;
  }
  __device__ __forceinline__ static void add_piece(const float4* from, float* to) {
    const float4 part = *from;
    to[0] += part.x;
    to[1] += part.y;
    to[2] += part.z;
    to[3] += part.w;
  }
  __device__ __forceinline__ static void add_piece(const float2* from, float* to) {
    const float2 part = *from;
    to[0] += part.x;
    to[1] += part.y;
  }
  /// Adds the parts of all blocks up in the place of the first: once, where there are many.
  __device__ __forceinline__ void add_up(const panel_place<width, lanes>& at, float* parts) const {
    if (at.thread < all) {
      float sum = 0.0F;
      for (int b = 0; b < at.blocks; ++b) {
        sum += parts[b * all + at.thread];
      }
      parts[at.thread] = sum;
    }
    __syncthreads();
  }
  [[nodiscard]] __device__ __forceinline__ float* parts_of_turn() const {
    return memory_.by_block + turn_ * most_cluster * all;
  }
  /// Each block adds up what its warps have, and sends it to all blocks.
  __device__ __forceinline__ static void send_sums(const panel_place<width, lanes>& at, const float* by_warp,
                                                   float* parts, std::uint64_t* arrived) {
    if (at.thread == 0 && at.blocks > 1) {
      barrier_expect(arrived, static_cast<unsigned>(at.blocks * all) * 4);
    }
    const int c = at.thread % all;
    const int first = at.thread / all;
    if (first < at.blocks) {
      float sum = 0.0F;
#pragma unroll
      for (int w = 0; w < at.warps; ++w) {
        sum += by_warp[w * all + c];
      }
      if (at.blocks == 1) {
        parts[c] = sum;
      }
#pragma unroll 1
      for (int b = first; b < at.blocks && at.blocks > 1; b += panel_threads / all) {
        send_remote(parts + at.rank * all + c, at.first_block + b, sum, arrived);
      }
    }
  }

  panel_memory memory_;
  int turn_ = 0;
  unsigned parity_ = 0;  // bit `turn`: of that exchange; bit 2: of the leader's inbox
};

MPIROUTER_CUDA_DETAIL_END
