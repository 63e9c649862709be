// A block counts the loads of its tokens.
#pragma once

#include <mpi_router/cuda/detail/gate/arguments.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A block counts its experts' loads in shared memory first: `load` has N numbers, where they are wanted.
__device__ __forceinline__ void clear_loads(const gate_args& a, unsigned* load) {
  if (a.load != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      load[i] = 0;
    }
    __syncthreads();
  }
}
__device__ __forceinline__ void add_loads(const gate_args& a, const unsigned* load) {
  if (a.load != nullptr) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < a.num_experts; i += static_cast<int>(blockDim.x)) {
      if (load[i] != 0) {
        atomicAdd(a.load + i, static_cast<int>(load[i]));  // whole numbers: the same in any order
      }
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
