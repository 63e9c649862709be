// What ranks on GPUs send each other, and how it is added up: parts of images with their norms, in the order
// of the ranks.
#pragma once

#include <mpi_router/cuda/detail/finish/kernel.cuh>
#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/cuda/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>

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

/// The most scratch that one layer needs.
template <class Layers, class Bytes>
[[nodiscard]] std::size_t most_scratch(const Layers& layers, const Bytes& bytes_of_layer) {
  std::size_t most = 0;
  for (const auto& layer : layers) {
    most = std::max(most, bytes_of_layer(layer));
  }
  return most;
}

template <class Comm>
void gather_parts(const context& ctx, const Comm& comm, const rank_message& message,
                  const rank_memory& memory, index_t ranks) {
  comm.all_gather(vector_view<const float, device_space>(memory.mine, message.size),
                  vector_view<float, device_space>(memory.all, ranks * message.size), ctx.stream);
}

MPIROUTER_CUDA_DETAIL_END
