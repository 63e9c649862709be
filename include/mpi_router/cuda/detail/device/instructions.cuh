// PTX instructions without a C++ equivalent: asynchronous copies, their barriers, dependent launches.
#pragma once

#include <mpi_router/core/config.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Before a kernel's first access to memory that a preceding kernel may write, or its first write: what the
/// preceding kernels in the stream wrote is visible from here on. Returns at once where it has been called
/// before.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel in the stream may take up free multiprocessors now (and waits as it must).
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// x, in a register. Otherwise the compiler may take what comes from a kernel's arguments for free, and load
/// it again and again in a loop that then waits for it.
__device__ __forceinline__ int in_register(int x) {
  asm("" : "+r"(x));
  return x;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

/// 16 bytes of shared memory if they are `present`, else zeros; without a branch.
__device__ __forceinline__ uint4 load_shared_or_zero(const void* from, bool present) {
  uint4 x;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "setp.ne.u32 p, %5, 0;\n\t"
      "mov.b32 %0, 0;\n\tmov.b32 %1, 0;\n\tmov.b32 %2, 0;\n\tmov.b32 %3, 0;\n\t"
      "@p ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n\t}"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "r"(shared_address(from)), "r"(static_cast<unsigned>(present))
      : "memory");
  return x;
}

// --- sm_80: each thread copies 16 bytes and waits for its own copies

/// Copies 16 bytes, or zeros if not `present`. `line` bytes around them, 128 or 256, are fetched into
/// L2.
template <int line = 128>
__device__ __forceinline__ void copy_async_16(void* to_shared, const void* from, bool present = true) {
  const int bytes = present ? 16 : 0;
  if constexpr (line == 256) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                 "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
                 "l"(from), "r"(bytes)
                 : "memory");
  }
}
/// The same to an address in shared memory.
__device__ __forceinline__ void copy_async_16(int to_shared, const void* from, bool present) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to_shared), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}
/// Copies 16 bytes by words, of which `bytes` are there; the others become zeros.
__device__ __forceinline__ void copy_async_words(void* to_shared, const void* from, int bytes) {
#pragma unroll
  for (int at = 0; at < 16; at += 4) {
    const int present = min(4, max(0, bytes - at));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to_shared) + at),
                 "l"(static_cast<const char*>(from) + (present > 0 ? at : 0)), "r"(present)
                 : "memory");
  }
}
__device__ __forceinline__ void close_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ __forceinline__ void wait_for_copy_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}
/// The same of a number up to 6 that is a constant where loops are unrolled.
__device__ __forceinline__ void wait_for_few_copy_groups(int pending) {
  switch (pending) {
    case 6: return wait_for_copy_groups<6>();
    case 5: return wait_for_copy_groups<5>();
    case 4: return wait_for_copy_groups<4>();
    case 3: return wait_for_copy_groups<3>();
    case 2: return wait_for_copy_groups<2>();
    case 1: return wait_for_copy_groups<1>();
    default: return wait_for_copy_groups<0>();
  }
}

// --- sm_90: one thread copies a whole tile, an mbarrier counts its bytes

__device__ __forceinline__ void barrier_init(std::uint64_t* barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}
/// Makes initialised barriers visible to the TMA; a block barrier must follow.
__device__ __forceinline__ void publish_barriers() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
/// This thread's ordinary stores to shared memory come before bulk copies, once a barrier has passed.
__device__ __forceinline__ void order_before_tma() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void barrier_expect(std::uint64_t* barrier, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
/// Who writes what a barrier counts: bulk copies or threads of this block, or other blocks of the
/// cluster.
enum class writers { block, cluster };

/// Waits for a phase of the barrier. What `from` wrote is visible from here on: a wait acquires for one block
/// unless it says otherwise, which is too little for what comes from others.
template <writers from = writers::block>
__device__ __forceinline__ void barrier_wait(std::uint64_t* barrier, unsigned parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const std::uint32_t address = shared_address(barrier);
  unsigned done = 0;
  while (done == 0) {
    if constexpr (from == writers::cluster) {
      asm volatile(
          "{\n\t.reg .pred p;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, p;\n\t}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
    } else {
      asm volatile(
          "{\n\t.reg .pred p;\n\t"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, p;\n\t}"
          : "=r"(done)
          : "r"(address), "r"(parity)
          : "memory");
    }
  }
#endif
}
/// Copies `bytes` (a multiple of 16, both ends aligned to 16) and counts them on `barrier`.
__device__ __forceinline__ void copy_bulk(void* to_shared, const void* from, unsigned bytes,
                                          std::uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to_shared)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}

/// Stores in block `rank`, and counts the bytes on the barrier at the place of `arrived` there. Needs no
/// fence, which would wait for every bulk copy in flight.
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

MPIROUTER_CUDA_DETAIL_END
