// The rows of routers whose experts are spread over GPUs: every rank multiplies by what it holds, one message
// gathers the parts of all layers, and the kernel that normalises adds them up in the order of the ranks.
#pragma once

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/distributed/column_images.cuh>
#include <mpi_router/distributed/finish_layers.cuh>
#include <mpi_router/distributed/rank_message.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>

#include <algorithm>
#include <span>
#include <type_traits>

MPIROUTER_CUDA_BEGIN

/// One layer of a sharded call on a GPU.
///
/// experts: a shard (distributed/shards.hpp) of device memory; or, where T is a storage type, a view of the
/// neurons that this rank holds of each expert, [N, F_s, D] in any layout, any number of them. The router [N,
/// D], whole and the same on every rank, and where its rows [N, D] go. told and saved: as of router_rows,
/// global. most: of a shard, the most experts (columns, of a shard of columns) that any rank has a part of,
/// the same number on every rank, which makes the message as small as that; 0: all of them.
template <class T, class R, class O>
struct sharded_layer {
  detail::held_t<T> experts;
  matrix_view<R, device_space> router;
  matrix_view<O, device_space> rows;
  step_by_products told{};
  saved_step saved{};
  index_t most = 0;
};
template <class T, class R, class O>
sharded_layer(expert_batch_view<T, device_space>, matrix_view<R, device_space>, matrix_view<O, device_space>,
              step_by_products = {}, saved_step = {}, index_t = 0) -> sharded_layer<T, R, O>;
template <class Shard, class R, class O>
sharded_layer(Shard, matrix_view<R, device_space>, matrix_view<O, device_space>, step_by_products = {},
              saved_step = {}, index_t = 0) -> sharded_layer<Shard, R, O>;

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

template <class Layers>
[[nodiscard]] rank_memory neuron_forward_memory(const context& ctx, const Layers& layers, index_t ranks,
                                                void* data) {
  std::size_t scratch = 0;
  for (const auto& layer : layers) {
    for (const auto& batch : neuron_batches(layer.experts)) {
      scratch = std::max(scratch, router_rows_workspace(ctx, batch.experts));
    }
  }
  return {rank_message(layers).size, 0, ranks, scratch, data};
}

/// This rank's parts of all layers.
template <class Layers>
void take_parts(const context& ctx, const Layers& layers, const rank_message& message,
                const rank_memory& memory, const step_options& options) {
  step_options alone = options;
  alone.radius = router_radius::fixed(1);
  alone.degenerate = degenerate_row::zero;
  context at = ctx;
  at.inputs_at_rest = ctx.inputs_at_rest && std::none_of(layers.begin(), layers.end(), [](const auto& layer) {
                        return is_in_place(layer.router, layer.rows);
                      });
  for_each_part(layers, message, memory, [&](const auto& layer, const rank_parts& mine, const auto&) {
    for (const auto& batch : neuron_batches(layer.experts)) {
      const index_t count = batch.experts.num_experts();
      step_by_products told;
      told.image_norm = mine.norms + batch.slot;
      told.energy = mine.energies + batch.slot;
      told.statuses = mine.statuses + batch.slot;
      router_rows(at, batch.experts, layer.router.middle_rows(batch.first, count),
                  directions_of(layer, mine, batch.slot, count), told, {}, memory.scratch, alone);
      if (count > 0) at.inputs_at_rest = true;  // it has waited for what all of them read
    }
  });
}

template <class Comm, class Layers>
void forward_by_neurons(const char* name, const context& ctx, const Comm& comm, const Layers& layers,
                        const workspace& scratch, const step_options& options) {
  const index_t ranks = comm.size();
  const rank_message message(layers);
  expect(message.slots <= most_extent, name, ": more than 2^30 - 1 experts");
  const rank_memory memory = neuron_forward_memory(ctx, layers, ranks, scratch.data);
  expect_sharded_forward(name, layers, options, scratch, memory.bytes);
  if (message.slots == 0) return;
  put_places(ctx, layers, reinterpret_cast<rank_place*>(memory.mine + message.first_place));
  take_parts(ctx, layers, message, memory, options);
  gather(ctx, comm, memory.mine, memory.all, message.size);
  finished_layers<rank_images> together{};
  for_each_part(layers, message, memory, [&](const auto& layer, const auto&, const rank_parts& all) {
    const double radius = options.radius.of(std::max<index_t>(total_experts(layer.experts), 1));
    together.add(images_of(layer, message, all, ranks), finish_of(layer, radius, options.degenerate),
                 layer.experts.shape().num_experts);
    if (together.count == together.most) finish_and_clear(ctx, together);
  });
  finish_and_clear(ctx, together);
}

template <class Layers>
[[nodiscard]] column_memory column_forward_memory(const Layers& layers, index_t ranks, void* data) {
  return {column_message(layers, 1), ranks, 0, 0, data};
}

template <class T, class Comm, class Layers>
void forward_by_columns(const char* name, const context& ctx, const Comm& comm, const Layers& layers,
                        const workspace& scratch, const step_options& options) {
  const index_t ranks = comm.size();
  const column_message message(layers, 1);
  const column_memory memory = column_forward_memory(layers, ranks, scratch.data);
  expect_sharded_forward(name, layers, options, scratch, memory.bytes);
  if (message.experts == 0) return;
  const auto here = [](const auto& layer) -> expert_batch_view<const T, device_space> {
    return layer.experts.local();
  };
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    project_columns<1, T>(name, ctx, here(layer), {columns_of(layer, layer.router)},
                          memory.mine + at.projection);
  });
  add_up(ctx, comm, message, memory);
  put_places(ctx, layers, reinterpret_cast<rank_place*>(memory.mine));
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    const auto [n, f, d] = layer.experts.shape();
    if (n == 0) return;
    launch("square_kernel", ctx, {static_cast<unsigned>(n), generic_threads}, square_kernel<>,
           static_cast<const double*>(memory.sums + at.projection), static_cast<int>(f),
           memory.energies + at.expert);
    lift_columns<T>(ctx, here(layer), memory.sums + at.projection, memory.mine + at.piece);
  });
  gather(ctx, comm, memory.mine, memory.all, message.pieces);
  finished_layers<column_images> together{};
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    const index_t n = layer.experts.shape().num_experts;
    const double radius = options.radius.of(std::max<index_t>(n, 1));
    together.add(images_of(layer, message, memory, at, memory.energies + at.expert, ranks),
                 finish_of(layer, radius, options.degenerate), n);
    if (together.count == together.most) finish_and_clear(ctx, together);
  });
  finish_and_clear(ctx, together);
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Bytes of workspace that sharded_router_rows needs: some 4 · (ranks + 1) · N · (D + 5) for all layers
/// together (of shards with `most` m in place of N), and what router_rows needs of one; of columns 8 · (ranks
/// + 2) · N · max(F, most columns of a rank).
template <class T, class R, class O>
[[nodiscard]] std::size_t sharded_router_rows_workspace(const context& ctx,
                                                        std::span<const sharded_layer<T, R, O>> layers,
                                                        index_t ranks) {
  if constexpr (detail::is_columns<T>) {
    return detail::column_forward_memory(layers, ranks, nullptr).bytes;
  } else {
    return detail::neuron_forward_memory(ctx, layers, ranks, nullptr).bytes;
  }
}

/// The rows of the routers of all layers (Eq. 4, 5), each rank multiplying by what it holds: row i is C · r_i
/// M_i / ‖r_i M_i‖ with M_i the sum over the ranks. Rows, statuses and by-products are the same bits on every
/// rank. Layers of a call are of one kind of shard; experts of a view have all N of them on every rank.
///
/// comm: borrowed. All ranks make the call with the same layers, N, D, `most` and options, and their parts
/// together are all of the experts: that is not checked here, for it would have to wait on the host. A
/// scale-free radius takes the N of each layer. options.steps is 1.
///
/// Each rank takes the step by itself, and sends the directions of its parts as f32 with their norms and
/// energies as f64, so that weights of any magnitude work as in router_rows. Cost: one read of this rank's
/// weights, and one message of some 4 · Σ m · (D + 5) bytes for all layers, m = N or `most`. A run of rows is
/// up to three steps, for the parts of experts at its ends. Sums go in the order of the ranks, in f64: the
/// bits depend on which rank holds what, and neither on the network nor on the algorithm of the library
/// below. Columns: two messages, of 8 · Σ N · F and 8 · Σ N · `most` bytes, two reads of the weights, all in
/// f64, by the generic path.
///
/// Stream-ordered, no synchronisation, no allocation; may be captured in a graph where the message may.
/// Throws usage_error on shapes, overlap, workspace, radius, steps; what `comm` throws passes through.
template <DeviceCommunicator Comm, class T, class R, class O>
void sharded_router_rows(const context& ctx, const Comm& comm, std::span<const sharded_layer<T, R, O>> layers,
                         const workspace& scratch, const step_options& options) {
  static_assert(!std::is_const_v<O>, "sharded_router_rows: the output is const");
  constexpr const char* name = "cuda::sharded_router_rows";
  detail::expect_context(name, ctx);
  if constexpr (detail::is_columns<T>) {
    using value = std::remove_const_t<typename detail::held<T>::element>;
    detail::forward_by_columns<value>(name, ctx, comm, layers, scratch, options);
  } else {
    detail::forward_by_neurons(name, ctx, comm, layers, scratch, options);
  }
}

MPIROUTER_CUDA_END
