// The backward over ranks that have neurons: gradients of the weights stay, those of the router are added up.
#pragma once

#include <mpi_router/cuda/decoded_rows.cuh>
#include <mpi_router/cuda/router_rows_vjp.cuh>
#include <mpi_router/distributed/device_overlap.cuh>
#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/layer_stack.cuh>
#include <mpi_router/distributed/message_groups.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>
#include <mpi_router/distributed/upstream.cuh>

#include <algorithm>
#include <span>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What router_rows_vjp needs for a batch of `count` experts like this one.
template <class T, class G>
[[nodiscard]] std::size_t backward_bytes(const context& ctx, const expert_batch_view<T, device_space>& like,
                                         const expert_batch_view<G, device_space>& gradient, index_t count,
                                         gradient_mode mode) {
  const auto [n, f, d] = like.shape();
  const vjp_mode as = mode == gradient_mode::accumulate ? vjp_mode::accumulate : vjp_mode::write;
  return backward_path<std::remove_const_t<T>, G>(ctx, {count, f, d}, like.strides(), gradient.strides(), as,
                                                  nullptr)
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
  if constexpr (!can_stack<Layer>) {
    for (const Layer& layer : layers) {
      for (const auto& batch : neuron_batches(layer.experts)) {
        most = std::max(most, router_rows_vjp_factored_workspace(ctx, batch.experts));
      }
    }
    return most;
  } else {
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

/// The factors that begin at a batch of a rank's experts.
template <class Batch>
[[nodiscard]] gradient_factors from_batch(const gradient_factors& factors, const Batch& batch) {
  const auto from = [](float* data, index_t offset) { return data == nullptr ? nullptr : data + offset; };
  return {from(factors.projection, batch.row), from(factors.dual_projection, batch.row),
          from(factors.dual_row, batch.slot * batch.experts.hidden_dim())};
}

/// The gradients to this rank's neurons, and its parts of those to the router.
template <class T, class Layer, class Upstream>
void pull_parts(const char* name, const context& ctx, const Layer& layer, const rank_parts& mine,
                const Upstream& grad_rows, gradient_mode mode, const workspace& scratch,
                const step_options& options) {
  step_options fixed = options;
  fixed.radius = router_radius::fixed(options.radius.of(std::max<index_t>(total_experts(layer.experts), 1)));
  index_t i = 0;
  for (const auto& batch : neuron_batches(layer.experts)) {
    const index_t count = batch.experts.num_experts();
    const auto part = directions_of(layer, mine, batch.slot, count);
    if (batch.experts.empty()) {  // alone it would pass on what rows without a step are given
      set_zero(name, ctx, part.data(), part.rows() * part.row_stride());
      continue;
    }
    const auto router = layer.router.middle_rows(batch.first, count);
    const auto upstream = grad_rows.middle_rows(batch.first, count);
    const saved_step saved = from_expert(layer.saved, batch.first, layer.experts.shape().hidden_dim);
    if constexpr (can_stack<Layer>) {
      backward_in_mode(name, ctx, expert_batch_view<const T, device_space>(batch.experts), router, saved,
                       upstream, part, neuron_batches(layer.grad_experts)[i++].experts, mode, scratch, fixed,
                       false);
    } else {
      backward(name, ctx, batch.experts, router, saved, upstream, part, from_batch(layer.grad_experts, batch),
               scratch, fixed);
    }
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

/// This rank's part of the gradients of a message's layers, ḡ as `given`.
template <class T, class Layer, class Given>
void pull_group(const char* name, const context& ctx, const message_group<Layer>& group,
                const rank_memory& here, const Given& given, gradient_mode mode,
                const step_options& options) {
  put_places(ctx, group.layers, reinterpret_cast<rank_place*>(here.mine + group.message.first_place));
  if constexpr (can_stack<Layer>) {
    if (make_stacks(group.layers)) {
      rank_parts mine = group.message.parts(here.mine, 0, 0, 0, false);
      mine.norms = nullptr;
      return given.with_type(group.layers.front(), [&]<class U>(std::type_identity<U>) {
        pull_stacked_parts<U, T>(name, ctx, group, mine, given, mode, here.scratch, options);
      });
    }
  }
  for_each_part(group.layers, group.message, here,
                [&](const auto& layer, const rank_parts& mine, const auto&) {
                  given.of(group, layer, [&](const auto& grad_rows) {
                    pull_parts<T>(name, ctx, layer, mine, grad_rows, mode, here.scratch, options);
                  });
                });
}

template <class T, class Comm, class Layer, class Given>
void backward_by_messages(const char* name, const context& ctx, const Comm& comm,
                          std::span<const Layer> layers, gradient_mode mode, const rank_memory& memory,
                          const Given& given, const step_options& options) {
  constexpr bool apart = StartingDeviceCommunicator<Comm>;
  const index_t ranks = comm.size();
  for_each_message<apart>(layers, [&](const auto& group) {
    const rank_memory here = memory.from(group.at, ranks);
    pull_group<T>(name, ctx, group, here, given, mode, options);
    start_gather(ctx, comm, here.mine, here.all, group.message.size);
  });
  if (rank_message(layers).slots > 0) wait_for_messages(ctx, comm);
  layers_finisher<layer_to_collect<rank_images>> sums(ctx);
  for_each_message<apart>(layers, [&](const auto& group) {
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

template <class Layer>
[[nodiscard]] sum_memory<float> backward_sum_memory(const context& ctx, std::span<const Layer> layers,
                                                    gradient_mode mode, tokens_of_rows tokens, void* data) {
  std::size_t scratch = 0;
  for_each_message<false>(layers, [&](const auto& all) {
    scratch = backward_scratch(ctx, all.layers, mode, tokens == tokens_of_rows::split_over_ranks);
  });
  return {layers, upstream_size(layers, tokens), scratch, false, data};
}

/// The gradients to the routers as the library below adds them.
template <class T, class Comm, class Layer, class Given>
void backward_by_sums(const char* name, const context& ctx, const Comm& comm, std::span<const Layer> layers,
                      gradient_mode mode, const sum_memory<float>& memory, const Given& given,
                      const step_options& options) {
  for_each_message<false>(layers, [&](const auto& all) {
    pull_group<T>(name, ctx, all, memory.own, given, mode, options);
    memory.sums.put(ctx, layers, all.message, memory.own, true);
  });
  add_by_backend(ctx, comm, memory.sums.rows, memory.sums.count);
  layers_finisher<layer_to_collect<matrix_images>> sums(ctx);
  memory.sums.for_each(layers, [&](const Layer& layer, const any_matrix& summed, const double*) {
    given.of(layer, [&](const auto& grad_rows) {
      sums.add(rows_to_collect(layer, matrix_images{summed}, any_matrix(layer.grad_router),
                               layer.saved.statuses, passed_on(grad_rows, options)),
               layer.experts.shape().num_experts);
    });
  });
  sums.finish();
}

template <class T, class Comm, class Layer>
void backward_by_neurons(const char* name, const context& ctx, const Comm& comm,
                         std::span<const Layer> layers, gradient_mode mode, const workspace& scratch,
                         const step_options& options, tokens_of_rows tokens) {
  if constexpr (sums_by_backend<Comm>) {
    const sum_memory<float> memory = backward_sum_memory(ctx, layers, mode, tokens, scratch.data);
    expect_sharded_backward(name, layers, scratch, memory.bytes);
    const upstream given(layers, memory.own.sums, upstream_size(layers, tokens));
    given.add_up(ctx, comm, memory.own.mine, memory.own.all);
    backward_by_sums<T>(name, ctx, comm, layers, mode, memory, given, options);
  } else {
    const rank_memory memory = neuron_backward_memory(ctx, layers, comm.size(), mode, tokens, scratch.data);
    expect_sharded_backward(name, layers, scratch, memory.bytes);
    const upstream given(layers, memory.sums, upstream_size(layers, tokens));
    given.add_up(ctx, comm, memory.mine, memory.all);
    backward_by_messages<T>(name, ctx, comm, layers, mode, memory, given, options);
  }
}

MPIROUTER_CUDA_DETAIL_END
