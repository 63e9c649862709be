// The launches of the products with weights that are read in vectors.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/scaled_vectors.cuh>
#include <mpi_router/cuda/detail/generic/launch.cuh>
#include <mpi_router/cuda/detail/generic/vector_kernel.cuh>

#include <utility>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Launches kernel(args, …) for as many experts at a time as a grid takes.
template <class Kernel, class Args>
void launch_for_experts(const char* name, const context& ctx, index_t experts, unsigned blocks, Kernel kernel,
                        Args args) {
  for (index_t first = 0; first < experts; first += most_grid_y) {
    const index_t count = experts - first < most_grid_y ? experts - first : most_grid_y;
    args.first_expert = static_cast<int>(first);
    launch(name, ctx, {blocks, generic_threads, 0, 1, static_cast<unsigned>(count)}, kernel, args);
  }
}

/// u = (r Aᵀ) A by two products, each a read of the weights; y [N, F], u [N, D] and the energies [N] in f64,
/// which holds all of them where r is of floats.
template <class Products>
void step_of_products(const Products& of, const any_matrix& rows, double* y, double* u, double* energies) {
  of.template project<1>({rows}, {y});
  square(of.ctx, of.shape, y, energies);
  of.lift(y, u);
}

/// The products with all gate matrices, one of whose axes is contiguous, in f32: as plain_products.
template <class T>
struct vector_products {
  const context& ctx;
  batch<const T> weights;
  expert_shape shape;
  const scaled_operands& scaled;

  /// y_k = A r_k for `count` rows of each expert, r and z̄; y_k [N, F].
  template <int count>
  void project(const any_matrix (&rows)[count], double* const (&y)[count]) const {
    const scaled_vectors* const to[] = {&scaled.row, &scaled.dual};
    product_args<T> args = as_stored();
    for (int k = 0; k < count; ++k) {
      scale(ctx, shape, rows[k], shape.hidden_dim, *to[k]);
      args.vectors[k] = *to[k];
      args.results[k] = y[k];
    }
    by_neurons() ? dots<count>(args) : sums<count>(args);
  }
  /// u = y A [N, D].
  void lift(const double* y, double* u) const {
    product_args<T> args = as_stored();
    args.vectors[0] = lifted();
    args.results[0] = u;
    scale(ctx, shape, any_matrix(y, shape.ffn_dim), shape.ffn_dim, args.vectors[0]);
    by_neurons() ? sums<1>(args) : dots<1>(args);
  }

 private:
  [[nodiscard]] bool by_neurons() const { return weights.hidden == 1; }
  /// Where the backward lifts w, the forward lifts y.
  [[nodiscard]] const scaled_vectors& lifted() const {
    return scaled.dual_projection.pitch > 0 ? scaled.dual_projection : scaled.projection;
  }
  [[nodiscard]] product_args<T> as_stored() const {
    const auto [n, f, d] = shape;
    return by_neurons() ? product_args<T>{weights, weights.ffn, static_cast<int>(f), static_cast<int>(d)}
                        : product_args<T>{weights, weights.hidden, static_cast<int>(d), static_cast<int>(f)};
  }
  template <int count>
  void dots(const product_args<T>& args) const {
    constexpr int rows = generic_warps * dots_at_once;  // of a block
    launch_for_experts("row_dots_kernel", ctx, shape.num_experts,
                       static_cast<unsigned>((args.rows + rows - 1) / rows), row_dots_kernel<T, count>, args);
  }
  template <int count>
  void sums(const product_args<T>& args) const {
    constexpr int columns = sums_lanes * vector_width<T>;  // of a block
    launch_for_experts("row_sums_kernel", ctx, shape.num_experts,
                       static_cast<unsigned>((args.columns + columns - 1) / columns),
                       row_sums_kernel<T, count>, args);
  }
};

MPIROUTER_CUDA_DETAIL_END
