// The threads of a block in groups, and the barriers among them.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A barrier among `threads` threads (a multiple of 32) of the block; ids 1 to 15 are free.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// A barrier of the block. Where groups of its threads have met different numbers of named barriers before,
/// racecheck (CUDA 13.0) does not see it, but sees the second of two: tests/cuda/barriers.cu.
__device__ __forceinline__ void block_sync() {
  __syncthreads();
#ifdef MPIROUTER_CUDA_RACECHECK
  __syncthreads();
#endif
}

/// The threads that work on one tile together, `threads` of them (a multiple of 32). A block has several such
/// groups, each with a ring and a named barrier of its own.
struct thread_group {
  int id;       // of the group in its block
  int threads;  // in the group
  int rank;     // of this thread in its group
  __device__ __forceinline__ explicit thread_group(int group_threads)
      : id(static_cast<int>(threadIdx.x) / group_threads),
        threads(group_threads),
        rank(static_cast<int>(threadIdx.x) - id * group_threads) {}
  [[nodiscard]] __device__ __forceinline__ int warp() const { return rank / 32; }
  [[nodiscard]] __device__ __forceinline__ int warps() const { return threads / 32; }
  [[nodiscard]] __device__ __forceinline__ int lane() const { return rank % 32; }
  __device__ __forceinline__ void sync() const {
    if (threads == 32) {
      __syncwarp();
    } else {
      named_barrier(id + 1, threads);
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
