// The rows of routers whose experts are spread over GPUs: every rank multiplies by what it holds, one message
// gathers the parts of all layers, and the kernel that normalises adds them up in the order of the ranks.
#pragma once

#include <mpi_router/distributed/column_forward.cuh>
#include <mpi_router/distributed/neuron_forward.cuh>

#include <span>
#include <type_traits>

MPIROUTER_CUDA_BEGIN

/// One layer of a sharded call on a GPU.
///
/// experts: a shard (distributed/shards.hpp, distributed/decoded_shard.hpp, distributed/packed_run.cuh) of
/// device memory; or, where T is a storage type, a view of the neurons that this rank holds of each expert,
/// [N, F_s, D] in any layout, any number of them. The router [N, D], whole and the same on every rank, and
/// where its rows [N, D] go. told and saved: as of router_rows,
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

  /// Some experts of a view, as a layer.
  [[nodiscard]] sharded_layer middle_experts(index_t first, index_t count) const {
    return {experts.middle_experts(first, count),
            router.middle_rows(first, count),
            rows.middle_rows(first, count),
            detail::from_expert(told, first),
            detail::from_expert(saved, first, router.cols()),
            most};
  }
};
template <class T, class R, class O>
sharded_layer(expert_batch_view<T, device_space>, matrix_view<R, device_space>, matrix_view<O, device_space>,
              step_by_products = {}, saved_step = {}, index_t = 0) -> sharded_layer<T, R, O>;
template <class Shard, class R, class O>
sharded_layer(Shard, matrix_view<R, device_space>, matrix_view<O, device_space>, step_by_products = {},
              saved_step = {}, index_t = 0) -> sharded_layer<Shard, R, O>;

/// Bytes of workspace that sharded_router_rows needs: some 4 · (ranks + 1) · N · (D + 5) for all layers
/// together (of shards with `most` m in place of N), and what router_rows needs of one; of layers that are
/// read by one launch what it needs of all, and a copy of their rows; of columns 8 · (ranks
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

/// The same for a communicator: of backend_sum(comm) some 4 · N · (D + 5) + 8 · N · (D + 1) bytes for all
/// layers in place of what is gathered.
template <DeviceCommunicator Comm, class T, class R, class O>
[[nodiscard]] std::size_t sharded_router_rows_workspace(const context& ctx,
                                                        std::span<const sharded_layer<T, R, O>> layers,
                                                        const Comm& comm) {
  if constexpr (detail::sums_by_backend<Comm> && !detail::is_columns<T>) {
    return detail::forward_sum_memory(ctx, layers, nullptr).bytes;
  } else {
    return sharded_router_rows_workspace(ctx, layers, static_cast<index_t>(comm.size()));
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
/// bits depend on which rank holds what, on the layers of a call and on whether messages go beside the reads,
/// and neither on the network nor on the algorithm of the library below. Columns: two messages, of 8 · Σ N ·
/// F and 8 · Σ N · `most` bytes, two reads of the weights, all in f64, by the generic path.
///
/// Over a PeerCommunicator there is no message: directions and their numbers go to the others as they are
/// made, which all wait for at the end (and at the beginning, until none reads those of the last call). Not
/// for columns. With backend_sum(comm) (distributed/device_sums.cuh) the library below adds.
///
/// Stream-ordered, no synchronisation, no allocation; may be captured in a graph where the message may.
/// Throws usage_error on shapes, overlap, workspace, radius, steps; what `comm` throws passes through.
template <class Comm, class T, class R, class O>
  requires(DeviceCommunicator<Comm> || PeerCommunicator<Comm>)
void sharded_router_rows(const context& ctx, const Comm& comm, std::span<const sharded_layer<T, R, O>> layers,
                         const workspace& scratch, const step_options& options) {
  static_assert(!std::is_const_v<O>, "sharded_router_rows: the output is const");
  constexpr const char* name = "cuda::sharded_router_rows";
  detail::expect_context(name, ctx);
  detail::expect_forward_shapes(name, layers, options);
  if constexpr (detail::is_columns<T>) {
    static_assert(DeviceCommunicator<Comm>, "sharded_router_rows: columns go by messages");
    using value = std::remove_const_t<typename detail::held<T>::element>;
    detail::forward_by_columns<value>(name, ctx, comm, layers, scratch, options);
  } else {
    detail::forward_by_neurons(name, ctx, comm, layers, scratch, options);
  }
}

MPIROUTER_CUDA_END
