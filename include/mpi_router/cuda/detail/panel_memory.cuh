// A panel of stored columns in a block: the ring's size, what lies beside it in shared memory, and a block's
// part of the image while its cluster finishes an expert.
#pragma once

#include <mpi_router/cuda/detail/row_plan.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int panel_threads = 512;
constexpr int panel_passes = 16;  // rows of a panel that a thread owns, at most

/// A thread's slots in the ring, 16 bytes each: a panel and as much more as there is room for.
[[nodiscard]] __host__ __device__ constexpr int panel_slots(bool large) { return large ? 24 : 18; }
/// The copies of a panel start while others are worked on: those of every so many passes during the dots, the
/// others during the lift, so that memory is asked for data all the time.
[[nodiscard]] __host__ __device__ constexpr int panel_copy_every(bool large) { return large ? 2 : 8; }

/// Where a block's shared memory goes, after the ring.
template <int panel>
struct panel_memory {
  static constexpr int warps = panel_threads / 32;
  double* finish;          // scratch
  std::uint64_t* arrived;  // [2]
  slot_header* header;
  float* by_warp;   // [warps, panel]
  float* by_block;  // [2, most_cluster, panel]
  float* scratch;   // [warps, 2 · sums_at_once]
  float* image;     // of the block's rows, where the step is fused

  [[nodiscard]] __host__ __device__ static constexpr int bytes(int image_rows) {
    return finish_scratch * 8 + 2 * 8 + static_cast<int>(sizeof(slot_header)) +
           4 * (warps * panel + 2 * most_cluster * panel + warps * 2 * sums_at_once + image_rows);
  }
  __device__ __forceinline__ explicit panel_memory(unsigned char* after_ring)
      : finish(reinterpret_cast<double*>(after_ring)),
        arrived(reinterpret_cast<std::uint64_t*>(finish + finish_scratch)),
        header(reinterpret_cast<slot_header*>(arrived + 2)),
        by_warp(reinterpret_cast<float*>(header + 1)),
        by_block(by_warp + warps * panel),
        scratch(by_block + 2 * most_cluster * panel),
        image(scratch + warps * 2 * sums_at_once) {}
};

/// The rows of an image that a block has, from `begin` on: its own sums and those of the other members of the
/// cluster that worked on the same expert and rows.
struct panel_image {
  const float* sums;
  const slot_header* header;
  int begin;
  int rank;
  int row_blocks;
  int members;

  [[nodiscard]] __device__ __forceinline__ float4 header_of(int member) const {
    return load_remote(reinterpret_cast<const float4*>(header), member * row_blocks + rank);
  }
  [[nodiscard]] __device__ __forceinline__ double energy() const {
    double total = 0.0;
    for (int m = 0; m < members; ++m) {
      const float4 h = header_of(m);
      total += h.x * wide_power_of_two(__float_as_int(h.y));
    }
    return total;
  }
  __device__ __forceinline__ void load(int column, double (&out)[4]) const {
    out[0] = out[1] = out[2] = out[3] = 0.0;
    for (int m = 0; m < members; ++m) {
      const double scale = wide_power_of_two(__float_as_int(header_of(m).z));
      const float4 x =
          load_remote(reinterpret_cast<const float4*>(sums + column - begin), m * row_blocks + rank);
      out[0] += x.x * scale;
      out[1] += x.y * scale;
      out[2] += x.z * scale;
      out[3] += x.w * scale;
    }
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
