// The blocks of a cluster (sm_90). A lone block is a cluster of one.
#pragma once

#include <mpi_router/core/config.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

__device__ __forceinline__ int cluster_rank() {
  int rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
__device__ __forceinline__ int cluster_size() {
  int size = 1;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}
/// A barrier of all threads of a cluster in two halves, and no fence, which would wait for every bulk copy in
/// flight. Once in a kernel before its blocks write to each other's memory: by then all have begun, and
/// published their barriers.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

MPIROUTER_CUDA_DETAIL_END
