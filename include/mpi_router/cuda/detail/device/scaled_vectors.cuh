// Vectors without their powers of two, for sums that stay in range.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A row of `from` for each block, its largest number in [1, 2), and the power of two that was taken out of
/// it; zeros from its end up to the pitch. Of doubles, `to` may be where they come from. Of zeros the
/// exponent is 0, as doubles; as floats it is unset, for then nothing need be multiplied.
template <class V>
__global__ void __launch_bounds__(generic_threads)
    scale_kernel(const __grid_constant__ any_matrix from, V* to, int pitch, int* exponents, int extent) {
  __shared__ unsigned most_of_warp[generic_warps];
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  unsigned most = 0;
  for (int i = thread; i < extent; i += generic_threads) {
    most = max(most, high_word(from.load(e, i)));
  }
  most = __reduce_max_sync(0xffffffffU, most);
  if (thread % warp_threads == 0) {
    most_of_warp[thread / warp_threads] = most;
  }
  __syncthreads();
  for (const unsigned of_warp : most_of_warp) {
    most = max(most, of_warp);
  }
  const int exponent = exponent_of_high_word(most);
  for (int i = thread; i < pitch; i += generic_threads) {
    to[static_cast<long long>(e) * pitch + i] =
        i < extent ? static_cast<V>(scale_by(from.load(e, i), -exponent)) : V(0);
  }
  if (thread == 0) {
    exponents[e] = most == 0 && std::is_same_v<V, float> ? exponent_unset : exponent;
  }
}

/// A vector of each expert as scaled_vectors has it.
inline void scale(const context& ctx, const expert_shape& shape, const any_matrix& from, index_t extent,
                  const scaled_vectors& to) {
  launch("scale_kernel", ctx, {static_cast<unsigned>(shape.num_experts), generic_threads},
         scale_kernel<float>, from, to.values, to.pitch, to.exponents, static_cast<int>(extent));
}

MPIROUTER_CUDA_DETAIL_END
