// The products of the gate matrices with vectors where one read of the weights cannot do both: too many
// columns for the registers or the shared memory of a block. Weights with a contiguous axis are read 16 bytes
// at a time, along it, once for each product. Sums in f32 of vectors that are scaled; one whose sums leave
// the range of its weights is taken again in f64.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/generic/kernel.cuh>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Gate matrices by their axes in memory: `rows`, `stride` apart, of `columns` side by side.
template <class T>
struct product_args {
  batch<const T> weights;
  long long stride = 0;
  int rows = 0;
  int columns = 0;
  scaled_vectors vectors[2];
  double* results[2] = {};
  int first_expert = 0;
};

/// Whether sums of weights and vectors below 2 may have lost what is too small for a float, or too large.
[[nodiscard]] __device__ __forceinline__ bool is_too_large(float sum) {
  return magnitude_bits(sum) >= static_cast<unsigned>(127 + projection_range) << 23;
}
[[nodiscard]] __device__ __forceinline__ bool is_too_small(float sum) {
  return magnitude_bits(sum) < static_cast<unsigned>(127 - projection_range) << 23;
}

template <class T>
__device__ __noinline__ uint4 gather_rarely(const T* from, int count) {
  return gather_vector(from, count);
}
/// 16 bytes of a row from `column` on, zeros beyond its end.
template <class T>
[[nodiscard]] __device__ __forceinline__ uint4 load_vector(const T* row, int column, int columns,
                                                           bool aligned) {
  if (aligned && column + vector_width<T> <= columns) [[likely]] {
    return *reinterpret_cast<const uint4*>(row + column);
  }
  return column < columns ? gather_rarely(row + column, min(vector_width<T>, columns - column))
                          : make_uint4(0, 0, 0, 0);
}
template <int width>
__device__ __forceinline__ void load_floats(const float* from, float (&out)[width]) {
#pragma unroll
  for (int i = 0; i < width; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + i);
    out[i] = four.x;
    out[i + 1] = four.y;
    out[i + 2] = four.z;
    out[i + 3] = four.w;
  }
}

template <class T>
__device__ __noinline__ double dot_rarely(const T* row, const float* vector, int columns) {
  double sum = 0.0;
  for (int i = static_cast<int>(threadIdx.x) % warp_threads; i < columns; i += warp_threads) {
    sum = fma(to_double(row[i]), static_cast<double>(vector[i]), sum);
  }
  return add_over_warp(sum);
}

/// results[k][e, row] = ⟨row of A_e, vectors[k][e]⟩: a warp takes some rows at once.
template <class T, int count>
__global__ void __launch_bounds__(generic_threads)
    row_dots_kernel(const __grid_constant__ product_args<T> a) {
  constexpr int width = vector_width<T>;
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  const int warp =
      static_cast<int>(blockIdx.x) * generic_warps + static_cast<int>(threadIdx.x) / warp_threads;
  const int first = warp * dots_at_once;
  const int e = a.first_expert + static_cast<int>(blockIdx.y);
  const T* const base = a.weights.of(e);
  const bool aligned = aligned_to_16(base, a.stride * static_cast<long long>(sizeof(T)), 0);
  const auto row = [&](int r) { return base + min(first + r, a.rows - 1) * a.stride; };
  const float* vectors[count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    vectors[k] = a.vectors[k].values + static_cast<long long>(e) * a.vectors[k].pitch;
  }
  float sum[count][dots_at_once] = {};
#pragma unroll 2
  for (int column = lane * width; column < a.columns; column += warp_threads * width) {
    uint4 stored[dots_at_once];
#pragma unroll
    for (int r = 0; r < dots_at_once; ++r) {
      stored[r] = load_vector(row(r), column, a.columns, aligned);
    }
    float v[count][width];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      load_floats(vectors[k] + column, v[k]);
    }
#pragma unroll
    for (int r = 0; r < dots_at_once; ++r) {
      float x[width];
      unpack<T>(stored[r], x);
#pragma unroll
      for (int i = 0; i < width; ++i) {
#pragma unroll
        for (int k = 0; k < count; ++k) {
          sum[k][r] = fmaf(x[i], v[k][i], sum[k][r]);
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < count; ++k) {
    add_over_warp<dots_at_once, 16, 1>(sum[k]);
    const int exponent = a.vectors[k].exponents[e];
#pragma unroll
    for (int r = 0; r < dots_at_once; ++r) {
      double total = sum[k][r];
      if (exponent != exponent_unset && (is_too_large(sum[k][r]) || is_too_small(sum[k][r]))) [[unlikely]] {
        total = dot_rarely(row(r), vectors[k], a.columns);
      }
      if (lane == 0 && first + r < a.rows) {
        a.results[k][static_cast<long long>(e) * a.rows + first + r] = total * wide_power_of_two(exponent);
      }
    }
  }
}

template <class T>
__device__ __noinline__ double column_rarely(const T* base, long long stride, int rows,
                                             const float* weights) {
  double sum = 0.0;
  for (int r = 0; r < rows; ++r) {
    sum = fma(to_double(base[r * stride]), static_cast<double>(weights[r]), sum);
  }
  return sum;
}

/// results[k][e, column] = Σ_row vectors[k][e, row] A_e(row, column): a block has some columns of all rows.
template <class T, int count>
__global__ void __launch_bounds__(generic_threads)
    row_sums_kernel(const __grid_constant__ product_args<T> a) {
  constexpr int width = vector_width<T>;
  constexpr int columns = sums_lanes * width;  // of a block
  constexpr int groups = generic_threads / sums_lanes;
  __shared__ float sums[groups][columns];
  wait_for_previous_kernel();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % sums_lanes;
  const int first = static_cast<int>(blockIdx.x) * columns;
  const int e = a.first_expert + static_cast<int>(blockIdx.y);
  const T* const base = a.weights.of(e);
  const bool aligned = aligned_to_16(base, a.stride * static_cast<long long>(sizeof(T)), 0);
  const float* vectors[count];
#pragma unroll
  for (int k = 0; k < count; ++k) {
    vectors[k] = a.vectors[k].values + static_cast<long long>(e) * a.vectors[k].pitch;
  }
  float sum[count][width] = {};
#pragma unroll 4
  for (int r = thread / sums_lanes; r < a.rows; r += groups) {
    float x[width];
    unpack<T>(load_vector(base + r * a.stride, first + lane * width, a.columns, aligned), x);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const float weight = vectors[k][r];
#pragma unroll
      for (int i = 0; i < width; ++i) {
        sum[k][i] = fmaf(x[i], weight, sum[k][i]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < count; ++k) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      sums[thread / sums_lanes][lane * width + i] = sum[k][i];
    }
    __syncthreads();
    const bool has_one = thread < columns && first + thread < a.columns;
    float all = 0.0F;
    for (int g = 0; has_one && g < groups; ++g) {
      all += sums[g][thread];
    }
    // The largest of a block's sums says how large the others may be that matter.
    const bool too_large = __syncthreads_or(is_too_large(all)) != 0;
    const bool too_small = __syncthreads_or(!is_too_small(all)) == 0;
    const int exponent = a.vectors[k].exponents[e];
    double total = all;
    if (has_one) {
      if (exponent != exponent_unset && (too_large || too_small)) [[unlikely]] {
        total = column_rarely(base + first + thread, a.stride, a.rows, vectors[k]);
      }
      a.results[k][static_cast<long long>(e) * a.columns + first + thread] =
          total * wide_power_of_two(exponent);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
