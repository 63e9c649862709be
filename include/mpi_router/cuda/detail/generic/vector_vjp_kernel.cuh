// The gradient to weights whose products were taken apart from it: Ā = y z̄ᵀ + w rᵀ, 16 bytes at a time.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/gradient.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/generic/vector_kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The gradient by its axes in memory, as product_args.
template <class G>
struct vector_outer_args {
  batch<G> gradient;
  long long stride = 0;
  int rows = 0;
  int columns = 0;
  int row_threads = 0;  // that share a row, a power of two
  /// Element (row, column) is Σ_k by_row[k] · by_column[k].
  scaled_vectors by_row[2];
  scaled_vectors by_column[2];
  const status* statuses = nullptr;
  int first_expert = 0;
};

/// A block writes some rows of a tile of columns, each thread 16 bytes of every so many rows.
template <class G, bool add>
__global__ void __launch_bounds__(generic_threads)
    vector_outer_kernel(const __grid_constant__ vector_outer_args<G> a) {
  constexpr int width = vector_width<G>;
  wait_for_previous_kernel();
  const int thread = static_cast<int>(threadIdx.x);
  const int tile_columns = a.row_threads * width;
  const int tiles = (a.columns + tile_columns - 1) / tile_columns;
  const int tile = static_cast<int>(blockIdx.x) % tiles;
  const int column = tile * tile_columns + thread % a.row_threads * width;
  const int e = a.first_expert + static_cast<int>(blockIdx.y);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  if (column >= a.columns || (add && dead)) {
    return;
  }
  G* const base = a.gradient.of(e);
  const bool aligned = aligned_to_16(base, a.stride * static_cast<long long>(sizeof(G)),
                                     a.columns * static_cast<long long>(sizeof(G)));
  const auto of_expert = [e](const scaled_vectors& v) {
    return v.values + static_cast<long long>(e) * v.pitch;
  };
  const int exponents[2] = {a.by_row[0].exponents[e] + a.by_column[0].exponents[e],
                            a.by_row[1].exponents[e] + a.by_column[1].exponents[e]};
  const int exponent = max(exponents[0], exponents[1]);
  float across[2][width];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    load_floats(of_expert(a.by_column[k]) + column, across[k]);
    multiply(across[k], power_of_two(exponents[k] - exponent));
  }
  const float* const down[2] = {of_expert(a.by_row[0]), of_expert(a.by_row[1])};
  const int groups = generic_threads / a.row_threads;
  const int first = static_cast<int>(blockIdx.x) / tiles * outer_rows;
  for (int r = first + thread / a.row_threads; r < min(first + outer_rows, a.rows); r += groups) {
    float x[width];
#pragma unroll
    for (int i = 0; i < width; ++i) {
      x[i] = dead ? 0.0F : scale_by(fmaf(down[0][r], across[0][i], down[1][r] * across[1][i]), exponent);
    }
    G* const to = base + r * a.stride + column;
    write_gradient<G, width, add>(to, aligned, a.columns - column, to, x);
  }
}

MPIROUTER_CUDA_DETAIL_END
