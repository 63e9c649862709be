// Where a block that works on panels of stored columns keeps what is not in its ring.
#pragma once

#include <mpi_router/cuda/detail/finish.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int panel_threads = 512;
constexpr int panel_passes = 16;  // rows of a panel that a thread owns, at most

/// Where a block's shared memory goes, after the ring.
template <int panel>
struct panel_memory {
  static constexpr int warps = panel_threads / 32;
  leader_scratch* leader;
  double* row_squares;     // [warps]: each warp's part of ‖r‖²
  std::uint64_t* arrived;  // [2]
  float* by_warp;          // [2, warps, panel]
  float* by_block;         // [2, most_cluster, panel]
  float* scratch;          // [warps, 2 · sums_at_once]
  float* image;            // the leader's inbox, where the step is fused

  [[nodiscard]] __host__ __device__ static constexpr int bytes() {
    return static_cast<int>(sizeof(leader_scratch)) + warps * 8 + 2 * 8 +
           4 * (2 * warps * panel + 2 * most_cluster * panel + warps * 2 * sums_at_once);
  }
  __device__ __forceinline__ explicit panel_memory(unsigned char* after_ring)
      : leader(reinterpret_cast<leader_scratch*>(after_ring)),
        row_squares(reinterpret_cast<double*>(leader + 1)),
        arrived(reinterpret_cast<std::uint64_t*>(row_squares + warps)),
        by_warp(reinterpret_cast<float*>(arrived + 2)),
        by_block(by_warp + 2 * warps * panel),
        scratch(by_block + 2 * most_cluster * panel),
        image(scratch + warps * 2 * sums_at_once) {}

  /// One thread calls it before the barriers are published.
  __device__ __forceinline__ void init() const {
    leader->init();
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
