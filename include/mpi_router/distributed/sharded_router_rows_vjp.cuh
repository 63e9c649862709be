// The gradients of routers whose experts are spread over GPUs: those of the weights stay where the weights
// are, those of the routers are added in the order of the ranks.
#pragma once

#include <mpi_router/cuda/router_rows_vjp.cuh>
#include <mpi_router/distributed/column_images.cuh>
#include <mpi_router/distributed/device_overlap.cuh>
#include <mpi_router/distributed/layer_stack.cuh>
#include <mpi_router/distributed/message_groups.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>
#include <mpi_router/distributed/upstream.cuh>

#include <algorithm>
#include <span>
#include <type_traits>

MPIROUTER_CUDA_BEGIN

/// The backward of sharded_router_rows for one layer: `saved` is what the forward left, grad_rows = ḡ [N, D],
/// grad_router [N, D] where the router's gradient goes, grad_experts that of what this rank holds: a shard of
/// the same placement (a view, where experts is one), in any layout and storage type. most: as of the
/// forward.
template <class T, class G, class R, class U, class V>
struct sharded_layer_vjp {
  detail::held_t<T> experts;
  matrix_view<R, device_space> router;
  saved_step saved;
  matrix_view<U, device_space> grad_rows;
  matrix_view<V, device_space> grad_router;
  detail::held_t<G> grad_experts;
  index_t most = 0;

  /// Some experts of a view, as a layer.
  [[nodiscard]] sharded_layer_vjp middle_experts(index_t first, index_t count) const {
    return {experts.middle_experts(first, count),
            router.middle_rows(first, count),
            detail::from_expert(saved, first, router.cols()),
            grad_rows.middle_rows(first, count),
            grad_router.middle_rows(first, count),
            grad_experts.middle_experts(first, count),
            most};
  }
};

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// What router_rows_vjp needs for a batch of `count` experts like this one.
template <class T, class G>
[[nodiscard]] std::size_t backward_bytes(const context& ctx, const expert_batch_view<T, device_space>& like,
                                         const expert_batch_view<G, device_space>& gradient, index_t count,
                                         gradient_mode mode) {
  const auto [n, f, d] = like.shape();
  const vjp_mode as = mode == gradient_mode::accumulate ? vjp_mode::accumulate : vjp_mode::write;
  return backward_path<std::remove_const_t<T>, G>(ctx, {count, f, d}, like.strides(),
                                                  gradient.strides().hidden, as, nullptr)
      .bytes;
}

/// The k-th batches of the layers of a message as one, ḡ as given or as summed.
template <class U, class Layer>
[[nodiscard]] auto backward_stack(const context& ctx, std::span<const Layer> layers, const auto& batch,
                                  const auto& gradient, gradient_mode mode, const rank_parts& mine,
                                  void* data) {
  using value = std::remove_const_t<typename std::remove_cvref_t<decltype(batch.experts)>::element_type>;
  using to_value = typename std::remove_cvref_t<decltype(gradient)>::element_type;
  using element = std::remove_const_t<std::remove_pointer_t<decltype(layers.front().router.data())>>;
  const index_t all = batch.experts.num_experts() * static_cast<index_t>(layers.size());
  layer_stack<value, element, to_value, U> stack(
      layers, neuron_batch<const value>{batch.experts, batch.first, batch.slot}, true,
      backward_bytes(ctx, batch.experts, gradient, all, mode), mine, data);
  stack.put_gradients(gradient);
  return stack;
}

/// Scratch for the parts of the layers of a message.
template <class Layer>
[[nodiscard]] std::size_t backward_scratch(const context& ctx, std::span<const Layer> layers,
                                           gradient_mode mode, bool summed) {
  std::size_t most = 0;
  const bool stacks = make_stacks(layers);
  for (const Layer& layer : layers) {
    const neuron_batches gradients(layer.grad_experts);
    index_t i = 0;
    for (const auto& batch : neuron_batches(layer.experts)) {
      const auto& gradient = gradients[i++].experts;
      using given = std::remove_const_t<std::remove_pointer_t<decltype(layer.grad_rows.data())>>;
      most = std::max(
          most, !stacks  ? router_rows_vjp_workspace(ctx, batch.experts, gradient, mode)
                : summed ? backward_stack<float>(ctx, layers, batch, gradient, mode, {}, nullptr).bytes
                         : backward_stack<given>(ctx, layers, batch, gradient, mode, {}, nullptr).bytes);
    }
    if (stacks) break;
  }
  return most;
}

template <class Layer>
[[nodiscard]] rank_memory neuron_backward_memory(const context& ctx, std::span<const Layer> layers,
                                                 index_t ranks, gradient_mode mode, tokens_of_rows tokens,
                                                 void* data) {
  std::size_t scratch = 0;
  const auto use = [&](const auto& group) {
    scratch = std::max(scratch,
                       backward_scratch(ctx, group.layers, mode, tokens == tokens_of_rows::split_over_ranks));
  };
  for_each_message<false>(layers, use);
  for_each_message<true>(layers, use);
  return {size_of_messages(layers), upstream_size(layers, tokens), ranks, scratch, data};
}

/// The gradients to this rank's neurons, and its parts of those to the router.
template <class T, class Layer, class Upstream>
void pull_parts(const char* name, const context& ctx, const Layer& layer, const rank_parts& mine,
                const Upstream& grad_rows, gradient_mode mode, const workspace& scratch,
                const step_options& options) {
  step_options fixed = options;
  fixed.radius = router_radius::fixed(options.radius.of(std::max<index_t>(total_experts(layer.experts), 1)));
  const neuron_batches gradients(layer.grad_experts);
  index_t i = 0;
  for (const auto& batch : neuron_batches(layer.experts)) {
    const index_t count = batch.experts.num_experts();
    const auto part = directions_of(layer, mine, batch.slot, count);
    const auto& gradient = gradients[i++].experts;
    if (batch.experts.empty()) {  // alone it would pass on what rows without a step are given
      set_zero(name, ctx, part.data(), part.rows() * part.row_stride());
      continue;
    }
    backward_in_mode(name, ctx, expert_batch_view<const T, device_space>(batch.experts),
                     layer.router.middle_rows(batch.first, count),
                     from_expert(layer.saved, batch.first, layer.experts.shape().hidden_dim),
                     grad_rows.middle_rows(batch.first, count), part, gradient, mode, scratch, fixed, false);
  }
}

/// The same for layers that are alike: one launch for all.
template <class U, class T, class Layer, class Given>
void pull_stacked_parts(const char* name, const context& ctx, const message_group<Layer>& group,
                        const rank_parts& mine, const Given& given, gradient_mode mode,
                        const workspace& scratch, const step_options& options) {
  const std::span<const Layer> layers = group.layers;
  const Layer& first = layers.front();
  const index_t pitch = rank_message::pitch_of(first);
  step_options fixed = options;
  fixed.radius = router_radius::fixed(options.radius.of(std::max<index_t>(total_experts(first.experts), 1)));
  const neuron_batches gradients(first.grad_experts);
  index_t k = 0;
  for (const auto& batch : neuron_batches(first.experts)) {
    const auto stack = backward_stack<U>(ctx, layers, batch, gradients[k].experts, mode, mine, scratch.data);
    stack.put_together(ctx, layers, [&](const Layer& layer) {
      const auto own = neuron_batches(layer.experts)[k];
      const index_t count = own.experts.num_experts();
      stack_part part{expert_addresses(own.experts),
                      expert_addresses(neuron_batches(layer.grad_experts)[k].experts),
                      any_matrix(layer.router.middle_rows(own.first, count)),
                      {},
                      from_expert(layer.saved, own.first, layer.experts.shape().hidden_dim)};
      given.of(group, layer, [&](const auto& grad_rows) {
        part.grad_rows = any_matrix(grad_rows.middle_rows(own.first, count));
      });
      return part;
    });
    backward_in_mode(name, ctx, expert_batch_view<const T, device_space>(stack.experts), stack.router,
                     stack.saved, stack.grad_rows, stack.directions(pitch), stack.gradients, mode, stack.rest,
                     fixed, false);
    stack.send(ctx, mine, pitch);
    ++k;
  }
}

/// What rows without a step are given, if they pass it on.
[[nodiscard]] any_matrix passed_on(const auto& grad_rows, const step_options& options) {
  return options.degenerate == degenerate_row::keep ? any_matrix(grad_rows) : any_matrix();
}

template <class T, class Comm, class Layer>
void backward_by_neurons(const char* name, const context& ctx, const Comm& comm,
                         std::span<const Layer> layers, gradient_mode mode, const workspace& scratch,
                         const step_options& options, tokens_of_rows tokens) {
  const index_t ranks = comm.size();
  const rank_memory memory = neuron_backward_memory(ctx, layers, ranks, mode, tokens, scratch.data);
  expect_sharded_backward(name, layers, scratch, memory.bytes);
  const upstream given(layers, memory.sums, upstream_size(layers, tokens));
  given.add_up(ctx, comm, memory.mine, memory.all);
  for_each_message<StartingDeviceCommunicator<Comm>>(layers, [&](const auto& group) {
    const rank_memory here = memory.from(group.at, ranks);
    put_places(ctx, group.layers, reinterpret_cast<rank_place*>(here.mine + group.message.first_place));
    if (make_stacks(group.layers)) {
      rank_parts mine = group.message.parts(here.mine, 0, 0, 0, false);
      mine.norms = nullptr;
      given.with_type(group.layers.front(), [&]<class U>(std::type_identity<U>) {
        pull_stacked_parts<U, T>(name, ctx, group, mine, given, mode, memory.scratch, options);
      });
    } else {
      for_each_part(group.layers, group.message, here,
                    [&](const auto& layer, const rank_parts& mine, const auto&) {
                      given.of(group, layer, [&](const auto& grad_rows) {
                        pull_parts<T>(name, ctx, layer, mine, grad_rows, mode, memory.scratch, options);
                      });
                    });
    }
    start_gather(ctx, comm, here.mine, here.all, group.message.size);
  });
  if (rank_message(layers).slots > 0) wait_for_messages(ctx, comm);
  layers_finisher<layer_to_collect<rank_images>> sums(ctx);
  for_each_message<StartingDeviceCommunicator<Comm>>(layers, [&](const auto& group) {
    const rank_memory here = memory.from(group.at, ranks);
    for_each_part(group.layers, group.message, here, [&](const auto& layer, const auto&, rank_parts all) {
      all.norms = nullptr;  // gradients come as they are
      given.of(group, layer, [&](const auto& grad_rows) {
        sums.add(
            rows_to_collect(layer, images_of(layer, group.message, all, ranks), any_matrix(layer.grad_router),
                            layer.saved.statuses, passed_on(grad_rows, options)),
            layer.experts.shape().num_experts);
      });
    });
  });
  sums.finish();
}

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

/// Ā of the columns that are here, from the projections of all.
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
  const expert_batch_view<const T, device_space> here = layer.experts.local();
  const matrix_view<double, device_space> dual_rows(dual, n, d, d, 1);
  project_columns<2, T>(name, ctx, here, {columns_of(layer, layer.router), columns_of(layer, dual_rows)},
                        projections);
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
                            memory.mine + at.projection);
    });
  });
  add_up(ctx, comm, message, memory);
  put_places(ctx, layers, reinterpret_cast<rank_place*>(memory.mine));
  for_each_columns(layers, 2, message, [&](const auto& layer, const column_offsets& at) {
    const auto [n, f, d] = layer.experts.shape();
    const double* const y = memory.sums + at.projection;
    pull_columns(ctx, layer, y, memory.dual + at.row, mode);
    const expert_batch_view<const T, device_space> here = layer.experts.local();
    lift_columns<T>(ctx, here, y + n * f, memory.mine + at.piece);
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

MPIROUTER_CUDA_BEGIN

/// Bytes of workspace that sharded_router_rows_vjp needs.
template <class T, class G, class R, class U, class V>
[[nodiscard]] std::size_t sharded_router_rows_vjp_workspace(
    const context& ctx, std::span<const sharded_layer_vjp<T, G, R, U, V>> layers, index_t ranks,
    gradient_mode mode, tokens_of_rows tokens = tokens_of_rows::same_on_all_ranks) {
  if constexpr (detail::is_columns<T>) {
    return detail::column_backward_memory(layers, ranks, tokens, nullptr).bytes;
  } else {
    return detail::neuron_backward_memory(ctx, layers, ranks, mode, tokens, nullptr).bytes;
  }
}

/// The gradients of sharded_router_rows: that of the weights here needs no message, for y = A r, w = A z̄ and
/// z̄ are at hand (of columns y and w are sums, one message of 16 · Σ N · F bytes); grad_router = z̄ M is the
/// sum over the ranks, the same bits on each, by one message as of the forward. tokens: where they are split,
/// what the ranks are given for the rows is summed first, in their order, in messages of f32. The saved
/// direction is f32, and so gradients to weights in f64 are right to 1e-7. Otherwise as router_rows_vjp and
/// sharded_router_rows.
template <DeviceCommunicator Comm, class T, class G, class R, class U, class V>
void sharded_router_rows_vjp(const context& ctx, const Comm& comm,
                             std::span<const sharded_layer_vjp<T, G, R, U, V>> layers, gradient_mode mode,
                             const workspace& scratch, const step_options& options,
                             tokens_of_rows tokens = tokens_of_rows::same_on_all_ranks) {
  static_assert(!std::is_const_v<V>, "sharded_router_rows_vjp: an output is const");
  constexpr const char* name = "cuda::sharded_router_rows_vjp";
  using value = std::remove_const_t<typename detail::held<T>::element>;
  detail::expect_context(name, ctx);
  detail::expect_backward_shapes(name, layers, options);
  if constexpr (detail::is_columns<T>) {
    detail::backward_by_columns<value>(name, ctx, comm, layers, mode, scratch, options, tokens);
  } else {
    detail::backward_by_neurons<value>(name, ctx, comm, layers, mode, scratch, options, tokens);
  }
}

MPIROUTER_CUDA_END
