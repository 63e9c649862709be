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
/// A barrier of all threads of a cluster in two halves, and no fence, which would wait for every copy under
/// way. Once in a kernel before its blocks write to each other's memory: by then all have begun, and
/// published their barriers. And once at its end.
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

__device__ __forceinline__ void send_remote(double* here, int rank, double value, std::uint64_t* arrived) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n\t.reg .u32 a, b;\n\tmapa.shared::cluster.u32 a, %0, %2;\n\tmapa.shared::cluster.u32 b, %1, %2;\n\t"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [a], %3, [b];\n\t}" ::"r"(
          shared_address(here)),
      "r"(shared_address(arrived)), "r"(rank), "l"(__double_as_longlong(value))
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

constexpr int most_cluster = 8;

/// What a block needs in shared memory to sum over its cluster.
struct team_scratch {
  double by_warp[2][2 * most_warps];
  double by_block[2][2 * most_cluster];
  std::uint64_t arrived[2];
  std::uint64_t image_arrived;
  std::uint64_t unused;
  slot_header headers[most_cluster];

  /// One thread calls it before the barriers are published.
  __device__ __forceinline__ void init() {
    barrier_init(arrived, 1);
    barrier_init(arrived + 1, 1);
    barrier_init(&image_arrived, 1);
  }
};

/// Sums n doubles, 1 or 2, over the first `threads` threads of each block of a cluster, in an order that
/// depends on its shape alone; every thread gets the sums. `turn` counts the calls: a block that has all
/// parts of one knows that nobody reads those of the one before any more, so that two places are enough.
template <int n>
__device__ __forceinline__ void sum_over_cluster(double (&v)[n], team_scratch& scratch, int& turn,
                                                 int threads) {
  const int place = turn & 1;
  const unsigned parity = static_cast<unsigned>(turn >> 1) & 1U;
  ++turn;
  sum_over_block(v, scratch.by_warp[place], threads);
  const int blocks = cluster_size();
  if (blocks == 1) {
    return;
  }
  double* const parts = scratch.by_block[place];
  std::uint64_t* const arrived = scratch.arrived + place;
  if (threadIdx.x == 0) {
    barrier_expect(arrived, static_cast<unsigned>(blocks * n) * 8);
  }
  if (static_cast<int>(threadIdx.x) < blocks) {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      send_remote(parts + cluster_rank() * n + i, static_cast<int>(threadIdx.x), v[i], arrived);
    }
  }
  barrier_wait(arrived, parity);
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
