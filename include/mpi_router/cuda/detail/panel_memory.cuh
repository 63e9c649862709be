// Where a block that works on panels of stored columns keeps what is not in its ring.
#pragma once

#include <mpi_router/cuda/detail/finish.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// A block's shared memory after the ring: see panel_memory_layout.
template <int panel>
struct panel_memory {
  leader_scratch* leader;
  double* row_squares;
  std::uint64_t* arrived;
  float* by_warp;
  float* by_block;
  float* scratch;
  float* image;

  __device__ __forceinline__ explicit panel_memory(unsigned char* after_ring)
      : leader(reinterpret_cast<leader_scratch*>(after_ring)),
        row_squares(reinterpret_cast<double*>(after_ring + at.row_squares)),
        arrived(reinterpret_cast<std::uint64_t*>(after_ring + at.arrived)),
        by_warp(reinterpret_cast<float*>(after_ring + at.by_warp)),
        by_block(reinterpret_cast<float*>(after_ring + at.by_block)),
        scratch(reinterpret_cast<float*>(after_ring + at.scratch)),
        image(reinterpret_cast<float*>(after_ring + at.image)) {}

  /// One thread calls it before the barriers are published.
  __device__ __forceinline__ void init() const {
    barrier_init(&leader->arrived, 1);
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
  }

 private:
  static constexpr panel_memory_layout at{panel};
};

}  // namespace detail
MPIROUTER_CUDA_END
