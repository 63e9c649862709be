// The launches of the forward on the generic path.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/device/scaled_vectors.cuh>
#include <mpi_router/cuda/detail/generic/kernel.cuh>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>

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

/// The products with all gate matrices, element by element in f64.
template <class T>
struct plain_products {
  const context& ctx;
  batch<const T> weights;
  expert_shape shape;

  /// y_k = A r_k for `count` rows of each expert; y_k [N, F].
  template <int count>
  void project(const any_matrix (&rows)[count], double* const (&y)[count]) const {
    contract_args<T> args{weights, weights.ffn, weights.hidden, static_cast<int>(shape.ffn_dim),
                          static_cast<int>(shape.hidden_dim)};
    for (int k = 0; k < count; ++k) {
      args.vectors[k] = rows[k];
      args.results[k] = y[k];
    }
    contract<T, count>(ctx, shape.num_experts, args);
  }
  /// u = y A [N, D].
  void lift(const double* y, double* u) const {
    contract_args<T> args{weights, weights.hidden, weights.ffn, static_cast<int>(shape.hidden_dim),
                          static_cast<int>(shape.ffn_dim)};
    args.vectors[0] = any_matrix(y, shape.ffn_dim);
    args.results[0] = u;
    contract<T, 1>(ctx, shape.num_experts, args);
  }
};

/// energies = ‖y‖² [N] of y [N, F].
inline void square(const context& ctx, const expert_shape& shape, const double* y, double* energies) {
  launch("square_kernel", ctx, {static_cast<unsigned>(shape.num_experts), generic_threads}, square_kernel<>,
         y, static_cast<int>(shape.ffn_dim), energies);
}

/// to [N, extent] = from without its powers of two, which go to `exponents`.
inline void normalise(const context& ctx, const expert_shape& shape, const any_matrix& from, index_t extent,
                      double* to, int* exponents) {
  launch("scale_kernel", ctx, {static_cast<unsigned>(shape.num_experts), generic_threads},
         scale_kernel<double>, from, to, static_cast<int>(extent), exponents, static_cast<int>(extent));
}

/// u = (r Aᵀ) A by two products, each a read of the weights; y [N, F], u [N, D] and the energies ‖y‖² [N] in
/// f64, all without the powers of two that `exponents` have: no number leaves the range where A does not.
template <class T>
void generic_step(const plain_products<T>& of, const any_matrix& rows, double* y, double* u, double* energies,
                  const step_exponents& exponents) {
  const auto [n, f, d] = of.shape;
  normalise(of.ctx, of.shape, rows, d, u, exponents.row);
  of.template project<1>({any_matrix(u, d)}, {y});
  normalise(of.ctx, of.shape, any_matrix(y, f), f, y, exponents.projection);
  square(of.ctx, of.shape, y, energies);
  of.lift(y, u);
  normalise(of.ctx, of.shape, any_matrix(u, d), d, u, exponents.image);
}

MPIROUTER_CUDA_DETAIL_END
