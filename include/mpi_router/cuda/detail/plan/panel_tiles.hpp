// How panels of 16-bit columns lie in shared memory in tiles of 16 × 16, the operands of the tensor cores.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A warp's part of a panel in pieces of 16 bytes, `lanes` of each stored row: 8 elements, of which a tile
/// has two side by side. The pieces of a row lie in an order that changes from row to row, so that no two of
/// the eight that are loaded at once, one below the other, are in the same banks.
template <int lanes>
struct panel_tiles {
  static constexpr int side = 16;
  static constexpr int piece = vector_bytes / 2;          // elements
  static constexpr int warp_rows = warp_threads / lanes;  // of one pass
  static constexpr int tile_passes = side / warp_rows;    // of a tile
  static constexpr int across = lanes * piece / side;     // tiles side by side
  static constexpr int pass_bytes = panel_threads * vector_bytes;

  /// What the number of a piece in row x of a tile is combined with.
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int order(int x) {
    return lanes == 8 ? x % 8 : x % 8 / 2;
  }
  /// The slot of a thread's piece in its row of an even pass, and how far beyond it that of pass p is.
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int slot(int thread) {
    return thread ^ order(thread % warp_threads / lanes);
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int flip(int thread, int p) {
    return lanes == 8 && p % 2 != 0 ? 4 - 2 * (slot(thread) & 4) : 0;
  }
  /// Bytes from the warp's first slot of a tile's first pass to piece `which` of row x; ^ 32 n for the nth
  /// tile to the right of the first.
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int offset(int x, int which) {
    const int at = x % warp_rows * lanes + (which ^ order(x));
    return x / warp_rows * pass_bytes + at * vector_bytes;
  }

  // The projections of a panel, as a product leaves them: a lane has those of one probe, with every 8th
  // column of a half or of a quarter of the panel, from its row of the product on.

  /// Of the sum that thread `thread` of the block adds up: with which probe it is, and of which column.
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int probe(int thread) { return thread % 4 / 2; }
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int column(int thread) {
    return (thread % 2 * across + thread / warp_threads) * piece + thread % warp_threads / 4;
  }
  /// Where the one with z̄ and a column is kept, for a lane to find those of its four columns of every tile in
  /// fours, one after the other.
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int dual_place(int column) {
    return column % 8 / 2 * (4 * across) + column / 16 * 4 + column / 8 % 2 * 2 + column % 2;
  }
};
/// Where each thread has to do with its own pieces alone.
template <>
struct panel_tiles<0> {
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int slot(int thread) { return thread; }
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr int flip(int, int) { return 0; }
};

MPIROUTER_CUDA_DETAIL_END
