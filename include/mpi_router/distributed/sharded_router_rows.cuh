// The rows of routers whose neurons are spread over GPUs: every rank multiplies by what it holds, one message
// gathers the parts of all layers, and the kernel that normalises adds them up in the order of the ranks.
#pragma once

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/cuda/router_rows_vjp.cuh>

#include <algorithm>
#include <span>

MPIROUTER_BEGIN_TYPES

/// A communicator of GPUs, which the caller owns and the library borrows: as Communicator, on a stream.
/// `all_gather(mine, all, stream)` moves the numbers bit for bit (some are no floats), is enqueued when it
/// returns, waits for nothing on the host, allocates nothing, and may be captured in a graph.
/// distributed/nccl.cuh adapts ncclComm_t.
template <class C>
concept DeviceCommunicator =
    requires(const std::remove_cvref_t<C>& comm, vector_view<const float, device_space> mine,
             vector_view<float, device_space> all, cuda::stream_t stream) {
      { comm.rank() } -> std::convertible_to<index_t>;
      { comm.size() } -> std::convertible_to<index_t>;
      comm.all_gather(mine, all, stream);
    };

MPIROUTER_END_TYPES

MPIROUTER_CUDA_DETAIL_BEGIN

/// What a rank sends of each expert: its part of the image as a direction, so that a float holds it whatever
/// its scale, with the norm of it, the energy and what became of it; or of a gradient as it is, with no
/// norms.
struct rank_parts {
  float* directions;  // of the first rank, as all that follows; the next is `stride` floats on
  double* norms;      // null: 1
  double* energies;
  status* statuses;

  [[nodiscard]] __device__ __forceinline__ double norm(int expert, long long rank_at) const {
    if (norms == nullptr) return 1.0;
    const status* const states = statuses + rank_at * static_cast<long long>(sizeof(float));
    return states[expert] == status::non_finite ? nan("") : norms[rank_at / 2 + expert];
  }
};

/// Images in parts, one from each rank, added in the order of the ranks.
struct rank_images {
  rank_parts parts;
  long long stride;
  int pitch;
  int ranks;

  struct row {
    const rank_images& of;
    int expert;
    int hidden;

    [[nodiscard]] __device__ __forceinline__ double energy() const {
      double total = 0.0;
      for (int r = 0; r < of.ranks; ++r) {
        total += of.parts.energies[r * (of.stride / 2) + expert];
      }
      return total;
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
      out[0] = out[1] = out[2] = out[3] = 0.0;
      const float* part = of.parts.directions + static_cast<long long>(expert) * of.pitch + column;
#pragma unroll 2
      for (int r = 0; r < of.ranks; ++r, part += of.stride) {
        const double norm = of.parts.norm(expert, r * of.stride);
        const float4 x = *reinterpret_cast<const float4*>(part);
        out[0] = fma(norm, double{x.x}, out[0]);
        out[1] = fma(norm, double{x.y}, out[1]);
        out[2] = fma(norm, double{x.z}, out[2]);
        out[3] = fma(norm, double{x.w}, out[3]);
      }
#pragma unroll
      for (int i = 1; i < 4; ++i) {
        out[i] = column + i < hidden ? out[i] : 0.0;  // the padding of a row means nothing
      }
    }
  };
  [[nodiscard]] __device__ __forceinline__ row of(int expert, int hidden) const {
    return {*this, expert, hidden};
  }
};

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

/// Where the parts of all layers lie in what one rank sends: energies, norms and statuses of all experts,
/// then the directions, padded to whole vectors of four.
struct rank_message {
  index_t experts = 0;
  index_t first_status = 0;  // floats, as all that follows
  index_t first_direction = 0;
  index_t size = 0;  // from one rank to the next, a multiple of 64

  template <class Layers>
  explicit rank_message(const Layers& layers) {
    index_t directions = 0;
    for (const auto& layer : layers) {
      experts += layer.experts.num_experts();
      directions += layer.experts.num_experts() * pitch_of(layer);
    }
    first_status = 4 * experts;
    first_direction = whole_lines(first_status + (experts + 3) / 4);
    size = first_direction + whole_lines(directions);
  }
  template <class Layer>
  [[nodiscard]] static index_t pitch_of(const Layer& layer) {
    return (layer.experts.hidden_dim() + 3) / 4 * 4;
  }
  /// Of a layer that begins at an expert and a direction, in the message at `at`.
  [[nodiscard]] rank_parts parts(float* at, index_t expert, index_t direction) const {
    auto* const numbers = reinterpret_cast<double*>(at);
    return {at + first_direction + direction, numbers + experts + expert, numbers + expert,
            reinterpret_cast<status*>(at + first_status) + expert};
  }

 private:
  [[nodiscard]] static index_t whole_lines(index_t floats) { return (floats + 63) / 64 * 64; }
};
static_assert(sizeof(status) == 1);

/// The workspace of a sharded call: what this rank sends, what it receives, and scratch of one layer at a
/// time.
struct rank_memory {
  float* mine = nullptr;
  float* all = nullptr;
  workspace scratch;
  std::size_t bytes = 0;

  rank_memory(const rank_message& message, index_t ranks, std::size_t scratch_bytes, void* data) {
    arena memory(data);
    mine = memory.take<float>(message.size);
    all = memory.take<float>(ranks * message.size);
    scratch = {memory.take<unsigned char>(static_cast<index_t>(scratch_bytes)), scratch_bytes};
    bytes = memory.used();
  }
};

/// Calls use(layer, mine, all) for each: where its parts lie in what this rank sends, and in what all send.
template <class Layers, class Use>
void for_each_part(const Layers& layers, const rank_message& message, const rank_memory& memory,
                   const Use& use) {
  index_t expert = 0;
  index_t direction = 0;
  for (const auto& layer : layers) {
    use(layer, message.parts(memory.mine, expert, direction), message.parts(memory.all, expert, direction));
    expert += layer.experts.num_experts();
    direction += layer.experts.num_experts() * rank_message::pitch_of(layer);
  }
}

template <class Layer>
[[nodiscard]] matrix_view<float, device_space> directions_of(const Layer& layer, const rank_parts& parts) {
  return {parts.directions, layer.experts.num_experts(), layer.experts.hidden_dim(),
          rank_message::pitch_of(layer), 1};
}

template <class Layer>
[[nodiscard]] rank_images images_of(const Layer& layer, const rank_message& message, const rank_parts& all,
                                    index_t ranks) {
  return {all, message.size, static_cast<int>(rank_message::pitch_of(layer)), static_cast<int>(ranks)};
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

/// The most scratch that one layer needs.
template <class Layers, class Bytes>
[[nodiscard]] std::size_t most_scratch(const Layers& layers, const Bytes& bytes_of_layer) {
  std::size_t most = 0;
  for (const auto& layer : layers) {
    most = std::max(most, bytes_of_layer(layer));
  }
  return most;
}

template <class Layers>
[[nodiscard]] rank_memory sharded_forward_memory(const context& ctx, const Layers& layers, index_t ranks,
                                                 void* data) {
  const auto bytes = [&](const auto& layer) { return router_rows_workspace(ctx, layer.experts); };
  return {rank_message(layers), ranks, most_scratch(layers, bytes), data};
}
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

template <class Comm>
void gather_parts(const context& ctx, const Comm& comm, const rank_message& message,
                  const rank_memory& memory, index_t ranks) {
  comm.all_gather(vector_view<const float, device_space>(memory.mine, message.size),
                  vector_view<float, device_space>(memory.all, ranks * message.size), ctx.stream);
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
