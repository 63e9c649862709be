// What ranks on GPUs send each other, and how it is added up: parts of images with their norms, in the order
// of the ranks.
#pragma once

#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/finish/kernel.cuh>
#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/cuda/types.hpp>
#include <mpi_router/distributed/held.cuh>

#include <algorithm>
#include <concepts>
#include <cstddef>

MPIROUTER_BEGIN_TYPES

/// A communicator of GPUs, which the caller owns and the library borrows: as Communicator, on a stream.
/// `all_gather(mine, all, stream)` moves the numbers bit for bit (some are no floats), is enqueued when it
/// returns, waits for nothing on the host, allocates nothing, and may be captured in a graph. What makes the
/// parts lets the next kernel of the stream start early: one that is launched with programmatic serialisation
/// must wait for it (griddepcontrol.wait) before it reads.
/// distributed/nccl.cuh adapts ncclComm_t, distributed/device_loopback.cuh threads.
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

/// What a rank sends of each expert that it has a part of, in slots: its part of the image as a direction, so
/// that a float holds it whatever its scale, with the norm of it, the energy and what became of it; or of a
/// gradient as it is, with no norms.
struct rank_parts {
  float* directions;  // of the first rank, as all that follows; the next is `stride` floats on
  double* norms;      // null: 1
  double* energies;
  status* statuses;
  rank_place* place;  // null: every expert has the slot of its number

  [[nodiscard]] __device__ __forceinline__ int slot(int expert, long long rank_at) const {
    if (place == nullptr) return expert;
    const rank_place here = place[rank_at / 2];
    const int slot = expert - here.first;
    return slot >= 0 && slot < here.count ? slot : -1;
  }
  [[nodiscard]] __device__ __forceinline__ double norm(int slot, long long rank_at) const {
    if (norms == nullptr) return 1.0;
    const status state = statuses[rank_at * static_cast<long long>(sizeof(float)) + slot];
    const double norm = norms[rank_at / 2 + slot];  // loaded beside the status, not after it
    return state == status::non_finite ? nan("") : norm;
  }
};

/// Images in parts, one from each rank that has one, added in the order of the ranks.
struct rank_images {
  rank_parts parts;
  long long stride;
  int pitch;
  int ranks;

  struct row {
    const rank_images& of;
    int expert;
    int hidden;
    int first_rank;  // the others have no part of it
    int end_rank;

    [[nodiscard]] __device__ __forceinline__ double energy() const {
      double total = 0.0;
      for (int r = first_rank; r < end_rank; ++r) {
        const int slot = of.parts.slot(expert, r * of.stride);
        total += slot < 0 ? 0.0 : of.parts.energies[r * (of.stride / 2) + slot];
      }
      return total;
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
      out[0] = out[1] = out[2] = out[3] = 0.0;
#pragma unroll 4
      for (int r = first_rank; r < end_rank;
           ++r) {  // no branch: the loads of four ranks are under way at once
        const long long at = r * of.stride;
        const int place = of.parts.slot(expert, at);
        const int slot = max(place, 0);
        const double norm = place < 0 ? 0.0 : of.parts.norm(slot, at);
        float4 x = *reinterpret_cast<const float4*>(of.parts.directions + at +
                                                    static_cast<long long>(slot) * of.pitch + column);
        if (place < 0) x = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
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
    if (parts.place == nullptr) return {*this, expert, hidden, 0, ranks};
    int first = ranks;
    int end = 0;
    for (int r = 0; r < ranks; ++r) {
      if (parts.slot(expert, r * stride) >= 0) {
        first = end == 0 ? r : first;
        end = r + 1;
      }
    }
    return {*this, expert, hidden, first, end};
  }
};

/// Where the parts of all layers lie in what one rank sends: energies, norms and statuses in all slots, the
/// places of the layers, then the directions, padded to whole vectors of four.
struct rank_message {
  index_t slots = 0;
  index_t first_status = 0;  // floats, as all that follows
  index_t first_place = 0;
  index_t first_direction = 0;
  index_t size = 0;  // from one rank to the next, a multiple of 64

  template <class Layers>
  explicit rank_message(const Layers& layers) {
    index_t directions = 0;
    for (const auto& layer : layers) {
      slots += slots_of(layer);
      directions += slots_of(layer) * pitch_of(layer);
    }
    first_status = 4 * slots;
    first_place = first_status + (slots + 7) / 8 * 2;
    first_direction = whole_lines(first_place + 2 * static_cast<index_t>(layers.size()));
    size = first_direction + whole_lines(directions);
  }
  template <class Layer>
  [[nodiscard]] static index_t pitch_of(const Layer& layer) {
    return (layer.experts.shape().hidden_dim + 3) / 4 * 4;
  }
  /// Experts of a layer that any rank has a part of, at most.
  template <class Layer>
  [[nodiscard]] static index_t slots_of(const Layer& layer) {
    const index_t all = layer.experts.shape().num_experts;
    return has_place<std::remove_cvref_t<decltype(layer.experts)>> && layer.most > 0
               ? std::min<index_t>(layer.most, all)
               : all;
  }
  /// Of a layer that begins at a slot and a direction, in the message at `at`.
  [[nodiscard]] rank_parts parts(float* at, index_t layer, index_t slot, index_t direction,
                                 bool has_place) const {
    auto* const numbers = reinterpret_cast<double*>(at);
    return {at + first_direction + direction, numbers + slots + slot, numbers + slot,
            reinterpret_cast<status*>(at + first_status) + slot,
            has_place ? reinterpret_cast<rank_place*>(at + first_place) + layer : nullptr};
  }
  [[nodiscard]] static index_t whole_lines(index_t floats) { return (floats + 63) / 64 * 64; }
};
static_assert(sizeof(status) == 1);

/// The workspace of a sharded call: what this rank sends, what it receives, and scratch of one layer at a
/// time.
struct rank_memory {
  float* mine = nullptr;
  float* all = nullptr;
  float* sums = nullptr;    // of gradients that come from other tokens on each rank
  float** peers = nullptr;  // where this rank's parts lie on the others, if it can write there
  workspace scratch;
  std::size_t bytes = 0;

  rank_memory(index_t message, index_t sum, index_t ranks, std::size_t scratch_bytes, void* data) {
    arena memory(data);
    const index_t most = std::max(message, sum);
    mine = memory.take<float>(most);
    all = memory.take<float>(ranks * most);
    sums = memory.take<float>(sum);
    peers = memory.take<float*>(ranks);
    scratch = {memory.take<unsigned char>(static_cast<index_t>(scratch_bytes)), scratch_bytes};
    bytes = memory.used();
  }
  /// This rank's parts where all are, and no copy of them: `floats` from each.
  [[nodiscard]] rank_memory in_place(index_t rank, index_t floats) const {
    rank_memory here = *this;
    here.mine = all + rank * floats;
    return here;
  }
  /// Where the message that begins after `floats` of a rank's lies.
  [[nodiscard]] rank_memory from(index_t floats, index_t ranks) const {
    rank_memory here = *this;
    if (mine != nullptr) {
      here.mine += floats;
      here.all += ranks * floats;
    }
    return here;
  }
};

/// Calls use(layer, mine, all) for each: where its parts lie in what this rank sends, and in what all send.
template <class Layers, class Use>
void for_each_part(const Layers& layers, const rank_message& message, const rank_memory& memory,
                   const Use& use) {
  index_t at = 0;
  index_t slot = 0;
  index_t direction = 0;
  for (const auto& layer : layers) {
    constexpr bool places = has_place<std::remove_cvref_t<decltype(layer.experts)>>;
    use(layer, message.parts(memory.mine, at, slot, direction, places),
        message.parts(memory.all, at, slot, direction, places));
    ++at;
    slot += rank_message::slots_of(layer);
    direction += rank_message::slots_of(layer) * rank_message::pitch_of(layer);
  }
}

/// The directions of `count` experts from a slot on.
template <class Layer>
[[nodiscard]] matrix_view<float, device_space> directions_of(const Layer& layer, const rank_parts& parts,
                                                             index_t slot, index_t count) {
  const index_t pitch = rank_message::pitch_of(layer);
  return {parts.directions + slot * pitch, count, layer.experts.shape().hidden_dim, pitch, 1};
}

template <class Layer>
[[nodiscard]] rank_images images_of(const Layer& layer, const rank_message& message, const rank_parts& all,
                                    index_t ranks) {
  return {all, message.size, static_cast<int>(rank_message::pitch_of(layer)), static_cast<int>(ranks)};
}

template <class Comm>
void gather(const context& ctx, const Comm& comm, const float* mine, float* all, index_t floats) {
  comm.all_gather(vector_view<const float, device_space>(mine, floats),
                  vector_view<float, device_space>(all, static_cast<index_t>(comm.size()) * floats),
                  ctx.stream);
}

/// The places of some layers, from the kernel's arguments into a message.
struct some_places {
  static constexpr int most = 128;
  rank_place at[most];
  int count = 0;
};
template <class = void>
__global__ void __launch_bounds__(some_places::most)
    places_kernel(const __grid_constant__ some_places places, rank_place* to, peer_copies peers) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int l = static_cast<int>(threadIdx.x);
  if (l < places.count) {
    to[l] = places.at[l];
    peers.store(to + l, places.at[l]);
  }
  peers.settle();
}

/// Says where this rank's parts lie, if the layers are shards: here and to peers.
template <class Layers>
void put_places(const context& ctx, const Layers& layers, rank_place* to, const peer_copies& peers = {}) {
  some_places some;
  const auto put = [&] {
    if (some.count > 0)
      launch("places_kernel", ctx, {1, some_places::most}, places_kernel<>, some, to, peers);
    to += some.count;
    some.count = 0;
  };
  for (const auto& layer : layers) {
    if constexpr (has_place<std::remove_cvref_t<decltype(layer.experts)>>) {
      some.at[some.count++] = place_of(layer.experts);
      if (some.count == some_places::most) put();
    }
  }
  put();
}

MPIROUTER_CUDA_DETAIL_END
