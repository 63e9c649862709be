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

/// u = (r Aᵀ) A by two passes; y [N, F], u [N, D] and the energies [N] in f64.
template <class T>
void generic_step(const context& ctx, const batch<const T>& weights, const expert_shape& shape,
                  const any_matrix& rows, double* y, double* u, double* energies) {
  const int ffn = static_cast<int>(shape.ffn_dim);
  const int hidden = static_cast<int>(shape.hidden_dim);
  contract_args<T> project{weights, weights.ffn, weights.hidden, ffn, hidden, {rows, {}}, {y, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, project);
  launch("square_kernel", ctx, {static_cast<unsigned>(shape.num_experts), generic_threads}, square_kernel<>,
         y, ffn, energies);
  contract_args<T> lift{weights, weights.hidden,           weights.ffn, hidden,
                        ffn,     {any_matrix(y, ffn), {}}, {u, nullptr}};
  contract<T, 1>(ctx, shape.num_experts, lift);
}

MPIROUTER_CUDA_DETAIL_END
