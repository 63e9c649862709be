// The plain path: any strides, any alignment, any size, f64 storage. Sums in f64, the weights read twice.
#pragma once

#include <mpi_router/cuda/detail/reduce.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

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

/// results[k][e, i] = Σ_j A_e(i, j) vectors[k][e, j] for k < count. `lanes_sum`: the lanes of a warp share
/// one sum (right where the summed axis is the contiguous one); otherwise each lane has a sum of its own and
/// the warps of the block share it. Every sum is taken in an order that depends on the shape alone.
template <class T, int count, bool lanes_sum>
__global__ void __launch_bounds__(256) contract_kernel(const __grid_constant__ contract_args<T> a) {
  __shared__ double partial[8][32][count];
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int e = static_cast<int>(blockIdx.y);
  const T* const base = a.weights.of(e);
  if constexpr (lanes_sum) {
    const int i = static_cast<int>(blockIdx.x) * 8 + warp;
    if (i >= a.out_extent) {
      return;
    }
    double sum[count] = {};
    for (int j = lane; j < a.sum_extent; j += 32) {
      const double x = to_double(base[i * a.out_stride + j * a.sum_stride]);
#pragma unroll
      for (int k = 0; k < count; ++k) {
        sum[k] = fma(x, a.vectors[k].load(e, j), sum[k]);
      }
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      for (int mask = 16; mask >= 1; mask /= 2) {
        sum[k] += __shfl_xor_sync(0xffffffffU, sum[k], mask);
      }
      if (lane == 0) {
        a.results[k][static_cast<long long>(e) * a.out_extent + i] = sum[k];
      }
    }
  } else {
    const int i = static_cast<int>(blockIdx.x) * 32 + lane;
    double sum[count] = {};
    if (i < a.out_extent) {
      for (int j = warp; j < a.sum_extent; j += 8) {
        const double x = to_double(base[i * a.out_stride + j * a.sum_stride]);
#pragma unroll
        for (int k = 0; k < count; ++k) {
          sum[k] = fma(x, a.vectors[k].load(e, j), sum[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < count; ++k) {
      partial[warp][lane][k] = sum[k];
    }
    __syncthreads();
    if (warp < count && i < a.out_extent) {
      double total = 0.0;
      for (int w = 0; w < 8; ++w) {
        total += partial[w][lane][warp];
      }
      a.results[warp][static_cast<long long>(e) * a.out_extent + i] = total;
    }
  }
}

template <class T, int count>
void contract(const context& ctx, index_t experts, const contract_args<T>& args) {
  const auto magnitude = [](long long x) { return x < 0 ? -x : x; };
  const bool lanes_sum = magnitude(args.sum_stride) <= magnitude(args.out_stride);
  const int outs = lanes_sum ? 8 : 32;
  launch_shape shape{static_cast<unsigned>((args.out_extent + outs - 1) / outs), 256};
  for (index_t first = 0; first < experts; first += 65535) {  // the grid's second extent is 16 bits wide
    contract_args<T> part = args;
    shape.blocks_y = static_cast<unsigned>(experts - first < 65535 ? experts - first : 65535);
    if (part.weights.table != nullptr) {
      part.weights.table += first;
    } else {
      part.weights.data += first * part.weights.expert;
    }
    for (int k = 0; k < count; ++k) {
      part.vectors[k] = part.vectors[k].from_row(first);
      part.results[k] += first * args.out_extent;
    }
    if (lanes_sum) {
      launch("contract_kernel", ctx, shape, contract_kernel<T, count, true>, part);
    } else {
      launch("contract_kernel", ctx, shape, contract_kernel<T, count, false>, part);
    }
  }
}

/// energies[e] = ‖y_e‖².
template <class = void>
__global__ void __launch_bounds__(256) square_kernel(const double* y, int extent, double* energies) {
  __shared__ double scratch[32];
  wait_for_previous_kernel();
  const int e = static_cast<int>(blockIdx.x);
  double sum[1] = {0.0};
  for (int i = static_cast<int>(threadIdx.x); i < extent; i += 256) {
    const double v = y[static_cast<long long>(e) * extent + i];
    sum[0] = fma(v, v, sum[0]);
  }
  sum_over_block(sum, scratch, 256);
  if (threadIdx.x == 0) {
    energies[e] = sum[0];
  }
}

/// u = (r Aᵀ) A by two passes; y [N, F], u [N, D] and the energies [N] in f64.
template <class T>
void plain_step(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                const any_matrix& rows, double* y, double* u, double* energies) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  contract_args<T> project{weights, weights.ffn, weights.hidden, ffn, hidden, {rows, {}}, {y, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, project);
  launch("square_kernel", ctx, {static_cast<unsigned>(shape.num_experts), 256}, square_kernel<>, y, ffn,
         energies);
  contract_args<T> lift{weights, weights.hidden,           weights.ffn, hidden,
                        ffn,     {any_matrix(y, ffn), {}}, {u, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, lift);
}

}  // namespace detail
MPIROUTER_CUDA_END
