// The image of an expert in parts: summed from memory, or swapped among the blocks of a cluster.
#pragma once

#include <mpi_router/cuda/detail/cluster.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The parts of one image: rows of sums, each with a header.
struct image_parts {
  const float* first;
  const slot_header* header;
  int count;
  int pitch;

  /// The same, where the image's first column has another number.
  [[nodiscard]] __device__ __forceinline__ image_parts from(int column) const {
    return {first - column, header, count, pitch};
  }
  [[nodiscard]] __device__ __forceinline__ double energy() const {
    double total = 0.0;
    for (int s = 0; s < count; ++s) {
      total += header[s].energy * wide_power_of_two(header[s].energy_exponent);
    }
    return total;
  }
  __device__ __forceinline__ void load(int column, double (&out)[4]) const {
    out[0] = out[1] = out[2] = out[3] = 0.0;
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
      const double scale = wide_power_of_two(header[s].image_exponent);
      const float4 x = *reinterpret_cast<const float4*>(first + static_cast<long long>(s) * pitch + column);
      out[0] += x.x * scale;
      out[1] += x.y * scale;
      out[2] += x.z * scale;
      out[3] += x.w * scale;
    }
  }
};

/// Where the blocks of a cluster that have parts of one image, [columns] each, swap them: every `step`th of
/// the cluster, `members` of them. Each takes `share` columns, a multiple of 4, into its inbox.
struct image_swap {
  float* inbox;  // [members, share], used once in a kernel
  int columns;
  int share;
  int members;
  int step;

  [[nodiscard]] __device__ __forceinline__ int begin() const { return cluster_rank() / step * share; }
  [[nodiscard]] __device__ __forceinline__ int end() const { return min(begin() + share, columns); }
  /// All parts of this block's share, whose own `sums` and `header` are in shared memory. All threads call
  /// it.
  [[nodiscard]] __device__ __forceinline__ image_parts run(const float* sums, const slot_header* header,
                                                           team_scratch& scratch) const {
    __syncthreads();
    if (members == 1) {
      return {sums, header, 1, 0};
    }
    const int member = cluster_rank() / step;
    const int rest = cluster_rank() - member * step;
    std::uint64_t* const arrived = &scratch.image_arrived;
    if (threadIdx.x == 0) {
      const int own = max(0, end() - begin());
      barrier_expect(arrived, static_cast<unsigned>(members * (own * 4 + static_cast<int>(sizeof(*header)))));
    }
    for (int i = static_cast<int>(threadIdx.x) * 4; i < columns; i += static_cast<int>(blockDim.x) * 4) {
      const int to = i / share;
      send_remote(reinterpret_cast<uint4*>(inbox + member * share + i - to * share), to * step + rest,
                  *reinterpret_cast<const uint4*>(sums + i), arrived);
    }
    if (static_cast<int>(threadIdx.x) < members) {
      send_remote(reinterpret_cast<uint4*>(scratch.headers + member),
                  static_cast<int>(threadIdx.x) * step + rest, *reinterpret_cast<const uint4*>(header),
                  arrived);
    }
    barrier_wait(arrived, 0);
    return {inbox - begin(), scratch.headers, members, share};
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
