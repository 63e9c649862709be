// How even the loads of the experts are.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// MaxVio and the entropy of N counts, by one block.
template <class = void>
__global__ void __launch_bounds__(balance_threads)
    balance_kernel(const int* load, int n, double* max_violation, double* entropy) {
  __shared__ double scratch[most_warps];
  __shared__ int most[balance_threads / warp_threads];
  wait_for_previous_kernel();
  double total[1] = {0.0};
  int largest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += balance_threads) {
    total[0] += load[i];
    largest = max(largest, load[i]);
  }
  sum_over_block(total, scratch, balance_threads);
  largest = __reduce_max_sync(0xffffffffU, largest);
  if (threadIdx.x % 32 == 0) {
    most[threadIdx.x / 32] = largest;
  }
  __syncthreads();
  for (const int m : most) {
    largest = max(largest, m);
  }
  double bits[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < n; i += balance_threads) {
    const double p = load[i] / total[0];
    bits[0] -= load[i] > 0 ? p * log(p) : 0.0;
  }
  sum_over_block(bits, scratch, balance_threads);
  if (threadIdx.x == 0) {
    if (max_violation != nullptr) {
      *max_violation = total[0] > 0.0 ? largest / (total[0] / n) - 1.0 : 0.0;
    }
    if (entropy != nullptr) {
      *entropy = bits[0];
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
