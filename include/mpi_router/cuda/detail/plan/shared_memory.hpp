// Where a block's shared memory goes: one list of typed blocks for each family of kernels. The plans count
// it, the kernels take their pointers from it.
#pragma once

#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/detail/plan/tiles.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

static_assert(leader_scratch::warps == most_warps && leader_scratch::parts == most_cluster);

/// Blocks that are counted: for a plan.
class counted_blocks {
 public:
  template <class T>
  MPIROUTER_HOST_DEVICE T* take(int count) {
    bytes_ += count * static_cast<int>(sizeof(T));
    return nullptr;
  }
  [[nodiscard]] int bytes() const { return bytes_; }

 private:
  int bytes_ = 0;
};
/// Blocks of memory, one after the other: for a kernel. The lists below keep each block aligned.
class placed_blocks {
 public:
  MPIROUTER_HOST_DEVICE explicit placed_blocks(unsigned char* memory) : next_(memory) {}
  template <class T>
  MPIROUTER_HOST_DEVICE T* take(int count) {
    T* const first = reinterpret_cast<T*>(next_);
    next_ = reinterpret_cast<unsigned char*>(first + count);
    return first;
  }

 private:
  unsigned char* next_;
};

/// Of a block over stored rows.
struct row_memory {
  unsigned char* rings;  // [groups, stages, stage_bytes]
  leader_scratch* leader;
  double* row_squares;   // [most_warps]: each warp's part of ‖r‖²
  std::uint64_t* full;   // [groups, most_stages]
  feed_state* feed;      // [groups]
  float* scratch;        // [warps, 2, sums_at_once]
  slot_header* headers;  // [groups]
  /// [groups, columns], where there are several groups, and several segments; a row, where a block finishes
  /// several experts; or the other parts of an image of which this block has the first.
  float* sums;

  /// Only a plan needs to know how many sums.
  template <class Blocks>
  MPIROUTER_HOST_DEVICE row_memory(Blocks&& blocks, const ring_shape& ring, int warps, int sums_count = 0)
      : rings(blocks.template take<unsigned char>(ring.groups * ring.group_bytes())),
        leader(blocks.template take<leader_scratch>(1)),
        row_squares(blocks.template take<double>(most_warps)),
        full(blocks.template take<std::uint64_t>(ring.groups * most_stages)),
        feed(blocks.template take<feed_state>(ring.groups)),
        scratch(blocks.template take<float>(warps * 2 * sums_at_once)),
        headers(blocks.template take<slot_header>(ring.groups)),
        sums(blocks.template take<float>(sums_count)) {}
  [[nodiscard]] static int bytes(const ring_shape& ring, int warps, int sums_count) {
    counted_blocks blocks;
    (void)row_memory(blocks, ring, warps, sums_count);
    return blocks.bytes();
  }
};

/// Floats of the rows of several probes that a block over panels keeps in shared memory: all that its threads
/// own. One probe's are in registers.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_probe_floats(panel_depth depth, int lanes,
                                                                     int probes) {
  return probes == 1 ? 0 : probes * panel_passes(depth) * (panel_threads / lanes);
}
/// In place of these where tensor cores multiply, of two exchanges: the sums with z̄ of a panel's 16-bit
/// columns, and what the warps that add them up say of the largest.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_tile_floats(int lanes) {
  return 2 * (lanes * vector_bytes / 2 + panel_largest);
}
/// Exchanges of which the sums of warps are kept: one where a barrier follows each.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr int panel_exchanges(bool in_tiles) { return in_tiles ? 1 : 2; }

/// What a kernel over panels keeps in shared memory besides the ring of weights.
struct panel_needs {
  int projections;       // that it swaps: of a panel's columns with each probe
  int probe_floats = 0;  // panel_probe_floats, or panel_tile_floats
  int old_slots = 0;     // of the ring of what a gradient is added to
  int inbox = 0;         // floats; only a plan needs to know
  int exchanges = 2;     // panel_exchanges
};

/// Of a block over panels.
struct panel_memory {
  static constexpr int warps = panel_threads / warp_threads;
  unsigned char* ring;  // [slots, panel_threads, vector_bytes]
  unsigned char* old;   // [old_slots, panel_threads, vector_bytes]
  leader_scratch* leader;
  double* row_squares;     // [warps]: each warp's part of ‖r‖²
  std::uint64_t* arrived;  // [2]
  float* by_warp;          // [2 or 1, warps, projections]
  float* by_block;         // [2, most_cluster, projections]
  float* scratch;          // [warps, 2, sums_at_once]
  float* probes;           // [passes, pass_rows, 2], of two; or [2, columns + panel_largest]
  float* image;            // the leader's inbox, where the step is fused

  template <class Blocks>
  MPIROUTER_HOST_DEVICE panel_memory(Blocks&& blocks, panel_depth depth, const panel_needs& needs)
      : ring(blocks.template take<unsigned char>(panel_slots(depth) * panel_threads * vector_bytes)),
        old(blocks.template take<unsigned char>(needs.old_slots * panel_threads * vector_bytes)),
        leader(blocks.template take<leader_scratch>(1)),
        row_squares(blocks.template take<double>(warps)),
        arrived(blocks.template take<std::uint64_t>(2)),
        by_warp(blocks.template take<float>(needs.exchanges * warps * needs.projections)),
        by_block(blocks.template take<float>(2 * most_cluster * needs.projections)),
        scratch(blocks.template take<float>(warps * 2 * sums_at_once)),
        probes(blocks.template take<float>(needs.probe_floats)),
        image(blocks.template take<float>(needs.inbox)) {}
  [[nodiscard]] static int bytes(panel_depth depth, const panel_needs& needs) {
    counted_blocks blocks;
    (void)panel_memory(blocks, depth, needs);
    return blocks.bytes();
  }
};

MPIROUTER_CUDA_DETAIL_END
