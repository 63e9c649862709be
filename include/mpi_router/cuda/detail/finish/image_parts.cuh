// The image of an expert in parts: as the blocks left them in memory, or sent them to the first of a cluster.
#pragma once

#include <mpi_router/cuda/detail/device/cluster.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>
#include <mpi_router/cuda/detail/plan/partial_sums.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The parts of one image: rows of sums, each with a header.
struct image_parts {
  const float* first;
  const float* others;  // from the second on, `pitch` apart
  const slot_header* header;
  int count;
  int pitch;

  [[nodiscard]] __device__ __forceinline__ double energy() const {
    double total = 0.0;
    for (int s = 0; s < count; ++s) {
      total += header[s].energy * wide_power_of_two(header[s].energy_exponent);
    }
    return total;
  }
  __device__ __forceinline__ void load(int column, double (&out)[4]) const {
    out[0] = out[1] = out[2] = out[3] = 0.0;
    const float* part = first;
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      const double scale = wide_power_of_two(header[s].image_exponent);
      const float4 x = *reinterpret_cast<const float4*>(part + column);
      out[0] += x.x * scale;
      out[1] += x.y * scale;
      out[2] += x.z * scale;
      out[3] += x.w * scale;
      part = others + static_cast<long long>(s) * pitch;
    }
  }
};

/// Where the blocks of a cluster put their parts of an image: into the memory of the first, the leader, which
/// stores its own there. The addresses are the same in every block.
struct leader_inbox {
  float* first;
  float* others;
  leader_scratch* scratch;
  int count;   // parts
  int pitch;   // columns of a part, a multiple of 4
  int leader;  // columns that the leader puts there by itself

  [[nodiscard]] __device__ __forceinline__ static bool leads() { return cluster_rank() == 0; }
  __device__ __forceinline__ void put(int part, int column, float value) const {
    store(at(part, column), value);
  }
  __device__ __forceinline__ void put(int part, int column, const float4& four) const {
    store(reinterpret_cast<uint4*>(at(part, column)),
          make_uint4(__float_as_uint(four.x), __float_as_uint(four.y), __float_as_uint(four.z),
                     __float_as_uint(four.w)));
  }
  __device__ __forceinline__ void put(int part, const slot_header& header) const {
    store(reinterpret_cast<uint4*>(scratch->headers + part), *reinterpret_cast<const uint4*>(&header));
  }
  /// All parts of the `turn`th image. All threads of the leader call it; no part of the next image may come
  /// before they are done with this one.
  [[nodiscard]] __device__ __forceinline__ image_parts collect(unsigned turn) const {
    block_sync();
    const int sent = (count * pitch - leader) * 4 + (count - 1) * static_cast<int>(sizeof(slot_header));
    if (sent > 0) {
      if (threadIdx.x == 0) {
        barrier_expect(&scratch->arrived, static_cast<unsigned>(sent));
      }
      barrier_wait<writers::cluster>(&scratch->arrived, turn & 1U);
    }
    return {first, others, scratch->headers, count, pitch};
  }

 private:
  [[nodiscard]] __device__ __forceinline__ float* at(int part, int column) const {
    return (part == 0 ? first : others + (part - 1) * pitch) + column;
  }
  template <class Value>
  __device__ __forceinline__ void store(Value* to, const Value& value) const {
    if (leads()) {
      *to = value;
    } else {
      send_remote(to, 0, value, &scratch->arrived);
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
