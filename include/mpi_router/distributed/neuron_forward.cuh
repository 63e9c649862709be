// The forward over ranks that have neurons: parts of images, which a message brings together, or which go to
// the other ranks as they are made.
#pragma once

#include <mpi_router/cuda/decoded_rows.cuh>
#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/distributed/device_overlap.cuh>
#include <mpi_router/distributed/device_sums.cuh>
#include <mpi_router/distributed/finish_layers.cuh>
#include <mpi_router/distributed/layer_stack.cuh>
#include <mpi_router/distributed/message_groups.cuh>
#include <mpi_router/distributed/peers.cuh>
#include <mpi_router/distributed/sharded_expect.cuh>

#include <algorithm>
#include <span>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What router_rows needs for a batch of `count` experts like this one.
template <class T>
[[nodiscard]] std::size_t forward_bytes(const context& ctx, const expert_batch_view<T, device_space>& like,
                                        index_t count) {
  const auto [n, f, d] = like.shape();
  return forward_path(ctx, {count, f, d}, like.strides(),
                      has_vectors<std::remove_const_t<T>> ? sizeof(T) : sizeof(double), 1, nullptr)
      .bytes;
}

/// The k-th batches of the layers of a message as one.
template <class Layer>
[[nodiscard]] auto forward_stack(const context& ctx, std::span<const Layer> layers, const auto& batch,
                                 const rank_parts& mine, void* data) {
  using value = std::remove_const_t<typename std::remove_cvref_t<decltype(batch.experts)>::element_type>;
  using element = std::remove_const_t<std::remove_pointer_t<decltype(layers.front().router.data())>>;
  const index_t all = batch.experts.num_experts() * static_cast<index_t>(layers.size());
  return layer_stack<value, element>(layers,
                                     neuron_batch<const value>{batch.experts, batch.first, batch.slot}, false,
                                     forward_bytes(ctx, batch.experts, all), mine, data);
}

/// Whether the layers of a message are taken as stacks: the step of one leaves its images to a second kernel.
/// Where it finishes them by itself, the reads of layers follow each other without a gap as it is.
template <class Layer>
[[nodiscard]] bool stack_forward(const context& ctx, std::span<const Layer> layers) {
  if constexpr (!can_stack<Layer>) {
    return false;
  } else {
    if (!make_stacks(layers)) return false;
    const neuron_batches batches(layers.front().experts);
    return std::any_of(batches.begin(), batches.end(), [&](const auto& batch) {
      using T = std::remove_const_t<typename std::remove_cvref_t<decltype(batch.experts)>::element_type>;
      const forward_path path(ctx, batch.experts.shape(), batch.experts.strides(),
                              has_vectors<T> ? sizeof(T) : sizeof(double), 1, nullptr);
      return path.rows.cluster == 0 && path.panels.members == 0;
    });
  }
}

/// Scratch for the parts of the layers of a message.
template <class Layer>
[[nodiscard]] std::size_t forward_scratch(const context& ctx, std::span<const Layer> layers) {
  std::size_t most = 0;
  const bool stacks = stack_forward(ctx, layers);
  for (const Layer& layer : layers) {
    for (const auto& batch : neuron_batches(layer.experts)) {
      if constexpr (can_stack<Layer>) {
        if (stacks) {
          most = std::max(most, forward_stack(ctx, layers, batch, {}, nullptr).bytes);
          continue;
        }
      }
      most = std::max(most, router_rows_workspace(ctx, batch.experts));
    }
    if (stacks) break;
  }
  return most;
}

template <class Layer>
[[nodiscard]] rank_memory neuron_forward_memory(const context& ctx, std::span<const Layer> layers,
                                                index_t ranks, void* data) {
  std::size_t scratch = 0;
  const auto use = [&](const auto& group) {
    scratch = std::max(scratch, forward_scratch(ctx, group.layers));
  };
  for_each_message<false>(layers, use);
  for_each_message<true>(layers, use);
  return {size_of_messages(layers), 0, ranks, scratch, data};
}

/// Whether the rows of a step may be read while what is ahead in the stream still runs.
template <class Layers>
[[nodiscard]] bool rows_at_rest(const context& ctx, const Layers& layers) {
  return ctx.inputs_at_rest && std::none_of(layers.begin(), layers.end(), [](const auto& layer) {
           return is_in_place(layer.router, layer.rows);
         });
}

/// Where a step leaves the numbers of its parts.
[[nodiscard]] inline step_by_products numbers_of(const rank_parts& parts, index_t slot) {
  step_by_products told;
  told.image_norm = parts.norms + slot;
  told.energy = parts.energies + slot;
  told.statuses = parts.statuses + slot;
  return told;
}

/// A step whose rows and numbers go to the other ranks too, if they can be reached.
template <class T, class R>
void step_to_peers(const context& ctx, const expert_batch_view<T, device_space>& experts,
                   const matrix_view<R, device_space>& router, const matrix_view<float, device_space>& to,
                   const step_by_products& told, const workspace& scratch, const step_options& options,
                   const peer_copies& peers) {
  using value = std::remove_const_t<T>;
  forward<value>("cuda::sharded_router_rows", ctx, experts, router, to, told, {}, scratch, options, peers);
}

/// The same of experts that are decoded as they are read.
template <class Rows, class R>
void step_to_peers(const context& ctx, const decoded_experts<Rows>& experts,
                   const matrix_view<R, device_space>& router, const matrix_view<float, device_space>& to,
                   const step_by_products& told, const workspace& scratch, const step_options& options,
                   const peer_copies& peers) {
  forward("cuda::sharded_router_rows", ctx, experts, router, to, told, {}, scratch, options, peers);
}

/// The parts of layers that are alike: one launch for all.
template <class Layer>
void take_stacked_parts(context& ctx, std::span<const Layer> layers, const rank_parts& mine,
                        const workspace& scratch, const step_options& alone, const peer_copies& peers) {
  const index_t pitch = rank_message::pitch_of(layers.front());
  context after = ctx;
  after.inputs_at_rest = false;  // the stack's rows were written just before
  index_t k = 0;
  for (const auto& batch : neuron_batches(layers.front().experts)) {
    const auto stack = forward_stack(ctx, layers, batch, mine, scratch.data);
    stack.put_together(after, layers, [&](const Layer& layer) {
      const auto own = neuron_batches(layer.experts)[k];
      return stack_part{expert_addresses(own.experts),
                        {},
                        any_matrix(layer.router.middle_rows(own.first, own.experts.num_experts())),
                        {},
                        {}};
    });
    const auto to = stack.directions(pitch);
    step_to_peers(after, stack.experts, stack.router, to, numbers_of(stack.parts, 0), stack.rest, alone,
                  stack.apart ? peer_copies{} : peers);
    stack.send(after, mine, pitch, peers);
    ++k;
  }
  ctx.inputs_at_rest = true;
}

/// This rank's parts of the layers of a message. Afterwards the inputs of all are at rest.
template <class Group>
void take_parts(context& ctx, const Group& group, const rank_memory& memory, const step_options& options,
                const peer_copies& peers) {
  step_options alone = options;
  alone.radius = router_radius::fixed(1);
  alone.degenerate = degenerate_row::zero;
  if constexpr (can_stack<typename Group::layer>) {
    if (stack_forward(ctx, group.layers)) {
      return take_stacked_parts(ctx, group.layers, group.message.parts(memory.mine, 0, 0, 0, false),
                                memory.scratch, alone, peers);
    }
  }
  for_each_part(group.layers, group.message, memory,
                [&](const auto& layer, const rank_parts& mine, const auto&) {
                  for (const auto& batch : neuron_batches(layer.experts)) {
                    const index_t count = batch.experts.num_experts();
                    const auto to = directions_of(layer, mine, batch.slot, count);
                    step_to_peers(ctx, batch.experts, layer.router.middle_rows(batch.first, count), to,
                                  numbers_of(mine, batch.slot), memory.scratch, alone, peers);
                    if (count > 0)
                      ctx.inputs_at_rest = true;  // what all of them read is there, or waited for
                  }
                });
}

/// The rows of all layers, from what the ranks have made.
template <bool apart, class Layer>
void finish_rows(const context& ctx, std::span<const Layer> layers, const rank_memory& memory, index_t ranks,
                 const step_options& options) {
  layers_finisher<layer_to_finish<rank_images>> finisher(ctx);
  for_each_message<apart>(layers, [&](const auto& group) {
    for_each_part(
        group.layers, group.message, memory.from(group.at, ranks),
        [&](const auto& layer, const auto&, const rank_parts& all) {
          const double radius = options.radius.of(std::max<index_t>(total_experts(layer.experts), 1));
          finisher.add(
              {images_of(layer, group.message, all, ranks), finish_of(layer, radius, options.degenerate)},
              layer.experts.shape().num_experts);
        });
  });
  finisher.finish();
}

/// By messages, after the reads or beside them.
template <class Comm, class Layer>
void forward_by_messages(const context& ctx, const Comm& comm, std::span<const Layer> layers,
                         const rank_memory& memory, const step_options& options) {
  constexpr bool apart = StartingDeviceCommunicator<Comm>;
  const index_t ranks = comm.size();
  context reading = ctx;
  reading.inputs_at_rest = rows_at_rest(ctx, layers);
  for_each_message<apart>(layers, [&](const auto& group) {
    const rank_memory here = memory.from(group.at, ranks);
    put_places(reading, group.layers, reinterpret_cast<rank_place*>(here.mine + group.message.first_place));
    take_parts(reading, group, here, options, {});
    start_gather(ctx, comm, here.mine, here.all, group.message.size);
  });
  if (rank_message(layers).slots > 0) wait_for_messages(ctx, comm);
  finish_rows<apart>(ctx, layers, memory, ranks, options);
}

/// What a rank makes goes to all ranks as it is made; a meeting makes it the message.
template <class Comm, class Layer>
void forward_to_peers(const context& ctx, const Comm& comm, std::span<const Layer> layers,
                      const rank_memory& memory, const step_options& options) {
  const index_t ranks = comm.size();
  if constexpr (requires { comm.expect_holds(memory.all, std::size_t{}); }) {
    comm.expect_holds(memory.all,
                      static_cast<std::size_t>(ranks * rank_message(layers).size) * sizeof(float));
  }
  context reading = ctx;
  reading.inputs_at_rest = is_at_rest_after_meet<Comm>() || rows_at_rest(ctx, layers);
  for_each_message<false>(layers, [&](const auto& group) {
    const rank_memory here = memory.in_place(comm.rank(), group.message.size);
    const peer_copies peers{here.peers, static_cast<int>(ranks - 1), here.mine};
    comm.meet(ctx, here.mine, here.peers);  // none reads what it was sent in the last call any more
    put_places(ctx, group.layers, reinterpret_cast<rank_place*>(here.mine + group.message.first_place),
               peers);
    take_parts(reading, group, here, options, peers);
    comm.meet(ctx, nullptr, nullptr);
  });
  finish_rows<false>(ctx, layers, memory, ranks, options);
}

template <class Layer>
[[nodiscard]] sum_memory<double> forward_sum_memory(const context& ctx, std::span<const Layer> layers,
                                                    void* data) {
  std::size_t scratch = 0;
  for_each_message<false>(layers, [&](const auto& all) { scratch = forward_scratch(ctx, all.layers); });
  return {layers, 0, scratch, true, data};
}

/// The images of all layers as the library below adds them.
template <class Comm, class Layer>
void forward_by_sums(const context& ctx, const Comm& comm, std::span<const Layer> layers,
                     const sum_memory<double>& memory, const step_options& options) {
  context reading = ctx;
  reading.inputs_at_rest = rows_at_rest(ctx, layers);
  for_each_message<false>(layers, [&](const auto& all) {
    put_places(reading, all.layers, reinterpret_cast<rank_place*>(memory.own.mine + all.message.first_place));
    take_parts(reading, all, memory.own, options, {});
    memory.sums.put(ctx, layers, all.message, memory.own, false);
  });
  add_by_backend(ctx, comm, memory.sums.rows, memory.sums.count);
  layers_finisher<layer_to_finish<matrix_images>> finisher(ctx);
  memory.sums.for_each(layers, [&](const Layer& layer, const any_matrix& images, const double* energies) {
    const double radius = options.radius.of(std::max<index_t>(total_experts(layer.experts), 1));
    finisher.add({{images, energies}, finish_of(layer, radius, options.degenerate)},
                 layer.experts.shape().num_experts);
  });
  finisher.finish();
}

template <class Comm, class Layer>
void forward_by_neurons(const char* name, const context& ctx, const Comm& comm, std::span<const Layer> layers,
                        const workspace& scratch, const step_options& options) {
  expect(rank_message(layers).slots <= most_extent, name, ": more than 2^30 - 1 experts");
  if constexpr (sums_by_backend<Comm>) {
    const sum_memory<double> memory = forward_sum_memory(ctx, layers, scratch.data);
    expect_sharded_forward(name, layers, scratch, memory.bytes);
    forward_by_sums(ctx, comm, layers, memory, options);
  } else {
    const rank_memory memory = neuron_forward_memory(ctx, layers, comm.size(), scratch.data);
    expect_sharded_forward(name, layers, scratch, memory.bytes);
    if constexpr (PeerCommunicator<Comm>) {
      forward_to_peers(ctx, comm, layers, memory, options);
    } else {
      forward_by_messages(ctx, comm, layers, memory, options);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
