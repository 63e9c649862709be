// The backward over ranks that have columns, from the projections of all.
#pragma once

#include <mpi_router/cuda/router_rows_vjp.cuh>
#include <mpi_router/distributed/column_images.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>
#include <mpi_router/distributed/upstream.cuh>

#include <algorithm>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class Layers>
[[nodiscard]] column_memory column_backward_memory(const Layers& layers, index_t ranks, tokens_of_rows tokens,
                                                   void* data) {
  index_t dual = 0;
  for (const auto& layer : layers) {
    const auto [n, f, d] = layer.experts.shape();
    dual += n * d;
  }
  return {column_message(layers, 2), ranks, dual, upstream_size(layers, tokens), data};
}

/// Ā of the columns that are here, from the projections of all: in factors of experts that are decoded as
/// they are read.
template <class Layer>
  requires is_decoded<decltype(Layer::experts)>
void pull_columns(const context& ctx, const Layer& layer, const double* y, const double* dual,
                  gradient_mode) {
  const auto [n, f, d] = layer.experts.shape();
  const rank_place here = place_of(layer.experts);
  const status* const statuses = layer.saved.statuses;
  const gradient_factors& to = layer.grad_experts;
  narrow(ctx, n, y, to.projection, statuses, static_cast<int>(f));
  narrow(ctx, n, y + n * f, to.dual_projection, statuses, static_cast<int>(f));
  narrow(ctx, n, dual + here.first, static_cast<int>(d), to.dual_row, statuses, here.count);
}
template <class Layer>
void pull_columns(const context& ctx, const Layer& layer, const double* y, const double* dual,
                  gradient_mode mode) {
  const auto [n, f, d] = layer.experts.shape();
  const auto& gradient = layer.grad_experts.local();
  using G = std::remove_cvref_t<decltype(*gradient.data())>;
  if (gradient.empty()) return;
  const rank_place here = place_of(layer.experts);
  const outer_args<G> args{batch<G>(gradient),
                           columns_of(layer, layer.router),
                           y,
                           y + n * f,
                           dual + here.first,
                           layer.saved.statuses,
                           static_cast<int>(f),
                           here.count,
                           static_cast<int>(d)};
  const launch_shape shape = shape_of_rows(n, static_cast<int>(std::max<index_t>(f, here.count)));
  if (mode == gradient_mode::accumulate) {
    launch("outer_kernel", ctx, shape, outer_kernel<G, true>, args);
  } else {
    launch("outer_kernel", ctx, shape, outer_kernel<G, false>, args);
  }
}

/// z̄ of a layer, whole on every rank, into `dual`; y and w of the columns that are here into `projections`.
template <class T, class Layer, class GradRows>
void project_columns_of(const char* name, const context& ctx, const Layer& layer, const GradRows& grad_rows,
                        const step_options& options, double* dual, double* projections) {
  const auto [n, f, d] = layer.experts.shape();
  const dual_source source{any_matrix(grad_rows), any_matrix(layer.saved.direction, d),
                           layer.saved,           options.radius.of(n),
                           options.degenerate,    false};
  launch("dual_kernel", ctx, {static_cast<unsigned>(n), generic_threads}, dual_kernel<>, source,
         static_cast<const double*>(nullptr), static_cast<int>(d), dual);
  const matrix_view<double, device_space> dual_rows(dual, n, d, d, 1);
  project_columns<2>(name, ctx, columns_here<T>(layer),
                     {columns_of(layer, layer.router), columns_of(layer, dual_rows)}, projections);
}

template <class T, class Comm, class Layers>
void backward_by_columns(const char* name, const context& ctx, const Comm& comm, const Layers& layers,
                         gradient_mode mode, const workspace& scratch, const step_options& options,
                         tokens_of_rows tokens) {
  const index_t ranks = comm.size();
  const column_message message(layers, 2);
  const column_memory memory = column_backward_memory(layers, ranks, tokens, scratch.data);
  expect_sharded_backward(name, layers, scratch, memory.bytes);
  if (message.experts == 0) return;
  const upstream given(layers, memory.upstream, upstream_size(layers, tokens));
  given.add_up(ctx, comm, reinterpret_cast<float*>(memory.mine), reinterpret_cast<float*>(memory.all));
  for_each_columns(layers, 2, message, [&](const auto& layer, const column_offsets& at) {
    if (layer.experts.shape().num_experts == 0) return;
    given.of(layer, [&](const auto& grad_rows) {
      project_columns_of<T>(name, ctx, layer, grad_rows, options, memory.dual + at.row,
                            projections_of(comm, memory) + at.projection);
    });
  });
  add_up(ctx, comm, message, memory);
  put_places(ctx, layers, reinterpret_cast<rank_place*>(memory.mine));
  for_each_columns(layers, 2, message, [&](const auto& layer, const column_offsets& at) {
    const auto [n, f, d] = layer.experts.shape();
    const double* const y = memory.sums + at.projection;
    pull_columns(ctx, layer, y, memory.dual + at.row, mode);
    lift_columns(ctx, columns_here<T>(layer), y + n * f, memory.mine + at.piece);
  });
  gather(ctx, comm, memory.mine, memory.all, message.pieces);
  layers_finisher<layer_to_collect<column_images>> sums(ctx);
  for_each_columns(layers, 2, message, [&](const auto& layer, const column_offsets& at) {
    given.of(layer, [&](const auto& grad_rows) {
      sums.add(
          rows_to_collect(layer, images_of(layer, message, memory, at, nullptr, ranks),
                          any_matrix(layer.grad_router), layer.saved.statuses, passed_on(grad_rows, options)),
          layer.experts.shape().num_experts);
    });
  });
  sums.finish();
}

MPIROUTER_CUDA_DETAIL_END
