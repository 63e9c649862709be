// Where a block's shared memory goes, after its rings: the kernels take their pointers from here, and the
// plans the sizes.
#pragma once

#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/detail/plan/tiles.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

// All counts are small: products of ints are offsets here.
// NOLINTBEGIN(bugprone-implicit-widening-of-multiplication-result)

/// Of a block over stored rows.
struct row_memory {
  leader_scratch* leader;
  double* row_squares;   // [most_warps]: each warp's part of ‖r‖²
  std::uint64_t* full;   // [groups, most_stages]
  feed_state* feed;      // [groups]
  float* scratch;        // [warps, 2 · sums_at_once]
  slot_header* headers;  // [groups]
  /// [groups, columns], where there are several groups, and several segments; or the other parts of an image
  /// of which this block has the first. Not counted in bytes().
  float* sums;

  [[nodiscard]] static constexpr int bytes(int groups, int warps) {
    return static_cast<int>(sizeof(leader_scratch)) + most_warps * 8 +
           groups * (most_stages * 8 + static_cast<int>(sizeof(feed_state))) + warps * 2 * sums_at_once * 4 +
           groups * static_cast<int>(sizeof(slot_header));
  }
  MPIROUTER_HOST_DEVICE row_memory(unsigned char* after_rings, int groups, int warps)
      : leader(reinterpret_cast<leader_scratch*>(after_rings)),
        row_squares(reinterpret_cast<double*>(leader + 1)),
        full(reinterpret_cast<std::uint64_t*>(row_squares + most_warps)),
        feed(reinterpret_cast<feed_state*>(full + groups * most_stages)),
        scratch(reinterpret_cast<float*>(feed + groups)),
        headers(reinterpret_cast<slot_header*>(scratch + warps * 2 * sums_at_once)),
        sums(reinterpret_cast<float*>(headers + groups)) {}
};

/// Of a panel's passes, those that have two places in the ring.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_doubled(bool large) {
  return large ? panel_doubled_large : panel_doubled_small;
}
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_slots(bool large) {
  return panel_passes + panel_doubled(large);
}

/// Of a block over panels of `panel` columns.
struct panel_memory {
  static constexpr int warps = panel_threads / warp_threads;
  leader_scratch* leader;
  double* row_squares;     // [warps]: each warp's part of ‖r‖²
  std::uint64_t* arrived;  // [2]
  float* by_warp;          // [2, warps, panel]
  float* by_block;         // [2, most_cluster, panel]
  float* scratch;          // [warps, 2 · sums_at_once]
  float* image;            // the leader's inbox, where the step is fused. Not counted in bytes().

  [[nodiscard]] static constexpr int bytes(int panel) {
    return static_cast<int>(sizeof(leader_scratch)) + warps * 8 + 2 * 8 +
           4 * (2 * warps * panel + 2 * most_cluster * panel + warps * 2 * sums_at_once);
  }
  MPIROUTER_HOST_DEVICE panel_memory(unsigned char* after_ring, int panel)
      : leader(reinterpret_cast<leader_scratch*>(after_ring)),
        row_squares(reinterpret_cast<double*>(leader + 1)),
        arrived(reinterpret_cast<std::uint64_t*>(row_squares + warps)),
        by_warp(reinterpret_cast<float*>(arrived + 2)),
        by_block(by_warp + 2 * warps * panel),
        scratch(by_block + 2 * most_cluster * panel),
        image(scratch + warps * 2 * sums_at_once) {}
};

// NOLINTEND(bugprone-implicit-widening-of-multiplication-result)

MPIROUTER_CUDA_DETAIL_END
