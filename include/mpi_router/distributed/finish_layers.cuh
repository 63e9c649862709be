// The kernel that normalises the images of several layers at once: a launch for each would cost more than its
// work.
#pragma once

#include <mpi_router/cuda/detail/finish/launch.cuh>

#include <algorithm>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The layers that one launch finishes.
template <class Images>
struct finished_layers {
  static constexpr int most = 8;
  Images images[most];
  finish_args args[most];
  int first[most];  // block of each
  int count = 0;
  int experts = 0;
  int hidden = 0;  // the largest

  void add(const Images& image, const finish_args& arg, index_t num_experts) {
    images[count] = image;
    args[count] = arg;
    first[count] = experts;
    experts += static_cast<int>(num_experts);
    hidden = std::max(hidden, arg.hidden);
    ++count;
  }
};

/// One block for each expert of each layer.
template <class Images, int kept>
__global__ void __launch_bounds__(finish_most_threads, 1)
    finish_layers_kernel(const __grid_constant__ finished_layers<Images> layers) {
  __shared__ leader_scratch scratch;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  int l = 0;
  while (l + 1 < layers.count && block >= layers.first[l + 1]) {
    ++l;
  }
  finish_by_block<kept>(layers.images[l], layers.args[l], block - layers.first[l], scratch);
}

/// Finishes what was added, if anything, and begins anew.
template <class Images>
void finish_and_clear(const context& ctx, finished_layers<Images>& layers) {
  if (layers.experts > 0) {
    const launch_shape shape = one_block_each(layers.experts, layers.hidden);
    const bool kept = layers.hidden <= finish_kept_columns;
    launch("finish_layers_kernel", ctx, shape,
           kept ? finish_layers_kernel<Images, finish_kept> : finish_layers_kernel<Images, 0>, layers);
  }
  layers = {};
}

/// What becomes of the images of a layer of a sharded forward.
template <class Layer>
[[nodiscard]] finish_args finish_of(const Layer& layer, double radius, degenerate_row degenerate) {
  return {any_matrix(layer.router),
          any_matrix(layer.rows),
          radius,
          static_cast<int>(layer.experts.shape().hidden_dim),
          degenerate,
          nullptr,
          nullptr,
          layer.told,
          layer.saved};
}

MPIROUTER_CUDA_DETAIL_END
