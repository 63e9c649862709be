// The gradients of routers whose neurons are spread over GPUs: those of the weights stay where the weights
// are, those of the routers are added in the order of the ranks.
#pragma once

#include <mpi_router/cuda/router_rows_vjp.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <initializer_list>
#include <span>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class Layers>
[[nodiscard]] rank_memory sharded_backward_memory(const context& ctx, const Layers& layers, index_t ranks,
                                                  gradient_mode mode, void* data) {
  const auto bytes = [&](const auto& layer) {
    return router_rows_vjp_workspace(ctx, layer.experts, layer.grad_experts, mode);
  };
  return {rank_message(layers), ranks, most_scratch(layers, bytes), data};
}

/// What one call of router_rows_vjp refuses, for every layer before any has begun and on ranks without
/// neurons too; and what is written lies apart from all that the other layers read.
template <class Layers>
void expect_sharded_backward(const char* name, const Layers& layers, const workspace& scratch,
                             std::size_t bytes, const step_options& options) {
  expect(options.steps == 1, name, ": the gradient of ", options.steps,
         " steps; take it of one step at a time");
  expect(options.through != differentiate::none, name,
         ": nothing is differentiated, as options.through says");
  for (const auto& layer : layers) {
    using weight = std::remove_const_t<std::remove_pointer_t<decltype(layer.experts.data())>>;
    const expert_batch_view<const weight, device_space> experts = layer.experts;
    const expert_shape a = experts.shape(), b = layer.grad_experts.shape();
    expect(a == b, name, ": gradient of shape [", b.num_experts, ", ", b.ffn_dim, ", ", b.hidden_dim,
           "] for experts [", a.num_experts, ", ", a.ffn_dim, ", ", a.hidden_dim, "]");
    expect_experts(name, experts);
    static_cast<void>(expect_radius(name, options, experts.total_experts()));
    expect_rows(name, "the gradient to the router", experts, layer.grad_router);
    expect_backward(name, experts, layer.router, layer.saved, layer.grad_rows, layer.grad_router,
                    layer.grad_experts, {}, scratch, bytes);
    const named_range to_router{"the gradient to the router", core::addresses(layer.grad_router)};
    for (const auto& other : layers) {
      const index_t n = other.experts.num_experts(), size = n * other.experts.hidden_dim();
      const std::initializer_list<named_range> read{
          {"the router of another layer", core::addresses(other.router)},
          {"the gradient of the rows of another layer", core::addresses(other.grad_rows)},
          {"the saved direction of another layer", addresses_of(other.saved.direction, size)},
          {"the saved norms of another layer", addresses_of(other.saved.image_norm, n)},
          {"the saved statuses of another layer", addresses_of(other.saved.statuses, n)}};
      expect_apart(name, to_router, read);
      expect_weights_apart(name, layer.grad_experts, read);
      if (&other == &layer) continue;
      expect_apart(name, to_router, {{"the gradient to another router", core::addresses(other.grad_router)}});
      expect_weights_apart(name, other.experts, {to_router});
      expect_weights_apart(name, other.grad_experts, {to_router});
      if (layer.grad_experts.table() == nullptr) {
        const named_range mine{"the gradient to the experts", core::addresses(layer.grad_experts)};
        expect_weights_apart(name, other.experts, {mine});
        expect_weights_apart(name, other.grad_experts, {mine});
      }
    }
  }
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// The backward of sharded_router_rows for one layer: `saved` is what the forward left, grad_rows = ḡ [N, D]
/// the same on every rank, grad_router [N, D] where its gradient goes, grad_experts [N, F_s, D] that of the
/// neurons here.
template <class T, class G, class R, class U, class V>
struct sharded_layer_vjp {
  expert_batch_view<T, device_space> experts;
  matrix_view<R, device_space> router;
  saved_step saved;
  matrix_view<U, device_space> grad_rows;
  matrix_view<V, device_space> grad_router;
  expert_batch_view<G, device_space> grad_experts;
};

/// Bytes of workspace that sharded_router_rows_vjp needs.
template <class T, class G, class R, class U, class V>
[[nodiscard]] std::size_t sharded_router_rows_vjp_workspace(
    const context& ctx, std::span<const sharded_layer_vjp<T, G, R, U, V>> layers, index_t ranks,
    gradient_mode mode) {
  return detail::sharded_backward_memory(ctx, layers, ranks, mode, nullptr).bytes;
}

/// The gradients of sharded_router_rows: grad_experts of the neurons here needs no message, for y = A r, w =
/// A z̄ and z̄ are at hand; grad_router = z̄ M is the sum over the ranks, the same bits on each. One message as
/// of the forward. Otherwise as router_rows_vjp and sharded_router_rows.
template <DeviceCommunicator Comm, class T, class G, class R, class U, class V>
void sharded_router_rows_vjp(const context& ctx, const Comm& comm,
                             std::span<const sharded_layer_vjp<T, G, R, U, V>> layers, gradient_mode mode,
                             const workspace& scratch, const step_options& options) {
  static_assert(!std::is_const_v<V>, "sharded_router_rows_vjp: an output is const");
  constexpr const char* name = "cuda::sharded_router_rows_vjp";
  const index_t ranks = comm.size();
  const detail::rank_message message(layers);
  const auto memory = detail::sharded_backward_memory(ctx, layers, ranks, mode, scratch.data);
  detail::expect_workspace(name, scratch, memory.bytes);
  detail::expect_sharded_backward(name, layers, scratch, memory.bytes, options);
  if (message.experts == 0) return;
  detail::for_each_part(layers, message, memory, [&](const auto& layer, const auto& mine, const auto&) {
    const auto part = detail::directions_of(layer, mine);
    if (layer.experts.empty()) {  // alone it would pass on what rows without a step are given
      return detail::set_zero(name, ctx, part.data(), part.rows() * part.row_stride());
    }
    router_rows_vjp(ctx, layer.experts, layer.router, layer.saved, layer.grad_rows, part, layer.grad_experts,
                    mode, memory.scratch, options);
  });
  detail::gather_parts(ctx, comm, message, memory, ranks);
  detail::for_each_part(layers, message, memory, [&](const auto& layer, const auto&, detail::rank_parts all) {
    if (layer.experts.num_experts() == 0) return;
    const bool keeps = options.degenerate == degenerate_row::keep;
    all.norms = nullptr;  // gradients come as they are
    detail::collect(
        ctx, layer.experts.num_experts(),
        detail::collect_args<detail::rank_images>{
            detail::images_of(layer, message, all, ranks), detail::any_matrix(layer.grad_router), nullptr,
            layer.saved.statuses, keeps ? detail::any_matrix(layer.grad_rows) : detail::any_matrix(),
            static_cast<int>(layer.experts.hidden_dim())});
  });
}

MPIROUTER_CUDA_END
