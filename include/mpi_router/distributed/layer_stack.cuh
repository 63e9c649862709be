// Layers that are alike as one batch: a launch for each would cost more than the reading of a small part of
// its weights. A kernel puts the addresses of the experts in a table and the rows one below the other.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/distributed/held.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <algorithm>
#include <span>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Experts one after the other, or a table of them, of any element type. Steps in bytes.
struct expert_addresses {
  unsigned char* data = nullptr;
  unsigned char* const* table = nullptr;
  long long step = 0;

  expert_addresses() = default;
  template <class T>
  explicit expert_addresses(const expert_batch_view<T, device_space>& experts)
      : data(reinterpret_cast<unsigned char*>(const_cast<std::remove_const_t<T>*>(experts.data()))),
        table(reinterpret_cast<unsigned char* const*>(
            const_cast<std::remove_const_t<T>* const*>(experts.table()))),
        step(experts.strides().expert * static_cast<long long>(sizeof(T))) {}
  [[nodiscard]] __device__ __forceinline__ unsigned char* of(int e) const {
    return table != nullptr ? table[e] : data + e * step;
  }
};

/// What a layer brings to a stack, and the stack itself: the experts and their rows; for a backward the
/// gradients of the experts, ḡ, and what the forward saved.
struct stack_part {
  expert_addresses weights;
  expert_addresses gradients;
  any_matrix router;
  any_matrix grad_rows;
  saved_step saved;
};
struct stack_args {
  static constexpr int most = 20;
  stack_part from[most];
  unsigned char** weights;    // the tables of the stack
  unsigned char** gradients;  // null: a forward
  any_matrix router;
  any_matrix grad_rows;
  saved_step saved;
  int each;   // experts of a layer
  int first;  // expert of the stack
  int hidden;
};
static_assert(sizeof(stack_args) <= most_argument_bytes, "a kernel takes no more");

__device__ __forceinline__ void copy_row(const any_matrix& from, int row, const any_matrix& to, int to_row,
                                         int hidden) {
  for (int column = static_cast<int>(threadIdx.x) * 4; column < hidden;
       column += static_cast<int>(blockDim.x) * 4) {
    double x[4];
    from.load_four(row, column, hidden, x);
    to.store_four(to_row, column, hidden, x);
  }
}

/// A block for each expert.
template <class = void>
__global__ void __launch_bounds__(generic_threads) stack_kernel(const __grid_constant__ stack_args a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  const stack_part& from = a.from[block / a.each];
  const int e = block % a.each;
  const int to = a.first + block;
  if (threadIdx.x == 0) a.weights[to] = from.weights.of(e);
  copy_row(from.router, e, a.router, to, a.hidden);
  if (a.gradients == nullptr) return;
  if (threadIdx.x == 0) {
    a.gradients[to] = from.gradients.of(e);
    a.saved.image_norm[to] = from.saved.image_norm[e];
    a.saved.statuses[to] = from.saved.statuses[e];
  }
  copy_row(from.grad_rows, e, a.grad_rows, to, a.hidden);
  const long long hidden = a.hidden;
  for (int column = static_cast<int>(threadIdx.x); column < a.hidden;
       column += static_cast<int>(blockDim.x)) {
    a.saved.direction[to * hidden + column] = from.saved.direction[e * hidden + column];
  }
}

/// From a stack to the slots of a message: a layer's experts have slots first, first + 1, … of its own.
struct unstack_args {
  rank_parts from;
  rank_parts to;
  int each;
  int slots;  // of a layer
  int first;
  int pitch;
  peer_copies peers;  // of `to`
};
template <class = void>
__global__ void __launch_bounds__(generic_threads) unstack_kernel(const __grid_constant__ unstack_args a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  const int slot = block / a.each * a.slots + a.first + block % a.each;
  const auto* const from = reinterpret_cast<const float4*>(a.from.directions);
  auto* const to = reinterpret_cast<float4*>(a.to.directions);
  const int fours = a.pitch / 4;
  for (int i = static_cast<int>(threadIdx.x); i < fours; i += static_cast<int>(blockDim.x)) {
    const float4 x = from[static_cast<long long>(block) * fours + i];
    const long long at = static_cast<long long>(slot) * fours + i;
    to[at] = x;
    a.peers.store(to + at, x);
  }
  const auto put = [&a](auto* at, const auto& value) {
    *at = value;
    a.peers.store(at, value);
  };
  if (threadIdx.x == 0 && a.from.norms != nullptr) {
    put(a.to.norms + slot, a.from.norms[block]);
    put(a.to.energies + slot, a.from.energies[block]);
    put(a.to.statuses + slot, a.from.statuses[block]);
  }
  a.peers.settle();
}

template <class A, class B>
[[nodiscard]] bool have_one_form(const neuron_batch<A>& a, const neuron_batch<B>& b) {
  const expert_strides& s = a.experts.strides();
  const expert_strides& t = b.experts.strides();
  return a.experts.shape() == b.experts.shape() && s.ffn == t.ffn && s.hidden == t.hidden &&
         a.first == b.first && a.slot == b.slot;
}
template <class Held>
[[nodiscard]] bool are_alike(const Held& a, const Held& b) {
  const neuron_batches p(a);
  const neuron_batches q(b);
  return a.shape() == b.shape() && total_experts(a) == total_experts(b) && p.size() == q.size() &&
         std::equal(p.begin(), p.end(), q.begin(),
                    [](const auto& x, const auto& y) { return have_one_form(x, y); });
}

/// Whether layers of this kind can: their experts lie in memory as they are.
template <class Layer>
inline constexpr bool can_stack = !is_decoded<decltype(Layer::experts)>;

/// Whether the layers of a message make stacks: there are several, which differ in nothing but addresses, and
/// all have neurons.
template <class Layer>
[[nodiscard]] bool make_stacks(std::span<const Layer> layers) {
  if (layers.size() < 2) return false;
  const Layer& first = layers.front();
  const neuron_batches batches(first.experts);
  return std::none_of(batches.begin(), batches.end(), [](const auto& b) { return b.experts.empty(); }) &&
         std::all_of(layers.begin() + 1, layers.end(), [&](const Layer& layer) {
           if constexpr (requires { layer.grad_experts; }) {
             if (!are_alike(layer.grad_experts, first.grad_experts)) return false;
           }
           return layer.most == first.most && are_alike(layer.experts, first.experts);
         });
}

/// The k-th batches of layers that are alike, as one.
template <class T, class R, class G = T, class U = float>
struct layer_stack {
  expert_batch_view<const T, device_space> experts;
  expert_batch_view<G, device_space> gradients;
  matrix_view<R, device_space> router;
  matrix_view<U, device_space> grad_rows;
  saved_step saved;
  rank_parts parts{};  // where they go: the message itself, or memory from which they are sent to its slots
  bool apart = false;
  workspace rest;  // of the workspace
  std::size_t bytes = 0;

  /// Without data it only counts. `backward`: the gradients are wanted. `rest_bytes`: of a call of the whole.
  template <class Layer>
  layer_stack(std::span<const Layer> layers, const neuron_batch<const T>& batch, bool backward,
              std::size_t rest_bytes, const rank_parts& message, void* data)
      : each_(batch.experts.num_experts()),
        slot_(batch.slot),
        slots_(rank_message::slots_of(layers.front())) {
    const auto [n, f, d] = batch.experts.shape();
    const index_t all = n * static_cast<index_t>(layers.size());
    const index_t pitch = rank_message::pitch_of(layers.front());
    arena memory(data);
    weight_table_ = memory.take<unsigned char*>(all);
    R* const rows = memory.take<R>(all * d);
    U* upstream = nullptr;
    if (backward) {
      gradient_table_ = memory.take<unsigned char*>(all);
      upstream = memory.take<U>(all * d);
      saved = {memory.take<float>(all * d), memory.take<double>(all), memory.take<status>(all)};
    }
    apart = each_ != slots_;
    parts = message;
    if (apart) {
      parts = {memory.take<float>(all * pitch), nullptr, nullptr, nullptr, nullptr};
      if (!backward) {
        parts.norms = memory.take<double>(all);
        parts.energies = memory.take<double>(all);
        parts.statuses = memory.take<status>(all);
      }
    }
    rest = {memory.take<unsigned char>(static_cast<index_t>(rest_bytes)), rest_bytes};
    bytes = memory.used();
    if (data == nullptr) return;
    experts = {reinterpret_cast<const T* const*>(weight_table_), {all, f, d}, batch.experts.strides()};
    router = {rows, all, d, d, 1};
    if (backward) grad_rows = {upstream, all, d, d, 1};
  }

  /// The gradients, laid out like those of a batch.
  void put_gradients(const expert_batch_view<G, device_space>& like) {
    if (gradient_table_ == nullptr) return;
    gradients = {reinterpret_cast<G* const*>(gradient_table_), experts.shape(), like.strides()};
  }
  [[nodiscard]] matrix_view<float, device_space> directions(index_t pitch) const {
    return {parts.directions, experts.num_experts(), experts.hidden_dim(), pitch, 1};
  }
  /// part(layer) for each, put together.
  template <class Layer, class Part>
  void put_together(const context& ctx, std::span<const Layer> layers, const Part& part) const {
    stack_args args{};
    args.weights = weight_table_;
    args.gradients = gradient_table_;
    args.router = any_matrix(router);
    args.grad_rows = any_matrix(grad_rows);
    args.saved = saved;
    args.each = static_cast<int>(each_);
    args.hidden = static_cast<int>(experts.hidden_dim());
    int count = 0;
    const auto put = [&] {
      if (count == 0) return;
      const launch_shape shape{static_cast<unsigned>(count) * static_cast<unsigned>(each_), generic_threads};
      launch("stack_kernel", ctx, shape, stack_kernel<>, args);
      args.first += static_cast<int>(shape.blocks);
      count = 0;
    };
    for (const Layer& layer : layers) {
      args.from[count++] = part(layer);
      if (count == stack_args::most) put();
    }
    put();
  }
  /// To the slots of the message, where they are not there already.
  void send(const context& ctx, const rank_parts& message, index_t pitch,
            const peer_copies& peers = {}) const {
    if (!apart) return;
    launch("unstack_kernel", ctx, {static_cast<unsigned>(experts.num_experts()), generic_threads},
           unstack_kernel<>,
           unstack_args{parts, message, static_cast<int>(each_), static_cast<int>(slots_),
                        static_cast<int>(slot_), static_cast<int>(pitch), peers});
  }

 private:
  unsigned char** weight_table_ = nullptr;
  unsigned char** gradient_table_ = nullptr;
  index_t each_;
  index_t slot_;
  index_t slots_;
};

MPIROUTER_CUDA_DETAIL_END
