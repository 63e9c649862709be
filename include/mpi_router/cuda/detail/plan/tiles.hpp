// The tiles of a batch of weights, and the rings in shared memory that they go through.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

struct tile_shape {
  int ffn;         // F
  int hidden;      // D
  int rows;        // of a full tile
  int per_expert;  // tiles
};

/// The sizes of a block's rings: tile i of a block goes to group i mod groups, there to stage (i / groups)
/// mod stages.
struct ring_shape {
  int groups;
  int stages;
  int stage_bytes;
  [[nodiscard]] MPIROUTER_HOST_DEVICE int group_bytes() const { return stages * stage_bytes; }
};

/// A tile's place among the weights, moving on through the experts.
class tile_cursor {
 public:
  MPIROUTER_HOST_DEVICE tile_cursor(int expert, int first) : expert_(expert), first_(first) {}
  MPIROUTER_HOST_DEVICE tile_cursor(const tile_shape& tiles, int tile)
      : expert_(tile / tiles.per_expert), first_((tile - expert_ * tiles.per_expert) * tiles.rows) {}
  MPIROUTER_HOST_DEVICE void advance(const tile_shape& tiles, int count) {
    first_ += count * tiles.rows;
    while (first_ >= tiles.per_expert * tiles.rows) {
      first_ -= tiles.per_expert * tiles.rows;
      ++expert_;
    }
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE int expert() const { return expert_; }
  [[nodiscard]] MPIROUTER_HOST_DEVICE int first() const { return first_; }
  [[nodiscard]] MPIROUTER_HOST_DEVICE int count(const tile_shape& tiles) const {
    return tiles.rows < tiles.ffn - first_ ? tiles.rows : tiles.ffn - first_;
  }

 private:
  int expert_;
  int first_;
};

/// Where the copying of a group's tiles is. In shared memory: only one warp of the group needs it.
struct feed_state {
  int tile;  // the next to copy
  int expert;
  int first;
  int stage;
};

MPIROUTER_CUDA_DETAIL_END
