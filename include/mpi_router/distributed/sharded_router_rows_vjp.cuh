// The gradients of routers whose experts are spread over GPUs: those of the weights stay where the weights
// are, those of the routers are added in the order of the ranks.
#pragma once

#include <mpi_router/distributed/column_backward.cuh>
#include <mpi_router/distributed/neuron_backward.cuh>

#include <span>
#include <type_traits>

MPIROUTER_CUDA_BEGIN

/// The backward of sharded_router_rows for one layer: `saved` is what the forward left, grad_rows = ḡ [N, D],
/// grad_router [N, D] where the router's gradient goes, grad_experts that of what this rank holds: a shard of
/// the same placement (a view, where experts is one), in any layout and storage type; of experts that are
/// decoded as they are read gradient_factors of what is here (G is gradient_factors), any of them null,
/// none written where no neuron is here (of a run of rows y and w [rows], of columns y and w [N, F], sums
/// over the ranks, and z̄ [N, columns here]); mode then does not matter. most: as of the forward.
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

/// The same for a communicator, backend_sum(comm) among them.
template <DeviceCommunicator Comm, class T, class G, class R, class U, class V>
[[nodiscard]] std::size_t sharded_router_rows_vjp_workspace(
    const context& ctx, std::span<const sharded_layer_vjp<T, G, R, U, V>> layers, const Comm& comm,
    gradient_mode mode, tokens_of_rows tokens = tokens_of_rows::same_on_all_ranks) {
  if constexpr (detail::sums_by_backend<Comm> && !detail::is_columns<T>) {
    return detail::backward_sum_memory(ctx, layers, mode, tokens, nullptr).bytes;
  } else {
    return sharded_router_rows_vjp_workspace(ctx, layers, static_cast<index_t>(comm.size()), mode, tokens);
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
