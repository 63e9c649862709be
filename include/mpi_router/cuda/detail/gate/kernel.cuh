// Any gate: a warp for each token.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/gate/loads.cuh>
#include <mpi_router/cuda/detail/gate/token.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A token with all that is told of it.
template <int kept>
__device__ __forceinline__ void take_token(const gate_args& a, long long token, unsigned* scratch,
                                           unsigned* load) {
  const status state = gate_token<kept>(a, token, scratch);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (a.statuses != nullptr && lane == 0) {
    a.statuses[token] = state;
  }
  if (a.load != nullptr && (state == status::ok || state == status::closed_expert)) {
    for (int k = lane; k < a.top_k; k += 32) {
      atomicAdd(load + a.experts[token * a.top_k + k], 1U);
    }
  }
}

/// A warp takes every so many tokens.
template <int kept>
__global__ void __launch_bounds__(gate_warps* warp_threads, gate_kernel_blocks(kept))
    gate_kernel(const __grid_constant__ gate_args a, int scratch_per_warp) {
  extern __shared__ unsigned memory[];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  unsigned* const load = memory + warps * scratch_per_warp;
  clear_loads(a, load);
  for (long long token = static_cast<long long>(blockIdx.x) * warps + warp; token < a.tokens;
       token += static_cast<long long>(gridDim.x) * warps) {
    take_token<kept>(a, token, memory + warp * scratch_per_warp, load);
  }
  add_loads(a, load);
}

MPIROUTER_CUDA_DETAIL_END
