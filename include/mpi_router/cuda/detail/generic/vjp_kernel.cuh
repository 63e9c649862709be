// The kernels of the backward on the generic path. Sums in f64.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// z̄ of each expert in f64, zero where there was no step. `image`: z itself in f64, if the saved direction is
/// too short.
template <class = void>
__global__ void __launch_bounds__(generic_threads)
    dual_kernel(const __grid_constant__ dual_source from, const double* image, int hidden, double* dual) {
  __shared__ double scratch[2 * most_warps];
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const long long row = static_cast<long long>(e) * hidden;
  const auto direction = [&](int d) { return image != nullptr ? image[row + d] : from.direction.load(e, d); };
  double sums[2] = {0.0, 0.0};
  for (int d = static_cast<int>(threadIdx.x); d < hidden; d += generic_threads) {
    sums[0] = fma(direction(d), direction(d), sums[0]);
    sums[1] = fma(direction(d), from.grad_rows.load(e, d), sums[1]);
  }
  sum_over_block(sums, scratch, generic_threads);
  const bool dead = from.saved.statuses != nullptr && from.saved.statuses[e] != status::ok;
  // A norm that no double holds has no gradient that could be told: NaN, not zero.
  const double norm = from.saved.image_norm[e];
  const double gain = norm > 0.0 && !isinf(norm) ? from.radius / norm : nan("");
  for (int d = static_cast<int>(threadIdx.x); d < hidden; d += generic_threads) {
    dual[row + d] = dead ? 0.0 : gain * (from.grad_rows.load(e, d) - direction(d) * (sums[1] / sums[0]));
  }
}

template <class G>
struct outer_args {
  batch<G> gradient;
  any_matrix rows;
  const double* y;     // [N, F]
  const double* w;     // [N, F]
  const double* dual;  // [N, D], rows `dual_pitch` apart
  const status* statuses;
  int ffn;
  int hidden;
  int dual_pitch;
};

/// Ā = y z̄ᵀ + w rᵀ, element by element; threads run along the contiguous axis.
template <class G, bool add>
__global__ void __launch_bounds__(generic_threads) outer_kernel(const __grid_constant__ outer_args<G> a) {
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  G* const base = a.gradient.of(e);
  const bool along_hidden = llabs(a.gradient.hidden) <= llabs(a.gradient.ffn);
  const int inner = along_hidden ? a.hidden : a.ffn;
  const int outer = along_hidden ? a.ffn : a.hidden;
  for (int i = static_cast<int>(blockIdx.y); i < outer; i += static_cast<int>(gridDim.y)) {
    for (int j = static_cast<int>(threadIdx.x); j < inner; j += generic_threads) {
      const int f = along_hidden ? i : j;
      const int d = along_hidden ? j : i;
      G& at = base[f * a.gradient.ffn + d * a.gradient.hidden];
      const long long row = static_cast<long long>(e) * a.ffn + f;
      const double value = dead ? 0.0
                                : a.y[row] * a.dual[static_cast<long long>(e) * a.dual_pitch + d] +
                                      a.w[row] * a.rows.load(e, d);
      if (!add) {
        at = from_double<G>(value);
      } else if (!dead) {
        at = from_double<G>(to_double(at) + value);
      }
    }
  }
}

template <class = void>
__global__ void __launch_bounds__(generic_threads)
    narrow_kernel(const double* from, int pitch, float* to, const status* statuses, int extent) {
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  const bool dead = statuses != nullptr && statuses[e] != status::ok;
  for (int i = static_cast<int>(blockIdx.y * generic_threads + threadIdx.x); i < extent;
       i += static_cast<int>(gridDim.y) * generic_threads) {
    const double x = from[static_cast<long long>(e) * pitch + i];
    to[static_cast<long long>(e) * extent + i] = dead ? 0.0F : static_cast<float>(x);
  }
}

MPIROUTER_CUDA_DETAIL_END
