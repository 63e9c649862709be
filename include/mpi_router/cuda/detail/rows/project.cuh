// The two halves of a tile's work, which forward and backward share: its dots with one probe or two, and its
// rows, weighted, added to the image.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// This thread's part of the dots of a tile's rows with each probe: those with the first, then with the
/// second. load(g, v) is vector v of row g.
template <class T, int vectors, int rows, class Load, class... Probes>
__device__ __forceinline__ void take_dots(const Load& load, float (&dots)[sizeof...(Probes) * rows],
                                          const Probes&... probes) {
  constexpr int width = vector_width<T>;
#pragma unroll
  for (int g = 0; g < rows; ++g) {
#pragma unroll
    for (int k = 0; k < static_cast<int>(sizeof...(Probes)); ++k) {
      dots[k * rows + g] = 0.0F;
    }
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      float x[width];
      unpack<T>(load(g, v), x);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        int k = g;
        ((dots[k] = fmaf(x[i], probes[v * width + i], dots[k]), k += rows), ...);
      }
    }
  }
}

/// A tile's dots over the group: what the lane owns, and the bits of the largest.
struct tile_sum {
  float own;
  unsigned most;
};

/// Sums the dots of a tile over the group of a row_sweep, whose next tile is asked for on the way. take(dots)
/// gives this thread's part of them; where they leave the range, rescale(factor) shifts the probes and they
/// are taken once more, unless they do not matter (`dead`).
template <int n, class Sweep, class Take, class Rescale>
__device__ __forceinline__ tile_sum project(Sweep& sweep, row_shift& shift, bool dead, float (&dots)[n],
                                            const Take& take, const Rescale& rescale) {
  shift.begin_tile();
  while (true) {
    take(dots);
    const float own =
        sum_over_group(dots, sweep.group, sweep.scratch, sweep.turn, [&] { sweep.feed_once(); });
    const unsigned most = largest_over_warp(own);
    const float factor = dead ? 0.0F : shift.retry(most);
    if (factor == 0.0F) [[likely]] {
      return {own, most};
    }
    rescale(factor);
  }
}

/// u += Σ_g weight(g) · row g of a tile; sink(g, v, x) is given each vector as it is in registers.
template <class T, int vectors, int rows, class Load, class Weight, class Sink>
__device__ __forceinline__ void lift(const Load& load, float (&u)[vectors * vector_width<T>],
                                     const Weight& weight, const Sink& sink) {
  constexpr int width = vector_width<T>;
#pragma unroll
  for (int g = 0; g < rows; ++g) {
    const float factor = weight(g);
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      float x[width];
      unpack<T>(load(g, v), x);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        u[v * width + i] = fmaf(x[i], factor, u[v * width + i]);
      }
      sink(g, v, x);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
