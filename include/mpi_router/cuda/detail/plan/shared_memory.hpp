// Where a block's shared memory goes: the places of its parts, in bytes from where its rings end. The kernels
// take their pointers from here, and the plans the sizes.
#pragma once

#include <mpi_router/cuda/detail/plan/tiles.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>

#include <cstdint>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// What a block needs in shared memory to finish an expert, whose parts others may send.
struct leader_scratch {
  double norms[2 * most_warps];
  double residual[most_warps];
  std::uint64_t arrived;
  slot_header headers[most_cluster];
};

/// Of a block over stored rows.
struct row_memory_layout {
  int row_squares;  // double [most_warps]: each warp's part of ‖r‖²
  int full;         // std::uint64_t [groups, most_stages]
  int feed;         // feed_state [groups]
  int scratch;      // float [warps, 2 · sums_at_once]
  int headers;      // slot_header [groups]
  /// float [groups, columns], where there are several groups, and several segments; or the other parts of an
  /// image of which this block has the first. Not counted in the bytes before it.
  int sums;

  MPIROUTER_HOST_DEVICE constexpr row_memory_layout(int groups, int warps)
      : row_squares(static_cast<int>(sizeof(leader_scratch))),
        full(row_squares + most_warps * 8),
        feed(full + groups * most_stages * 8),
        scratch(feed + groups * static_cast<int>(sizeof(feed_state))),
        headers(scratch + warps * 2 * sums_at_once * 4),
        sums(headers + groups * static_cast<int>(sizeof(slot_header))) {}
};

/// Of a block over panels of `panel` columns.
struct panel_memory_layout {
  static constexpr int warps = panel_threads / warp_threads;
  int row_squares;  // double [warps]: each warp's part of ‖r‖²
  int arrived;      // std::uint64_t [2]
  int by_warp;      // float [2, warps, panel]
  int by_block;     // float [2, most_cluster, panel]
  int scratch;      // float [warps, 2 · sums_at_once]
  int image;        // the leader's inbox, where the step is fused. Not counted in the bytes before it.

  MPIROUTER_HOST_DEVICE constexpr explicit panel_memory_layout(int panel)
      : row_squares(static_cast<int>(sizeof(leader_scratch))),
        arrived(row_squares + warps * 8),
        by_warp(arrived + 2 * 8),
        by_block(by_warp + 2 * warps * panel * 4),
        scratch(by_block + 2 * most_cluster * panel * 4),
        image(scratch + warps * 2 * sums_at_once * 4) {}
};

}  // namespace detail
MPIROUTER_CUDA_END
