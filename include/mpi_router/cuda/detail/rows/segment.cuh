// What becomes of a block's sums over one segment, its rows of one expert: added up over the groups of the
// block, then left in memory for a second kernel, or sent to the first block of a cluster, which finishes.
#pragma once

#include <mpi_router/cuda/detail/finish/image_parts.cuh>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// put(column, four) for this thread's columns of a segment's sums.
template <int vectors, int width, class Put>
__device__ __forceinline__ void for_fours(const thread_group& group, int vectors_in_row,
                                          const float (&u)[vectors * width], const Put& put) {
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * group.threads + group.rank;
    if (at < vectors_in_row) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        const float* const from = u + v * width + i;
        put(at * width + i, make_float4(from[0], from[1], from[2], from[3]));
      }
    }
  }
}

/// What the groups of a block have summed up, in one scale.
__device__ __forceinline__ slot_header total_of(const slot_header* headers, int groups) {
  slot_header total = headers[0];
  for (int g = 1; g < groups; ++g) {
    total.image_exponent = max(total.image_exponent, headers[g].image_exponent);
    total.energy_exponent = max(total.energy_exponent, headers[g].energy_exponent);
  }
  total.energy = 0.0F;
  for (int g = 0; g < groups; ++g) {
    total.energy += headers[g].energy * power_of_two(headers[g].energy_exponent - total.energy_exponent);
  }
  return total;
}

/// Four columns of the groups' sums, `distance` floats apart, added up in the order of the groups.
__device__ __forceinline__ float4 sum_of_groups(const float* sums, int distance, const slot_header* headers,
                                                int groups, int exponent) {
  float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
  for (int g = 0; g < groups; ++g) {
    const float scale = power_of_two(headers[g].image_exponent - exponent);
    const float4 x = *reinterpret_cast<const float4*>(sums + g * distance);
    sum.x = fmaf(x.x, scale, sum.x);
    sum.y = fmaf(x.y, scale, sum.y);
    sum.z = fmaf(x.z, scale, sum.z);
    sum.w = fmaf(x.w, scale, sum.w);
  }
  return sum;
}

/// Adds up a block's sums of one segment and puts them where `to` says: those of a single group from
/// registers, those of several groups through `group_sums` (`distance` floats apart; the first may be where
/// they go) in the order of the groups.
template <int vectors, int width, class Place>
__device__ __forceinline__ void gather_segment(const Place& to, float* group_sums, int distance,
                                               slot_header* group_headers, const thread_group& group,
                                               int groups, int vectors_in_row, const slot_header& own_header,
                                               const float (&u)[vectors * width]) {
  float* const own = group_sums + group.id * distance;
  for_fours<vectors, width>(group, vectors_in_row, u, [&](int column, const float4& four) {
    if (groups == 1) {
      to.put(column, four);
    } else {
      *reinterpret_cast<float4*>(own + column) = four;
    }
  });
  if (groups == 1) {
    if (threadIdx.x == 0) {
      to.put(own_header);
    }
    return;
  }
  if (group.rank == 0) {
    group_headers[group.id] = own_header;
  }
  block_sync();
  const slot_header total = total_of(group_headers, groups);
  for (int at = static_cast<int>(threadIdx.x) * 4; at < vectors_in_row * width;
       at += static_cast<int>(blockDim.x) * 4) {
    to.put(at, sum_of_groups(group_sums + at, distance, group_headers, groups, total.image_exponent));
  }
  if (threadIdx.x == 0) {
    to.put(total);
  }
  block_sync();
}

/// A segment's slot in memory, for the kernel after this one.
struct slot_place {
  float* row;
  slot_header* header;
  __device__ __forceinline__ void put(int column, const float4& four) const {
    *reinterpret_cast<float4*>(row + column) = four;
  }
  __device__ __forceinline__ void put(const slot_header& value) const { *header = value; }
};

/// A block's part of an image in its cluster's leader.
struct leader_place {
  const leader_inbox& inbox;
  int part;
  __device__ __forceinline__ void put(int column, const float4& four) const { inbox.put(part, column, four); }
  __device__ __forceinline__ void put(const slot_header& value) const { inbox.put(part, value); }
};

/// What becomes of a block's sums of one segment: they go to their slot, or, where the blocks of a cluster
/// have the segments of one expert, to the first of them, which calls finish(image). A block that has whole
/// experts finishes each of them likewise.
/// Args are row_sweep_args.
template <int vectors, int width, class Args, class Finish>
__device__ __forceinline__ void end_segment(const Args& a, const row_memory& memory,
                                            const thread_group& group, int expert, const slot_header& header,
                                            const float (&u)[vectors * width], const Finish& finish) {
  const int block = static_cast<int>(blockIdx.x);
  const int in_row = (a.tiles.hidden + width - 1) / width;
  const bool only = a.part.whole != 0;  // then the rings are idle, and their memory takes the sums
  if (only) {
    group.sync();
  }
  float* const sums = only ? reinterpret_cast<float*>(memory.rings) : memory.sums;
  const int distance = only ? a.ring.group_bytes() / 4 : group.threads * vectors * width;
  const auto gather = [&](const auto& to) {
    gather_segment<vectors, width>(to, sums, distance, memory.headers, group, a.ring.groups, in_row, header,
                                   u);
  };
  if (!a.fused) {
    const int slot = a.part.slot(block, expert);
    gather(slot_place{a.out.rows + static_cast<long long>(slot) * a.out.pitch, a.out.headers + slot});
    return;
  }
  const leader_inbox inbox{sums, memory.sums, memory.leader, cluster_size(), in_row * width, in_row * width};
  gather(leader_place{inbox, cluster_rank()});
  if (leader_inbox::leads()) {
    finish(inbox.collect(0));
  }
}

MPIROUTER_CUDA_DETAIL_END
