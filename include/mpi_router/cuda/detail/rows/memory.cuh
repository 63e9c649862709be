// The shared memory of a block over stored rows.
#pragma once

#include <mpi_router/cuda/detail/device/cluster.cuh>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>
#include <mpi_router/cuda/detail/rows/ring.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A block's shared memory after the rings.
struct block_memory : row_memory {
  using row_memory::row_memory;

  /// All threads of the block call it first: the first tile of group g is `tile` + g.
  template <copier by>
  __device__ __forceinline__ void start(const ring_shape& ring, const tile_shape& tiles, int tile) const {
    if (threadIdx.x == 0) {
      barrier_init(&leader->arrived, 1);
    }
    const int groups = by == copier::engine ? ring.groups : 0;
    for (int i = static_cast<int>(threadIdx.x); i < groups * ring.stages; i += static_cast<int>(blockDim.x)) {
      barrier_init(full + i / ring.stages * most_stages + i % ring.stages, 1);
    }
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += static_cast<int>(blockDim.x)) {
      const tile_cursor at(tiles, tile + g);
      feed[g] = {tile + g, at.expert(), at.first(), 0};
    }
    publish_barriers();
    __syncthreads();
    cluster_arrive();
    cluster_wait();
  }
};

MPIROUTER_CUDA_DETAIL_END
