// Sums over GPUs that the library below makes, in place of parts that are gathered and added in the order of
// the ranks.
#pragma once

#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/distributed/device_overlap.cuh>
#include <mpi_router/distributed/finish_layers.cuh>
#include <mpi_router/distributed/rank_message.cuh>

#include <concepts>
#include <span>
#include <type_traits>
#include <utility>

MPIROUTER_CUDA_BEGIN

/// A DeviceCommunicator with a sum of its own: `all_reduce_sum(sums, stream)` replaces the elements, of float
/// or of double, by their sums over all ranks, the same bits on each, in whatever order it likes. Enqueued as
/// all_gather is.
template <class C>
concept SummingDeviceCommunicator =
    DeviceCommunicator<C> &&
    requires(const std::remove_cvref_t<C>& comm, vector_view<float, device_space> sums,
             vector_view<double, device_space> double_sums, stream_t stream) {
      comm.all_reduce_sum(sums, stream);
      comm.all_reduce_sum(double_sums, stream);
    };

/// A communicator whose own reduction is to add. Build it with backend_sum().
template <SummingDeviceCommunicator C>
class device_backend_sum {
 public:
  explicit device_backend_sum(C comm) : comm_(std::move(comm)) {}
  [[nodiscard]] index_t rank() const { return static_cast<index_t>(comm_.rank()); }
  [[nodiscard]] index_t size() const { return static_cast<index_t>(comm_.size()); }
  void all_gather(vector_view<const float, device_space> mine, vector_view<float, device_space> all,
                  stream_t stream) const {
    comm_.all_gather(mine, all, stream);
  }
  template <std::floating_point S>
  void all_reduce_sum(vector_view<S, device_space> sums, stream_t stream) const {
    comm_.all_reduce_sum(sums, stream);
  }

 private:
  C comm_;
};

/// The same communicator, with which sharded_router_rows and its backward take sums as its library makes
/// them. Of neurons and rows the images of all layers are summed in f64, 8 · Σ N · (D + 1) bytes, of which a
/// rank sends and receives up to twice as many: less than the 4 · (ranks − 1) · Σ N · (D + 5) of a gather
/// from about five ranks on. Gradients to the router are summed in f32. Of columns the projections are summed
/// so. Bits may change with the library, the network and the size of the message. All layers go in one
/// message, after the reads.
template <SummingDeviceCommunicator C>
[[nodiscard]] device_backend_sum<C> backend_sum(C comm) {
  return device_backend_sum<C>(std::move(comm));
}
/// There is one message, of sums: nothing goes beside the reads.
template <SummingDeviceCommunicator C>
void overlap_layers(device_backend_sum<C> comm, const message_stream& beside) = delete;

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

template <class C>
inline constexpr bool sums_by_backend = false;
template <class C>
inline constexpr bool sums_by_backend<device_backend_sum<C>> = true;

template <class S>
void add_by_backend(const context& ctx, const auto& comm, S* sums, index_t count) {
  if (count > 0) comm.all_reduce_sum(vector_view<S, device_space>(sums, count), ctx.stream);
}

/// The rows of all layers in S, one layer after the other, and their energies behind them if there are any:
/// what is summed. What fills up a row to whole vectors is summed too, and means nothing.
template <class S>
struct summed_rows {
  S* rows = nullptr;
  double* energies = nullptr;  // null: none
  index_t count = 0;           // elements of S, energies included

  /// Without data it only counts.
  template <class Layers>
  summed_rows(const Layers& layers, bool with_energies, arena& memory) {
    static_assert(sizeof(S) == sizeof(double) || sizeof(S) == sizeof(float));
    index_t experts = 0;
    for (const auto& layer : layers) {
      experts += layer.experts.shape().num_experts;
      count += layer.experts.shape().num_experts * rank_message::pitch_of(layer);
    }
    const index_t elements = count;
    if (with_energies) count += experts;
    rows = memory.take<S>(count);
    if constexpr (sizeof(S) == sizeof(double)) {
      if (with_energies && rows != nullptr) energies = rows + elements;
    }
  }
  /// use(layer, rows, energies) for each.
  template <class Layers, class Use>
  void for_each(const Layers& layers, const Use& use) const {
    index_t row = 0;
    index_t expert = 0;
    for (const auto& layer : layers) {
      const index_t n = layer.experts.shape().num_experts;
      use(layer, any_matrix(rows + row, rank_message::pitch_of(layer)),
          energies == nullptr ? nullptr : energies + expert);
      row += n * rank_message::pitch_of(layer);
      expert += n;
    }
  }
  /// What this rank has made of them, zero where it has no part.
  template <class Layer>
  void put(const context& ctx, std::span<const Layer> layers, const rank_message& message,
           const rank_memory& memory, bool of_gradients) const {
    layers_finisher<layer_to_collect<rank_images>> own(ctx);
    index_t row = 0;
    index_t expert = 0;
    for_each_part(layers, message, memory, [&](const Layer& layer, rank_parts mine, const rank_parts&) {
      const auto [n, f, d] = layer.experts.shape();
      const index_t pitch = rank_message::pitch_of(layer);
      if (of_gradients) mine.norms = nullptr;  // they come as they are
      own.add({{images_of(layer, message, mine, 1),
                any_matrix(rows + row, pitch),
                energies == nullptr ? nullptr : energies + expert,
                nullptr,
                {},
                static_cast<int>(d)}},
              n);
      row += n * pitch;
      expert += n;
    });
    own.finish();
  }
};

/// The workspace of a call: what this rank makes, as for a message, and what is summed.
template <class S>
class sum_memory {
 public:
  template <class Layers>
  sum_memory(const Layers& layers, index_t upstream, std::size_t scratch, bool with_energies, void* data)
      : own(rank_message(layers).size, upstream, 0, scratch, data),
        rest_(data == nullptr ? nullptr : static_cast<unsigned char*>(data) + own.bytes),
        sums(layers, with_energies, rest_),
        bytes(own.bytes + rest_.used()) {}

  rank_memory own;

 private:
  arena rest_;

 public:
  summed_rows<S> sums;
  std::size_t bytes;
};

MPIROUTER_CUDA_DETAIL_END
