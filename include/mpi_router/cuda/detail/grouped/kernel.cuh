// The last two rows of each expert in the operands of a grouped product: swapped for the factors of the
// router's gradient, and put back.
#pragma once

#include <mpi_router/core/scalar.hpp>
#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Rows of one operand, those that they are swapped for, and where they are kept meanwhile.
struct swapped_rows {
  any_matrix operand;   // [T, K]
  any_matrix first;     // [N, K]: of the last row but one of each expert; without data: put back
  any_matrix second;    // [N, K]: of the last
  any_matrix kept;      // [2 N, K]
  int columns;          // K
  bool finite = false;  // zeros in place of what is not finite in `second`
};

struct grouped_args {
  swapped_rows sides[2];  // gradients [T, F], tokens [T, D]
  const std::int32_t* offsets;
  int experts;
  int tokens;
};

/// Where an expert ends, for all threads of a block.
struct padding_places {
  bool well;   // every expert has two rows of its own, and the last ends with the tokens
  int end;     // of the expert, T at the most
  bool alone;  // no expert before it ends there as well

  __device__ __forceinline__ padding_places(const grouped_args& a, int expert)
      : end(min(a.offsets[expert], a.tokens)) {
    bool wrong = a.offsets[a.experts - 1] != a.tokens;
    bool twice = false;
    for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += static_cast<int>(blockDim.x)) {
      const long long begin = e == 0 ? 0 : a.offsets[e - 1];
      wrong = wrong || a.offsets[e] - begin < 2;
      twice = twice || (e < expert && min(a.offsets[e], a.tokens) == end);
    }
    well = __syncthreads_or(wrong) == 0;
    alone = __syncthreads_or(twice) == 0;
  }
};

/// One block for each of the last two rows of each expert, in x, and each operand, in y. Where experts have
/// no room, nothing but NaN goes in, into the last row of each one's gradients: of several that end there the
/// first writes it.
template <class = void>
__global__ void __launch_bounds__(most_threads) swap_padding_kernel(const __grid_constant__ grouped_args a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const swapped_rows& side = a.sides[blockIdx.y];
  const int expert = static_cast<int>(blockIdx.x) / 2;
  const bool is_last = blockIdx.x % 2 != 0;
  const padding_places places(a, expert);
  const int row = places.end - (is_last ? 1 : 2);
  const bool nans = !places.well;
  if (nans && (!is_last || blockIdx.y != 0 || !places.alone || places.end < 1)) {
    return;
  }
  const any_matrix& other = is_last ? side.second : side.first;
  const int place = static_cast<int>(blockIdx.x);
  for (int column = static_cast<int>(threadIdx.x) * 4; column < side.columns;
       column += static_cast<int>(blockDim.x) * 4) {
    double x[4];
    if (other.data == nullptr) {
      side.kept.load_four(place, column, side.columns, x);
    } else {
      double own[4];
      side.operand.load_four(row, column, side.columns, own);
      other.load_four(expert, column, side.columns, x);  // under way with that
      side.kept.store_four(place, column, side.columns, own);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = nans ? nan("") : side.finite && is_last && !isfinite(x[i]) ? 0.0 : x[i];
      }
    }
    side.operand.store_four(row, column, side.columns, x);
  }
}

MPIROUTER_CUDA_DETAIL_END
