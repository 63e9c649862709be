// The forward over ranks that have columns: y is summed first, then the pieces of the images go round.
#pragma once

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/distributed/column_images.cuh>
#include <mpi_router/distributed/finish_layers.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>

#include <algorithm>

MPIROUTER_CUDA_DETAIL_BEGIN

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
  expect_sharded_forward(name, layers, scratch, memory.bytes);
  if (message.experts == 0) return;
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    project_columns<1>(name, ctx, columns_here<T>(layer), {columns_of(layer, layer.router)},
                       projections_of(comm, memory) + at.projection);
  });
  add_up(ctx, comm, message, memory);
  put_places(ctx, layers, reinterpret_cast<rank_place*>(memory.mine));
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    const auto [n, f, d] = layer.experts.shape();
    if (n == 0) return;
    launch("square_kernel", ctx, {static_cast<unsigned>(n), generic_threads}, square_kernel<>,
           static_cast<const double*>(memory.sums + at.projection), static_cast<int>(f),
           memory.energies + at.expert);
    lift_columns(ctx, columns_here<T>(layer), memory.sums + at.projection, memory.mine + at.piece);
  });
  gather(ctx, comm, memory.mine, memory.all, message.pieces);
  layers_finisher<layer_to_finish<column_images>> finisher(ctx);
  for_each_columns(layers, 1, message, [&](const auto& layer, const column_offsets& at) {
    const index_t n = layer.experts.shape().num_experts;
    const double radius = options.radius.of(std::max<index_t>(n, 1));
    finisher.add({images_of(layer, message, memory, at, memory.energies + at.expert, ranks),
                  finish_of(layer, radius, options.degenerate)},
                 n);
  });
  finisher.finish();
}

MPIROUTER_CUDA_DETAIL_END
