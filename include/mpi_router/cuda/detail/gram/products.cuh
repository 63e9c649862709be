// Products of a matrix and a vector by one block, in double.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>

#include <cstdint>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

constexpr int gram_threads = most_threads;
constexpr int gram_warps = gram_threads / warp_threads;
/// Columns of a row that a warp takes at once, and of these a lane.
constexpr int tile_columns = 256;
constexpr int lane_columns = tile_columns / warp_threads;

/// A matrix by its axes in memory: the inner one has the shorter stride.
template <class T>
struct stored_matrix {
  const T* data = nullptr;
  int outer = 0;
  int inner = 0;
  long long outer_stride = 0;
  long long inner_stride = 1;
  bool is_wide = false;  ///< 16 bytes of a row may be loaded at once
};

/// Elements of T in 16 bytes; 1 of what has no load of its own.
template <class T>
constexpr int wide_load = has_vectors<T> || std::is_same_v<T, double> ? static_cast<int>(16 / sizeof(T)) : 1;

template <class T>
[[nodiscard]] stored_matrix<T> make_stored(const T* data, index_t outer, index_t inner, index_t outer_stride,
                                           index_t inner_stride) {
  const auto apart = static_cast<std::uintptr_t>(outer_stride) * sizeof(T);
  const bool is_aligned = ((reinterpret_cast<std::uintptr_t>(data) | apart) & 15U) == 0;
  return {data,
          static_cast<int>(outer),
          static_cast<int>(inner),
          outer_stride,
          inner_stride,
          is_aligned && inner_stride == 1 && wide_load<T> > 1};
}

/// Which column is number k of a lane, where it loads `width` neighbours at once: those of a warp are
/// contiguous.
template <int width>
[[nodiscard]] __device__ __forceinline__ int column_of(int tile, int lane, int k) {
  return tile * tile_columns + k / width * (warp_threads * width) + lane * width + k % width;
}

template <class T>
__device__ __forceinline__ void load_wide(const T* from, double* out) {
  if constexpr (std::is_same_v<T, double>) {
    const double2 pair = *reinterpret_cast<const double2*>(from);
    out[0] = pair.x;
    out[1] = pair.y;
  } else {
    float values[vector_width<T>];
    unpack<T>(*reinterpret_cast<const uint4*>(from), values);
#pragma unroll
    for (int i = 0; i < vector_width<T>; ++i) {
      out[i] = static_cast<double>(values[i]);
    }
  }
}

/// The columns of a lane; zeros beyond the end of the row.
template <int width, class T>
__device__ __forceinline__ void load_columns(const stored_matrix<T>& m, const T* row, int tile, int lane,
                                             double (&out)[lane_columns]) {
#pragma unroll
  for (int k = 0; k < lane_columns; k += width) {
    const int first = column_of<width>(tile, lane, k);
    if (width > 1 && first + width <= m.inner) {
      if constexpr (width > 1) {
        load_wide(row + first, out + k);
      }
    } else {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        out[k + i] = first + i < m.inner ? to_double(row[(first + i) * m.inner_stride]) : 0.0;
      }
    }
  }
}

/// `in`, and zeros up to a whole tile, in the order in which lanes ask for it.
template <int width, class T>
__device__ __forceinline__ void spread_out(const stored_matrix<T>& m, const double* in, double* spread,
                                           int tiles, int lane, int warp) {
  for (int tile = warp; tile < tiles; tile += gram_warps) {
#pragma unroll
    for (int k = 0; k < lane_columns; ++k) {
      const int i = column_of<width>(tile, lane, k);
      spread[tile * tile_columns + k * warp_threads + lane] = i < m.inner ? in[i] : 0.0;
    }
  }
  __syncthreads();
}

/// out[o] = Σ_i M(o, i) in[i]: a warp takes some rows at once. `spread` has room for `in` and a tile more.
template <int width, class T>
__device__ __forceinline__ void rows_times(const stored_matrix<T>& m, const double* in, double* out,
                                           double* spread) {
  constexpr int at_once = 4;
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads;
  const int tiles = (m.inner + tile_columns - 1) / tile_columns;
  spread_out<width>(m, in, spread, tiles, lane, warp);
  for (int first = warp * at_once; first < m.outer; first += gram_warps * at_once) {
    double sum[at_once] = {};
#pragma unroll(width > 1 ? 2 : 1)
    for (int tile = 0; tile < tiles; ++tile) {
      double a[at_once][lane_columns];
#pragma unroll
      for (int r = 0; r < at_once; ++r) {
        load_columns<width>(m, m.data + min(first + r, m.outer - 1) * m.outer_stride, tile, lane, a[r]);
      }
#pragma unroll
      for (int k = 0; k < lane_columns; ++k) {
        const double x = spread[tile * tile_columns + k * warp_threads + lane];
#pragma unroll
        for (int r = 0; r < at_once; ++r) {
          sum[r] = fma(a[r][k], x, sum[r]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < at_once; ++r) {
      const double total = add_over_warp(sum[r]);
      if (lane == 0 && first + r < m.outer) {
        out[first + r] = total;
      }
    }
  }
  __syncthreads();
}

/// What the warps of a block add up of one tile.
using column_sums = double[lane_columns][gram_warps][warp_threads];

/// out[i] = Σ_o in[o] M(o, i): a warp takes every gram_warps-th row of a tile.
template <int width, class T>
__device__ __forceinline__ void times_rows(const stored_matrix<T>& m, const double* in, double* out,
                                           column_sums& sums) {
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads;
  for (int tile = 0; tile * tile_columns < m.inner; ++tile) {
    double sum[lane_columns] = {};
#pragma unroll(width > 1 ? 4 : 1)
    for (int o = warp; o < m.outer; o += gram_warps) {
      double a[lane_columns];
      load_columns<width>(m, m.data + o * m.outer_stride, tile, lane, a);
      const double y = in[o];
#pragma unroll
      for (int k = 0; k < lane_columns; ++k) {
        sum[k] = fma(a[k], y, sum[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < lane_columns; ++k) {
      sums[k][warp][lane] = sum[k];
    }
    __syncthreads();
    for (int k = warp; k < lane_columns; k += gram_warps) {
      double total = 0.0;
#pragma unroll
      for (int w = 0; w < gram_warps; ++w) {
        total += sums[k][w][lane];
      }
      const int i = column_of<width>(tile, lane, k);
      if (i < m.inner) {
        out[i] = total;
      }
    }
    __syncthreads();
  }
}

// Every thread of the block calls these, all see what was written before, and what is written afterwards.

template <class T>
__device__ void multiply_rows(const stored_matrix<T>& m, const double* in, double* out, double* spread) {
  m.is_wide ? rows_times<wide_load<T>>(m, in, out, spread) : rows_times<1>(m, in, out, spread);
}
template <class T>
__device__ void combine_rows(const stored_matrix<T>& m, const double* in, double* out, column_sums& sums) {
  m.is_wide ? times_rows<wide_load<T>>(m, in, out, sums) : times_rows<1>(m, in, out, sums);
}

MPIROUTER_CUDA_DETAIL_END
