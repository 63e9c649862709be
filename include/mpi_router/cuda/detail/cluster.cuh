// Blocks of a cluster (sm_90) read and write each other's shared memory. A lone block is a cluster of one.
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
/// A barrier of all threads of all blocks that have not ended, in two halves; stores before the first, to any
/// block's memory, are visible after the second. The first waits for every copy under way.
__device__ __forceinline__ void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// The same where nothing that was stored is read afterwards: reads before it are over. Waits for no copies.
__device__ __forceinline__ void cluster_sync_after_reads() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}
/// Stores at the address that `here` has in this block, but in block `rank`.
__device__ __forceinline__ void store_remote(float* here, int rank, float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a;\n\tmapa.shared::cluster.u32 a, %0, %1;\n\tst.shared::cluster.f32 [a], %2;\n\t}" ::
          "r"(shared_address(here)),
      "r"(rank), "f"(value)
      : "memory");
#else
  *here = value;
#endif
}
__device__ __forceinline__ void store_remote(double* here, int rank, double value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a;\n\tmapa.shared::cluster.u32 a, %0, %1;\n\tst.shared::cluster.f64 [a], %2;\n\t}" ::
          "r"(shared_address(here)),
      "r"(rank), "d"(value)
      : "memory");
#else
  *here = value;
#endif
}
__device__ __forceinline__ float4 load_remote(const float4* here, int rank) {
  float4 v;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a;\n\tmapa.shared::cluster.u32 a, %4, %5;\n\t"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a];\n\t}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(here)), "r"(rank)
      : "memory");
#else
  v = *here;
#endif
  return v;
}

/// Stores in block `rank`, and counts 4 bytes on the barrier at the place of `arrived` there. Needs no fence,
/// which would wait for every copy under way.
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

constexpr int most_cluster = 8;

/// Sums n doubles over the first `threads` threads of each block of a cluster, in an order that depends on
/// its shape alone; every thread gets the sums. `scratch` has team_scratch(n) doubles that nothing else uses.
[[nodiscard]] __host__ __device__ constexpr int team_scratch(int n) {
  return n * (most_warps + most_cluster);
}

template <int n>
__device__ __forceinline__ void sum_over_cluster(double (&v)[n], double* scratch, int threads) {
  sum_over_block(v, scratch, threads);
  const int blocks = cluster_size();
  if (blocks == 1) {
    return;
  }
  double* const parts = scratch + n * most_warps;
  if (static_cast<int>(threadIdx.x) < blocks) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      store_remote(parts + cluster_rank() * n + i, static_cast<int>(threadIdx.x), v[i]);
    }
  }
  cluster_sync();
#pragma unroll
  for (int i = 0; i < n; ++i) {
    v[i] = 0.0;
    for (int b = 0; b < blocks; ++b) {
      v[i] += parts[b * n + i];
    }
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
