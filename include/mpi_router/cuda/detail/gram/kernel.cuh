// The image of one row under M of one expert, and steps of Lanczos, by one block, in double.
#pragma once

#include <mpi_router/core/lanczos_step.hpp>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/gram/products.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A, and memory for what a block makes of it.
template <class T>
struct gram_args {
  stored_matrix<T> matrix;
  bool by_neurons = true;        // its rows are neurons, else hidden dimensions
  double* projection = nullptr;  // [F]
  double* row = nullptr;         // [D]
  double* image = nullptr;       // [D]
  double* removed = nullptr;     // [D]
  double* spread = nullptr;      // the longer of F and D, and a tile
  double* weights = nullptr;     // one for each vector of a basis
};

template <class T>
[[nodiscard]] __device__ __forceinline__ int ffn_dim_of(const gram_args<T>& a) {
  return a.by_neurons ? a.matrix.outer : a.matrix.inner;
}
template <class T>
[[nodiscard]] __device__ __forceinline__ int dimension_of(const gram_args<T>& a) {
  return a.by_neurons ? a.matrix.inner : a.matrix.outer;
}

struct gram_shared {
  column_sums sums;
  double scratch[most_warps];
};

__device__ __forceinline__ double sum_over_gram_block(double x, gram_shared& shared) {
  double v[1] = {x};
  sum_over_block(v, shared.scratch, gram_threads);
  __syncthreads();  // before the scratch is used again
  return v[0];
}

/// u = xM in double, all threads get xMxᵀ.
template <class T>
__device__ __forceinline__ double gram_image(const gram_args<T>& a, const double* x, double* u,
                                             gram_shared& shared) {
  a.by_neurons ? multiply_rows(a.matrix, x, a.projection, a.spread)
               : combine_rows(a.matrix, x, a.projection, shared.sums);
  double energy = 0.0;
  for (int f = static_cast<int>(threadIdx.x); f < ffn_dim_of(a); f += gram_threads) {
    energy = fma(a.projection[f], a.projection[f], energy);
  }
  energy = sum_over_gram_block(energy, shared);
  a.by_neurons ? combine_rows(a.matrix, a.projection, u, shared.sums)
               : multiply_rows(a.matrix, a.projection, u, a.spread);
  return energy;
}

/// x [D] and result [D + 1], the image and the energy, in memory of the host.
template <class T>
__global__ void __launch_bounds__(gram_threads, 1)
    gram_kernel(const __grid_constant__ gram_args<T> a, const double* x, double* result) {
  __shared__ gram_shared shared;
  wait_for_previous_kernel();
  const int dimension = dimension_of(a);
  for (int d = static_cast<int>(threadIdx.x); d < dimension; d += gram_threads) {
    a.row[d] = x[d];
  }
  __syncthreads();
  const double energy = gram_image(a, a.row, a.image, shared);
  for (int d = static_cast<int>(threadIdx.x); d < dimension; d += gram_threads) {
    result[d] = a.image[d];
  }
  if (threadIdx.x == 0) {
    result[dimension] = energy;
  }
}

/// Steps of Lanczos in a basis of device memory, whose vectors are `stride` elements apart.
struct lanczos_args {
  double* basis = nullptr;
  long long stride = 0;
  int newest = 0;             // the vector that the first step multiplies; all up to it count
  bool has_previous = false;  // the recurrence reaches back to the one before
  int steps = 0;
  double scale = 1;
  double before = 0;        // what the step before left
  double* found = nullptr;  // [steps, 2]: along, left; memory of the host
};

[[nodiscard]] __device__ __forceinline__ stored_matrix<double> vectors_of(const double* basis,
                                                                          long long stride, int count,
                                                                          int dimension) {
  return {basis, count, dimension, stride, 1, stride % 2 == 0};
}

/// u −= Σ ⟨q, u⟩ q over the rows of q. All threads get the norm of what is left.
template <class T>
__device__ double make_orthogonal(const gram_args<T>& a, const stored_matrix<double>& q,
                                  gram_shared& shared) {
  multiply_rows(q, a.image, a.weights, a.spread);
  combine_rows(q, a.weights, a.removed, shared.sums);
  double square = 0.0;
  for (int d = static_cast<int>(threadIdx.x); d < q.inner; d += gram_threads) {
    const double left = a.image[d] - a.removed[d];
    a.image[d] = left;
    square = fma(left, left, square);
  }
  return sqrt(sum_over_gram_block(square, shared));
}

/// The image of the newest vector in units of the scale, less what the recurrence knows of it. All threads
/// get what of it is along that vector, and the norm of the rest.
template <class T>
__device__ double2 recur(const gram_args<T>& a, const lanczos_args& l, int newest, bool has_previous,
                         double before, gram_shared& shared) {
  const double* const q = l.basis + newest * l.stride;
  const double along = gram_image(a, q, a.image, shared) / l.scale;
  double square = 0.0;
  for (int d = static_cast<int>(threadIdx.x); d < dimension_of(a); d += gram_threads) {
    double left = a.image[d] / l.scale - along * q[d];
    if (has_previous) {
      left -= before * q[d - l.stride];
    }
    a.image[d] = left;
    square = fma(left, left, square);
  }
  return make_double2(along, sqrt(sum_over_gram_block(square, shared)));
}

/// What is left of the image beside the first `count` vectors: as krylov_basis does it on the host.
template <class T>
__device__ double append(const gram_args<T>& a, const lanczos_args& l, int count, double before,
                         gram_shared& shared) {
  const int dimension = dimension_of(a);
  const auto known = vectors_of(l.basis, l.stride, count, dimension);
  double norm = make_orthogonal(a, known, shared);
  if (norm < core::little_left * before) {
    const double once = norm;
    norm = make_orthogonal(a, known, shared);
    if (norm < core::only_rounding * once) {
      return 0.0;
    }
  }
  if (!isfinite(norm)) {
    return nan("");
  }
  constexpr double epsilon = 0x1p-52;
  if (norm <= epsilon * dimension * fmax(before, 1.0) || count >= dimension) {
    return 0.0;
  }
  double* const next = l.basis + count * l.stride;
  for (int d = static_cast<int>(threadIdx.x); d < dimension; d += gram_threads) {
    next[d] = a.image[d] / norm;
  }
  __syncthreads();
  return norm;
}

/// Ends early where nothing is left.
template <class T>
__global__ void __launch_bounds__(gram_threads, 1)
    lanczos_kernel(const __grid_constant__ gram_args<T> a, const __grid_constant__ lanczos_args l) {
  __shared__ gram_shared shared;
  wait_for_previous_kernel();
  double left = l.before;
  for (int step = 0; step < l.steps; ++step) {
    const int newest = l.newest + step;
    const double2 found = recur(a, l, newest, l.has_previous || step > 0, left, shared);
    left = append(a, l, newest + 1, found.y, shared);
    if (threadIdx.x == 0) {
      l.found[2 * step] = found.x;
      l.found[2 * step + 1] = left;
    }
    if (!(left > 0.0)) {
      return;
    }
  }
}

/// result = Σ_k y_k q_k over the rows of q; y and result in memory of the host, the rest on the device.
template <class = void>
__global__ void __launch_bounds__(gram_threads, 1)
    combine_kernel(const __grid_constant__ stored_matrix<double> q, const double* y, double* weights,
                   double* sum, double* result) {
  __shared__ gram_shared shared;
  wait_for_previous_kernel();
  for (int k = static_cast<int>(threadIdx.x); k < q.outer; k += gram_threads) {
    weights[k] = y[k];
  }
  __syncthreads();
  combine_rows(q, weights, sum, shared.sums);
  for (int d = static_cast<int>(threadIdx.x); d < q.inner; d += gram_threads) {
    result[d] = sum[d];
  }
}

MPIROUTER_CUDA_DETAIL_END
