// What the kernels over stored rows share: a block's memory, rows and tiles in registers, sums over a block.
#pragma once

#include <mpi_router/cuda/detail/finish.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int most_stages = 8;

/// Where a block's shared memory goes, after the rings.
struct block_memory {
  double* finish;           // scratch
  std::uint64_t* barriers;  // [groups, most_stages]
  float* scratch;           // [warps, 2 · sums_at_once]
  slot_header* headers;     // [groups + 1]: of each group, of the block
  float* sums;              // [groups, columns], where there are several groups, and several segments

  [[nodiscard]] __host__ __device__ static constexpr int fixed_bytes(int groups, int warps) {
    return finish_scratch * 8 + groups * most_stages * 8 + warps * 2 * sums_at_once * 4 +
           (groups + 1) * static_cast<int>(sizeof(slot_header));
  }
  __device__ __forceinline__ block_memory(unsigned char* after_rings, int groups, int warps)
      : finish(reinterpret_cast<double*>(after_rings)),
        barriers(reinterpret_cast<std::uint64_t*>(finish + finish_scratch)),
        scratch(reinterpret_cast<float*>(barriers + groups * most_stages)),
        headers(reinterpret_cast<slot_header*>(scratch + warps * 2 * sums_at_once)),
        sums(reinterpret_cast<float*>(headers + groups + 1)) {}
};

/// This thread's columns of row e, scaled so that the row's largest element is in [1, 2): returns the exponent that
/// was taken out. Columns beyond D are zero.
template <int vectors, int width>
__device__ __forceinline__ int load_row(const any_matrix& rows, int e, int hidden, const thread_group& group,
                                        float* scratch, int& turn, float (&out)[vectors * width]) {
  double x[vectors * width];
  unsigned most = 0;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const int column = (v * group.threads + group.rank) * width + i;
      x[v * width + i] = column < hidden ? rows.load(e, column) : 0.0;
      most = max(most, high_word(x[v * width + i]));
    }
  }
  most = max_over_group(most, group, scratch, turn);
  const int exponent = exponent_of_high_word(most);
  const double scale = wide_power_of_two(-exponent);
#pragma unroll
  for (int i = 0; i < vectors * width; ++i) {
    out[i] = static_cast<float>(x[i] * scale);
  }
  return exponent;
}

/// Takes this thread's share of a tile into registers: from the ring's stage, or from memory where it stayed out.
template <class T, int vectors, int rows>
__device__ __forceinline__ void load_tile(const ring_lane<T>& lane, const T* base, bool in_ring, int first, int count,
                                          int hidden, const thread_group& group, const unsigned char* stage,
                                          uint4 (&out)[rows][vectors]) {
  constexpr int width = vector_width<T>;
  if (in_ring) [[likely]] {
    const unsigned char* const own = stage + lane.offset + group.rank * 16;
#pragma unroll
    for (int g = 0; g < rows; ++g) {
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        const bool inside = g < count && (v * group.threads + group.rank) * width < hidden;
        out[g][v] = inside ? *reinterpret_cast<const uint4*>(own + g * lane.pitch + v * group.threads * 16)
                           : make_uint4(0, 0, 0, 0);
      }
    }
    return;
  }
#pragma unroll
  for (int g = 0; g < rows; ++g) {
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      const int at = (v * group.threads + group.rank) * width;
      out[g][v] = g < count ? gather_vector(base + (first + g) * lane.tensor.ffn + at, min(hidden - at, width))
                            : make_uint4(0, 0, 0, 0);
    }
  }
}

/// Adds up a block's sums of one segment into `row` and `header`: those of a single group from registers, those of
/// several groups through `group_sums` (`distance` floats apart; the first may be `row`) in the order of the groups.
template <int vectors, int width>
__device__ __forceinline__ void gather_segment(float* row, slot_header* header, float* group_sums, int distance,
                                               slot_header* group_headers, const thread_group& group, int groups,
                                               int vectors_in_row, const slot_header& own_header,
                                               const float (&u)[vectors * width]) {
  float* const own = groups == 1 ? row : group_sums + group.id * distance;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * group.threads + group.rank;
    if (at < vectors_in_row) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        *reinterpret_cast<float4*>(own + at * width + i) =
            make_float4(u[v * width + i], u[v * width + i + 1], u[v * width + i + 2], u[v * width + i + 3]);
      }
    }
  }
  if (group.rank == 0) {
    *(groups == 1 ? header : group_headers + group.id) = own_header;
  }
  if (groups == 1) {
    return;
  }
  __syncthreads();
  slot_header total = group_headers[0];
  for (int g = 1; g < groups; ++g) {
    total.image_exponent = max(total.image_exponent, group_headers[g].image_exponent);
    total.energy_exponent = max(total.energy_exponent, group_headers[g].energy_exponent);
  }
  total.energy = 0.0F;
  for (int g = 0; g < groups; ++g) {
    total.energy += group_headers[g].energy * power_of_two(group_headers[g].energy_exponent - total.energy_exponent);
  }
  for (int at = static_cast<int>(threadIdx.x) * 4; at < vectors_in_row * width; at += static_cast<int>(blockDim.x) * 4) {
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    for (int g = 0; g < groups; ++g) {
      const float scale = power_of_two(group_headers[g].image_exponent - total.image_exponent);
      const float4 x = *reinterpret_cast<const float4*>(group_sums + g * distance + at);
      sum.x = fmaf(x.x, scale, sum.x);
      sum.y = fmaf(x.y, scale, sum.y);
      sum.z = fmaf(x.z, scale, sum.z);
      sum.w = fmaf(x.w, scale, sum.w);
    }
    *reinterpret_cast<float4*>(row + at) = sum;
  }
  if (threadIdx.x == 0) {
    *header = total;
  }
  __syncthreads();
}

}  // namespace detail
MPIROUTER_CUDA_END
