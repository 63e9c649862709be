// The two products with weights that are decoded as they are read, each a read of them, for projections that
// are summed in between. Sums in f64.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/decoded/kernel.cuh>
#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class Rows>
struct decoded_product_args {
  Rows rows;
  int experts;
  int ffn;
  int hidden;
  any_matrix vectors[2] = {};  // [N, D], to project; [N, F], to lift
  double* results[2] = {};     // [N, F]; [N, D]
};

/// Eight elements of a row, zeros beyond D.
template <class Columns>
__device__ __forceinline__ void load_eight(const Columns& columns, int row, double (&out)[decoded_columns]) {
  float codes[decoded_columns];
  const shared_numbers shared = columns.decode(columns.fetch(row), codes);
#pragma unroll
  for (int i = 0; i < decoded_columns; ++i) {
    out[i] = double{codes[i]} * shared.scale;
    if constexpr (Columns::has_minimum) out[i] -= shared.minimum;
  }
}

/// results[k] = A vectors[k] for k < count; a warp has a row of A, its lanes share the columns.
template <class Rows, int count>
__global__ void __launch_bounds__(generic_threads)
    decoded_project_kernel(const __grid_constant__ decoded_product_args<Rows> a) {
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  const int warp = static_cast<int>(threadIdx.x) / warp_threads;
  const long long all = static_cast<long long>(a.experts) * a.ffn;
  const long long step = static_cast<long long>(gridDim.x) * generic_warps;
  for (long long row = static_cast<long long>(blockIdx.x) * generic_warps + warp; row < all; row += step) {
    const int e = static_cast<int>(row / a.ffn);
    const auto expert = a.rows.of(e);
    double sum[count] = {};
    for (int column = lane * decoded_columns; column < a.hidden; column += warp_threads * decoded_columns) {
      double x[decoded_columns];
      load_eight(columns_of(expert, column), static_cast<int>(row % a.ffn), x);
      for (int i = 0; i < decoded_columns && column + i < a.hidden; ++i) {
#pragma unroll
        for (int k = 0; k < count; ++k) sum[k] = fma(x[i], a.vectors[k].load(e, column + i), sum[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      sum[k] = add_over_warp(sum[k]);
      if (lane == 0) a.results[k][row] = sum[k];
    }
  }
}

/// results[0] = vectors[0] A; a lane has eight columns, the warps of a block share the rows.
template <class Rows>
__global__ void __launch_bounds__(generic_threads)
    decoded_lift_kernel(const __grid_constant__ decoded_product_args<Rows> a) {
  constexpr int columns_of_a_tile = warp_threads * decoded_columns;
  static_assert(columns_of_a_tile == generic_threads, "a thread adds up a column");
  __shared__ double partial[generic_warps][columns_of_a_tile];
  wait_for_previous_kernel();
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / warp_threads;
  const int own = thread % warp_threads * decoded_columns;
  const int tiles = (a.hidden + columns_of_a_tile - 1) / columns_of_a_tile;
  const long long all = static_cast<long long>(a.experts) * tiles;
  for (long long at = blockIdx.x; at < all; at += gridDim.x) {
    const int e = static_cast<int>(at / tiles);
    const int first = static_cast<int>(at % tiles) * columns_of_a_tile;
    double sum[decoded_columns] = {};
    if (first + own < a.hidden) {
      const auto expert = a.rows.of(e);
      const auto columns = columns_of(expert, first + own);
      for (int f = warp; f < a.ffn; f += generic_warps) {
        double x[decoded_columns];
        load_eight(columns, f, x);
        const double y = a.vectors[0].load(e, f);
#pragma unroll
        for (int i = 0; i < decoded_columns; ++i) sum[i] = fma(x[i], y, sum[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < decoded_columns; ++i) partial[warp][own + i] = sum[i];
    __syncthreads();
    double total = 0.0;
    for (int w = 0; w < generic_warps; ++w) total += partial[w][thread];
    if (first + thread < a.hidden) {
      a.results[0][static_cast<long long>(e) * a.hidden + first + thread] = total;
    }
    __syncthreads();  // the next tile's sums take the place of these
  }
}

/// The products with all gate matrices, as plain_products of the generic path.
template <class Rows>
struct decoded_products {
  const context& ctx;
  const Rows& rows;
  expert_shape shape;

  /// y_k = A r_k for `count` rows of each expert; y_k [N, F].
  template <int count>
  void project(const any_matrix (&of)[count], double* const (&y)[count]) const {
    decoded_product_args<Rows> args = arguments();
    for (int k = 0; k < count; ++k) {
      args.vectors[k] = of[k];
      args.results[k] = y[k];
    }
    const index_t all = (shape.num_experts * shape.ffn_dim + generic_warps - 1) / generic_warps;
    launch("decoded_project_kernel", ctx, grid(all), decoded_project_kernel<Rows, count>, args);
  }
  /// u = y A [N, D].
  void lift(const double* y, double* u) const {
    decoded_product_args<Rows> args = arguments();
    args.vectors[0] = any_matrix(y, shape.ffn_dim);
    args.results[0] = u;
    const index_t tiles = (shape.hidden_dim + generic_threads - 1) / generic_threads;
    launch("decoded_lift_kernel", ctx, grid(shape.num_experts * tiles), decoded_lift_kernel<Rows>, args);
  }

 private:
  [[nodiscard]] decoded_product_args<Rows> arguments() const {
    return {rows, static_cast<int>(shape.num_experts), static_cast<int>(shape.ffn_dim),
            static_cast<int>(shape.hidden_dim)};
  }
  [[nodiscard]] static launch_shape grid(index_t blocks) {
    return {static_cast<unsigned>(blocks < most_blocks ? blocks : most_blocks), generic_threads};
  }
};

MPIROUTER_CUDA_DETAIL_END
