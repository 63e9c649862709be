// Blocks of a cluster (sm_90) write to each other's shared memory. A lone block is a cluster of one.
#pragma once

#include <mpi_router/cuda/detail/reduce.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

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
/// A barrier of all threads of a cluster in two halves, and no fence, which would wait for every copy under
/// way. Once in a kernel before its blocks write to each other's memory: by then all have begun, and
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

/// Stores in block `rank`, and counts the bytes on the barrier at the place of `arrived` there. Needs no
/// fence, which would wait for every copy under way.
__device__ __forceinline__ void send_remote(float* here, int rank, float value, std::uint64_t* arrived) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a, b;\n\tmapa.shared::cluster.u32 a, %0, %2;\n\tmapa.shared::cluster.u32 b, %1, %2;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [a], %3, [b];\n\t}" ::"r"(
          shared_address(here)),
      "r"(shared_address(arrived)), "r"(rank), "r"(__float_as_uint(value))
      : "memory");
#else
  *here = value;
#endif
}
__device__ __forceinline__ void send_remote(uint4* here, int rank, const uint4& value,
                                            std::uint64_t* arrived) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a, b;\n\tmapa.shared::cluster.u32 a, %0, %2;\n\tmapa.shared::cluster.u32 b, %1, %2;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [a], {%3, %4, %5, %6}, [b];\n\t}" ::
          "r"(shared_address(here)),
      "r"(shared_address(arrived)), "r"(rank), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
      : "memory");
#else
  *here = value;
#endif
}

}  // namespace detail
MPIROUTER_CUDA_END
