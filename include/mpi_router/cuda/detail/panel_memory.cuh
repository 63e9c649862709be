// Where a block that works on panels of stored columns keeps what is not in its ring.
#pragma once

#include <mpi_router/cuda/detail/row_plan.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int panel_threads = 512;
constexpr int panel_passes = 16;  // rows of a panel that a thread owns, at most

/// Where a block's shared memory goes, after the ring.
template <int panel>
struct panel_memory {
  static constexpr int warps = panel_threads / 32;
  team_scratch* team;
  double* row_squares;     // [warps]: each warp's part of ‖r‖²
  std::uint64_t* arrived;  // [2]
  slot_header* header;
  float* by_warp;   // [warps, panel]
  float* by_block;  // [2, most_cluster, panel]
  float* scratch;   // [warps, 2 · sums_at_once]
  float* image;     // [image_rows]: of the block's rows, where the step is fused
  float* inbox;     // the same, where blocks swap them

  [[nodiscard]] __host__ __device__ static constexpr int bytes(int image_rows, bool swaps) {
    return static_cast<int>(sizeof(team_scratch)) + warps * 8 + 2 * 8 +
           static_cast<int>(sizeof(slot_header)) +
           4 * (warps * panel + 2 * most_cluster * panel + warps * 2 * sums_at_once +
                (swaps ? 2 : 1) * image_rows);
  }
  __device__ __forceinline__ panel_memory(unsigned char* after_ring, int image_rows)
      : team(reinterpret_cast<team_scratch*>(after_ring)),
        row_squares(reinterpret_cast<double*>(team + 1)),
        arrived(reinterpret_cast<std::uint64_t*>(row_squares + warps)),
        header(reinterpret_cast<slot_header*>(arrived + 2)),
        by_warp(reinterpret_cast<float*>(header + 1)),
        by_block(by_warp + warps * panel),
        scratch(by_block + 2 * most_cluster * panel),
        image(scratch + warps * 2 * sums_at_once),
        inbox(image + image_rows) {}

  /// One thread calls it before the barriers are published.
  __device__ __forceinline__ void init() const {
    team->init();
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
