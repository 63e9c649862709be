// How the tiles of all experts are assigned to the blocks of a grid.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

using core::concatenate;
using core::expect;

/// The slots of one expert's partial sums, one after the other.
struct slot_range {
  int first;
  int count;
};

/// The tiles of all experts in one list, assigned to the blocks in equal runs. A run may span experts: the
/// part of a run in one expert is a segment, and has a slot of its own for its partial sums. A block may be a
/// team whose members take the tiles of a run in turn; then each member has a slot in every segment.
struct partition {
  int experts = 0;
  int tiles_per_expert = 0;
  int blocks = 0;
  int whole = 0;  ///< not 0: `blocks` divides the tiles of all experts evenly, each block has one segment
  int team = 1;

  [[nodiscard]] MPIROUTER_HOST_DEVICE int tiles() const { return experts * tiles_per_expert; }
  [[nodiscard]] MPIROUTER_HOST_DEVICE int first_tile(int block) const {
    // ⌊block · tiles / blocks⌋ without the division of 64 bits; there are fewer than 2^16 blocks.
    const unsigned n = static_cast<unsigned>(blocks), b = static_cast<unsigned>(block);
    const unsigned each = static_cast<unsigned>(tiles()) / n;
    return static_cast<int>(b * each + b * (static_cast<unsigned>(tiles()) - each * n) / n);
  }
  /// The block that a tile was assigned to: the last whose first tile is not beyond it.
  [[nodiscard]] MPIROUTER_HOST_DEVICE int block_of(int tile) const {
    return static_cast<int>(((static_cast<long long>(tile) + 1) * blocks - 1) / tiles());
  }
  /// The first slot of a segment.
  [[nodiscard]] MPIROUTER_HOST_DEVICE int slot(int block, int expert) const {
    return (whole != 0 ? block : block + expert) * team;
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE slot_range slots_of(int expert) const {
    if (whole != 0) {
      const int count = blocks / experts;
      return {slot(expert * count, expert), count * team};
    }
    const int first = block_of(expert * tiles_per_expert);
    const int last = block_of((expert + 1) * tiles_per_expert - 1);
    return {slot(first, expert), (last - first + 1) * team};
  }
  [[nodiscard]] index_t slots() const {
    return (whole != 0 ? index_t{blocks} : index_t{blocks} + experts) * team;
  }
};

/// Refuses what the counters of the kernels do not hold.
inline void expect_countable(const expert_shape& s, index_t tiles_per_expert, index_t slots) {
  const index_t tiles = s.num_experts * tiles_per_expert;
  expect(tiles <= most_tiles, "cuda: experts [", s.num_experts, ", ", s.ffn_dim, ", ", s.hidden_dim,
         "] make ", tiles, " tiles, where ", most_tiles, " are the most");
  expect(slots <= most_slots, "cuda: experts [", s.num_experts, ", ", s.ffn_dim, ", ", s.hidden_dim,
         "] make ", slots, " partial sums, where ", most_slots, " are the most");
}

/// As many blocks as `limit`, or somewhat fewer if then each has rows of a single expert. Every expert has a
/// tile.
[[nodiscard]] inline partition make_partition(const expert_shape& shape, index_t tiles_per_expert,
                                              int limit) {
  const index_t experts = shape.num_experts;
  expect(limit >= 1 && limit <= most_blocks, "cuda: a grid of ", limit, " blocks, where 1 to ", most_blocks,
         " can be");
  expect_countable(shape, tiles_per_expert, experts + limit);
  partition p;
  p.experts = static_cast<int>(experts);
  p.tiles_per_expert = static_cast<int>(tiles_per_expert);
  p.blocks = p.tiles() < limit ? p.tiles() : limit;
  index_t each = 1;
  while (2 * each * experts <= limit && 2 * each <= tiles_per_expert) {
    each *= 2;
  }
  const index_t blocks = each * experts;
  if (blocks <= limit && (blocks * 100 >= index_t{limit} * enough_blocks || 2 * each > tiles_per_expert)) {
    p.blocks = static_cast<int>(blocks);
    p.whole = 1;
  }
  return p;
}

/// The largest divisor of n up to `limit`.
[[nodiscard]] inline int most_divisor(int n, int limit) {
  int divisor = n < limit ? n : limit;
  while (divisor > 1 && n % divisor != 0) {
    --divisor;
  }
  return divisor;
}

/// Gives every block the same number of whole experts, if that leaves few of `limit` without work; says
/// whether it did.
[[nodiscard]] inline bool deal_whole_experts(partition& p, int limit) {
  const int blocks = most_divisor(p.experts, limit);
  const bool enough = index_t{blocks} * 100 >= index_t{limit} * enough_blocks;
  if (enough) {
    p.whole = 0;
    p.blocks = blocks;
  }
  return enough;
}

MPIROUTER_CUDA_DETAIL_END
