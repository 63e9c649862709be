// Where a thread of the panel kernel is, and what it has.
#pragma once

#include <mpi_router/cuda/detail/device/cluster.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// `width` stored columns of 16 bytes for a thread; `lanes` threads share a row's part of a panel.
template <int width, int lanes>
struct panel_place {
  static constexpr int panel = lanes * width;              // columns
  static constexpr int pass_rows = panel_threads / lanes;  // rows of one pass
  static constexpr int warps = panel_threads / warp_threads;
  int thread;
  int lane;
  int blocks;       // that share the rows of a panel
  int rank;         // of this one among them
  int first_block;  // of them, in the cluster
  int unit;         // all of them together count as one
  int run;          // of tiles, which a team of units has
  int block_rows;
  int first_row;  // this thread's in pass 0,
  int rows;       // and how many it has
  int own;        // its first column in a panel

  __device__ __forceinline__ panel_place(int passes, int row_blocks, int team, int hidden)
      : thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        blocks(row_blocks),
        rank(cluster_rank() % blocks),
        first_block(cluster_rank() - rank),
        unit(static_cast<int>(blockIdx.x) / blocks),
        run(unit / team),
        block_rows(passes * pass_rows),
        first_row(rank * block_rows + thread / lanes),
        rows(min(passes, max(0, (hidden - first_row + pass_rows - 1) / pass_rows))),
        own(thread % lanes * width) {}
  /// Of this unit in its team.
  [[nodiscard]] __device__ __forceinline__ int member(int team) const { return unit % team; }
};

MPIROUTER_CUDA_DETAIL_END
