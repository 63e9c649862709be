// The generic path: any strides, any alignment, any size, f64 storage. Sums in f64, the weights read twice.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T>
struct contract_args {
  batch<const T> weights;
  long long out_stride = 0;  // of the weights, along the axis that stays
  long long sum_stride = 0;  // and along the axis that is summed over
  int out_extent = 0;
  int sum_extent = 0;
  any_matrix vectors[2];    // [N, sum_extent]
  double* results[2] = {};  // [N, out_extent]
};

/// sum[k] += Σ_j A_e(i, j) vectors[k][e, j] for j = first, first + step, …
template <class T, int count>
__device__ __forceinline__ void add_products(const contract_args<T>& a, int e, int i, int first, int step,
                                             double (&sum)[count]) {
  const T* const base = a.weights.of(e);
  for (int j = first; j < a.sum_extent; j += step) {
    const double x = to_double(base[i * a.out_stride + j * a.sum_stride]);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      sum[k] = fma(x, a.vectors[k].load(e, j), sum[k]);
    }
  }
}

/// The lanes of a warp share sum i.
template <class T, int count>
__device__ __forceinline__ void contract_over_lanes(const contract_args<T>& a, int e, int i, int lane) {
  if (i >= a.out_extent) {
    return;
  }
  double sum[count] = {};
  add_products(a, e, i, lane, 32, sum);
#pragma unroll
  for (int k = 0; k < count; ++k) {
    for (int mask = 16; mask >= 1; mask /= 2) {
      sum[k] += __shfl_xor_sync(0xffffffffU, sum[k], mask);
    }
    if (lane == 0) {
      a.results[k][static_cast<long long>(e) * a.out_extent + i] = sum[k];
    }
  }
}
/// The warps of the block share sum i of a lane.
template <class T, int count>
__device__ __forceinline__ void contract_over_warps(const contract_args<T>& a, int e, int i, int lane,
                                                    int warp) {
  __shared__ double partial[generic_warps][warp_threads][count];
  double sum[count] = {};
  if (i < a.out_extent) {
    add_products(a, e, i, warp, generic_warps, sum);
  }
#pragma unroll
  for (int k = 0; k < count; ++k) {
    partial[warp][lane][k] = sum[k];
  }
  __syncthreads();
  if (warp < count && i < a.out_extent) {
    double total = 0.0;
    for (int w = 0; w < generic_warps; ++w) {
      total += partial[w][lane][warp];
    }
    a.results[warp][static_cast<long long>(e) * a.out_extent + i] = total;
  }
}

/// results[k][e, i] = Σ_j A_e(i, j) vectors[k][e, j] for k < count. `lanes_sum`: the lanes of a warp share
/// one sum (right where the summed axis is the contiguous one); otherwise each lane has a sum of its own and
/// the warps of the block share it. Every sum is taken in an order that depends on the shape alone.
template <class T, int count, bool lanes_sum>
__global__ void __launch_bounds__(generic_threads)
    contract_kernel(const __grid_constant__ contract_args<T> a) {
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int e = static_cast<int>(blockIdx.y);
  if constexpr (lanes_sum) {
    contract_over_lanes<T, count>(a, e, static_cast<int>(blockIdx.x) * generic_warps + warp, lane);
  } else {
    contract_over_warps<T, count>(a, e, static_cast<int>(blockIdx.x) * 32 + lane, lane, warp);
  }
}

/// energies[e] = ‖y_e‖².
template <class = void>
__global__ void __launch_bounds__(generic_threads)
    square_kernel(const double* y, int extent, double* energies) {
  __shared__ double scratch[32];
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  double sum[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < extent; i += generic_threads) {
    const double v = y[static_cast<long long>(e) * extent + i];
    sum[0] = fma(v, v, sum[0]);
  }
  sum_over_block(sum, scratch, generic_threads);
  if (threadIdx.x == 0) {
    energies[e] = sum[0];
  }
}

MPIROUTER_CUDA_DETAIL_END
