// The rows of routers whose neurons are spread over GPUs: every rank multiplies by what it holds, one message
// gathers the parts of all layers, and the kernel that normalises adds them up in the order of the ranks.
#pragma once

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <algorithm>
#include <span>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The layers that one launch finishes: a launch for each would cost more than its work.
struct finished_layers {
  static constexpr int most = 8;
  rank_images images[most];
  finish_args args[most];
  int first[most];  // block of each
  int count = 0;
  int experts = 0;
  int hidden = 0;  // the largest

  void add(const rank_images& image, const finish_args& arg, index_t num_experts) {
    images[count] = image;
    args[count] = arg;
    first[count] = experts;
    experts += static_cast<int>(num_experts);
    hidden = std::max(hidden, arg.hidden);
    ++count;
  }
};

/// One block for each expert of each layer.
template <int kept>
__global__ void __launch_bounds__(finish_most_threads, 1)
    finish_layers_kernel(const __grid_constant__ finished_layers layers) {
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

inline void finish(const context& ctx, const finished_layers& layers) {
  if (layers.experts == 0) return;
  const launch_shape shape = one_block_each(layers.experts, layers.hidden);
  const bool kept = layers.hidden <= finish_kept_columns;
  launch("finish_layers_kernel", ctx, shape,
         kept ? finish_layers_kernel<finish_kept> : finish_layers_kernel<0>, layers);
}

template <class T, class U>
void expect_like_experts(const char* name, const char* which,
                         const expert_batch_view<T, device_space>& experts,
                         const matrix_view<U, device_space>& m) {
  expect_rows(name, which, expert_batch_view<const std::remove_const_t<T>, device_space>(experts), m);
}

/// What is written lies apart from all that any layer reads later.
template <class Layers>
void expect_sharded_forward(const char* name, const Layers& layers, const step_options& options,
                            const workspace& scratch, std::size_t bytes) {
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  for (const auto& layer : layers) {
    static_cast<void>(expect_radius(name, options, layer.experts.total_experts()));
    const named_range router{"the router", core::addresses(layer.router)};
    const named_range rows{"the output", core::addresses(layer.rows)};
    expect_like_experts(name, "the router", layer.experts, layer.router);
    expect_like_experts(name, "the output", layer.experts, layer.rows);
    expect_in_place_or_apart(name, layer.router, layer.rows);
    expect_apart(name, work, {router, rows});
    expect_told_apart(name, layer.told, layer.saved, layer.rows.rows(), layer.rows.cols(),
                      {router, rows, work});
    expect_weights_apart(name, layer.experts, {work, rows},
                         told_by_a_step(layer.told, layer.saved, layer.rows.rows(), layer.rows.cols()));
    const auto told = told_by_a_step(layer.told, layer.saved, layer.rows.rows(), layer.rows.cols());
    for (const auto& other : layers) {
      if (&other == &layer) continue;
      const auto others = told_by_a_step(other.told, other.saved, other.rows.rows(), other.rows.cols());
      const named_range other_router{"the router of another layer", core::addresses(other.router)};
      const named_range other_rows{"the output of another layer", core::addresses(other.rows)};
      expect_apart(name, rows, {other_router, other_rows});
      expect_weights_apart(name, other.experts, {rows}, told);
      for (const named_range& number : told) {
        expect_apart(name, number, {other_router, other_rows});
        expect_apart(name, number, others);
      }
    }
  }
}

template <class Layers>
[[nodiscard]] rank_memory sharded_forward_memory(const context& ctx, const Layers& layers, index_t ranks,
                                                 void* data) {
  const auto bytes = [&](const auto& layer) { return router_rows_workspace(ctx, layer.experts); };
  return {rank_message(layers), ranks, most_scratch(layers, bytes), data};
}
MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// One layer of a sharded call: experts [N, F_s, D], the neurons that this rank holds (any number, in any
/// layout; a slice of each expert, or its fused half), the router [N, D], whole and the same on every rank,
/// and where its rows [N, D] go. told and saved: as of router_rows, global.
template <class T, class R, class O>
struct sharded_layer {
  expert_batch_view<T, device_space> experts;
  matrix_view<R, device_space> router;
  matrix_view<O, device_space> rows;
  step_by_products told{};
  saved_step saved{};
};

/// Bytes of workspace that sharded_router_rows needs: some 4 · (ranks + 1) · N · (D + 5) for all layers
/// together, and what router_rows needs of one.
template <class T, class R, class O>
[[nodiscard]] std::size_t sharded_router_rows_workspace(const context& ctx,
                                                        std::span<const sharded_layer<T, R, O>> layers,
                                                        index_t ranks) {
  return detail::sharded_forward_memory(ctx, layers, ranks, nullptr).bytes;
}

/// The rows of the routers of all layers (Eq. 4, 5), each rank multiplying by the neurons that it holds: row
/// i is C · r_i M_i / ‖r_i M_i‖ with M_i = Σ_s A_sᵀA_s over the ranks. Rows, statuses and by-products are the
/// same bits on every rank.
///
/// comm: borrowed. All ranks make the call with the same layers, N, D and options: that is not checked here,
/// for it would have to wait on the host. A scale-free radius takes the N of each layer. options.steps is 1.
///
/// Each rank takes the step by itself, and sends the directions of its parts as f32 with their norms and
/// energies as f64, so that weights of any magnitude work as in router_rows. Cost: one read of this rank's
/// weights, and one message of some 4 · Σ N · (D + 5) bytes for all layers. Sums go in the order of the
/// ranks, in f64: the bits depend on which rank holds what, and neither on the network nor on the algorithm
/// of the library below. Stream-ordered, no synchronisation, no allocation; may be captured in a graph where
/// the message may. Throws usage_error on shapes, overlap, workspace, radius, steps; what `comm` throws
/// passes through.
template <DeviceCommunicator Comm, class T, class R, class O>
void sharded_router_rows(const context& ctx, const Comm& comm, std::span<const sharded_layer<T, R, O>> layers,
                         const workspace& scratch, const step_options& options) {
  static_assert(!std::is_const_v<O>, "sharded_router_rows: the output is const");
  constexpr const char* name = "cuda::sharded_router_rows";
  detail::expect(options.steps == 1, name, ": ", options.steps, " steps; take them one call at a time");
  detail::expect(detail::rank_message(layers).experts <= detail::most_extent, name,
                 ": more than 2^30 - 1 experts");
  const index_t ranks = comm.size();
  const detail::rank_message message(layers);
  const auto memory = detail::sharded_forward_memory(ctx, layers, ranks, scratch.data);
  detail::expect_workspace(name, scratch, memory.bytes);
  detail::expect_sharded_forward(name, layers, options, scratch, memory.bytes);
  if (message.experts == 0) return;
  step_options alone = options;
  alone.radius = router_radius::fixed(1);
  alone.degenerate = degenerate_row::zero;
  context at = ctx;
  at.inputs_at_rest = ctx.inputs_at_rest && std::none_of(layers.begin(), layers.end(), [](const auto& layer) {
                        return detail::is_in_place(layer.router, layer.rows);
                      });
  detail::for_each_part(layers, message, memory, [&](const auto& layer, const auto& mine, const auto&) {
    step_by_products told;
    told.image_norm = mine.norms;
    told.energy = mine.energies;
    told.statuses = mine.statuses;
    router_rows(at, layer.experts, layer.router, detail::directions_of(layer, mine), told, {}, memory.scratch,
                alone);
    if (layer.experts.num_experts() > 0) at.inputs_at_rest = true;  // it has waited for what all of them read
  });
  detail::gather_parts(ctx, comm, message, memory, ranks);
  detail::finished_layers together;
  detail::for_each_part(layers, message, memory, [&](const auto& layer, const auto&, const auto& all) {
    const double radius = detail::expect_radius(name, options, layer.experts.total_experts());
    together.add(detail::images_of(layer, message, all, ranks),
                 detail::finish_args{detail::any_matrix(layer.router), detail::any_matrix(layer.rows), radius,
                                     static_cast<int>(layer.experts.hidden_dim()), options.degenerate,
                                     nullptr, nullptr, layer.told, layer.saved},
                 layer.experts.num_experts());
    if (together.count == detail::finished_layers::most) {
      detail::finish(ctx, together);
      together = {};
    }
  });
  detail::finish(ctx, together);
}

MPIROUTER_CUDA_END
