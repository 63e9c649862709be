// The kernels that normalise the images of several layers at once, or write their sums: a launch for each
// would cost more than its work.
#pragma once

#include <mpi_router/cuda/detail/finish/launch.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <algorithm>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What becomes of the images of a layer.
template <class Images>
struct layer_to_finish {
  static constexpr bool reads_image_twice = true;
  Images images;
  finish_args args;
  template <int in_registers>
  __device__ __forceinline__ void by_block(int e, leader_scratch& scratch) const {
    finish_by_block<in_registers>(images, args, e, scratch);
  }
  [[nodiscard]] int hidden() const { return args.hidden; }
};
template <class Images>
struct layer_to_collect {
  static constexpr bool reads_image_twice = false;
  collect_args<Images> args;
  template <int>
  __device__ __forceinline__ void by_block(int e, leader_scratch&) const {
    collect_by_block(args, e);
  }
  [[nodiscard]] int hidden() const { return args.hidden; }
};

/// The layers that one launch takes.
template <class Layer>
struct layers_at_once {
  static constexpr int most = 14;
  Layer layers[most];
  int first[most];  // block of each
  int count = 0;
  int experts = 0;
  int hidden = 0;  // the largest
};

/// One block for each expert of each layer.
template <class Layer, int kept>
__global__ void __launch_bounds__(finish_most_threads, 1)
    finish_layers_kernel(const __grid_constant__ layers_at_once<Layer> some) {
  static_assert(sizeof(layers_at_once<Layer>) <= most_argument_bytes, "a kernel takes no more");
  __shared__ leader_scratch scratch;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  int l = 0;
  while (l + 1 < some.count && block >= some.first[l + 1]) {
    ++l;
  }
  some.layers[l].template by_block<kept>(block - some.first[l], scratch);
}

/// Finishes the layers that it is given, several in a launch; those that are left, at the end.
template <class Layer>
class layers_finisher {
 public:
  explicit layers_finisher(const context& ctx) : ctx_(ctx) {}

  void add(const Layer& layer, index_t num_experts) {
    some_.layers[some_.count] = layer;
    some_.first[some_.count++] = some_.experts;
    some_.experts += static_cast<int>(num_experts);
    some_.hidden = std::max(some_.hidden, layer.hidden());
    if (some_.count == some_.most) finish();
  }
  void finish() {
    if (some_.experts > 0) {
      const launch_shape shape = one_block_each(finish_many_experts, some_.experts, some_.hidden);
      with_kept(shape, some_.hidden, [&]<int kept>(std::integral_constant<int, kept>) {
        constexpr int in_registers = Layer::reads_image_twice ? kept : 0;
        launch("finish_layers_kernel", ctx_, shape, finish_layers_kernel<Layer, in_registers>, some_);
      });
    }
    some_ = {};
  }

 private:
  const context& ctx_;
  layers_at_once<Layer> some_{};
};

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
