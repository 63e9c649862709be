// The launches of the forward on the generic path.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/generic/kernel.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, int count>
void contract(const context& ctx, index_t experts, const contract_args<T>& args) {
  const auto magnitude = [](long long x) { return x < 0 ? -x : x; };
  const bool lanes_sum = magnitude(args.sum_stride) <= magnitude(args.out_stride);
  const int outs = lanes_sum ? generic_warps : warp_threads;
  launch_shape shape{static_cast<unsigned>((args.out_extent + outs - 1) / outs), generic_threads};
  for (index_t first = 0; first < experts; first += most_grid_y) {
    contract_args<T> part = args;
    shape.blocks_y = static_cast<unsigned>(experts - first < most_grid_y ? experts - first : most_grid_y);
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

/// y_k = A r_k for `count` rows of each expert.
template <int count, class T>
void generic_project(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                     const any_matrix (&rows)[count], double* const (&y)[count]) {
  contract_args<T> args{weights, weights.ffn, weights.hidden, static_cast<int>(shape.ffn_dim),
                        static_cast<int>(shape.hidden_dim)};
  for (int k = 0; k < count; ++k) {
    args.vectors[k] = rows[k];
    args.results[k] = y[k];
  }
  contract<T, count>(ctx, shape.num_experts, args);
}
/// u = y A.
template <class T>
void generic_lift(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                  const double* y, double* u) {
  contract_args<T> args{weights, weights.hidden, weights.ffn, static_cast<int>(shape.hidden_dim),
                        static_cast<int>(shape.ffn_dim)};
  args.vectors[0] = any_matrix(y, shape.ffn_dim);
  args.results[0] = u;
  contract<T, 1>(ctx, shape.num_experts, args);
}

/// u = (r Aᵀ) A by two passes; y [N, F], u [N, D] and the energies [N] in f64.
template <class T>
void generic_step(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                  const any_matrix& rows, double* y, double* u, double* energies) {
  generic_project<1, T>(ctx, weights, shape, {rows}, {y});
  launch("square_kernel", ctx, {static_cast<unsigned>(shape.num_experts), generic_threads}, square_kernel<>,
         y, static_cast<int>(shape.ffn_dim), energies);
  generic_lift(ctx, weights, shape, y, u);
}

MPIROUTER_CUDA_DETAIL_END
