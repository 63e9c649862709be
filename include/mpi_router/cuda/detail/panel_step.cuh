// The forward over stored columns ([N, D, F]): a panel of adjacent columns at a time, each read from memory
// once.
//
// A panel holds `lanes` × 16 bytes of each of the D stored rows. Each thread copies to shared memory, and
// works on, its own 16 bytes of up to panel_passes rows, so that it waits for its own copies only: y =
// W_panelᵀ r needs all D rows, u += W_panel y then the same bytes again. Where D is too large for one block,
// the blocks of a cluster share the rows of a panel and swap their parts of y.
#pragma once

#include <mpi_router/cuda/detail/row_plan.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

constexpr int panel_threads = 512;
constexpr int panel_passes = 8;  // rows of a panel that a thread owns, at most

template <class T>
struct panel_step_args {
  batch<const T> weights;
  any_matrix rows;
  int ffn;
  int hidden;
  int passes;
  int depth;       // panels in the ring
  partition part;  // over clusters
  partial_sums out;
};

/// Sums each of `width` values over the lanes that differ above bit log2(lanes). Afterwards lane l holds in
/// v[0 … left) the sums of the values from (l >> (5 − halvings)) · left on.
template <int width, int lanes>
struct panel_reduction {
  static constexpr int log2(int x) { return x <= 1 ? 0 : 1 + log2(x / 2); }
  static constexpr int halvings = log2(width) < log2(32 / lanes) ? log2(width) : log2(32 / lanes);
  static constexpr int left = width >> halvings;

  __device__ __forceinline__ static void run(float (&v)[width], int lane) {
    halve_over_warp<width, 16, left>(v, lane);
    add_over_warp<left, (16 >> halvings), lanes>(v);
  }
  /// One of the lanes that hold the same sums.
  [[nodiscard]] __device__ __forceinline__ static bool writes(int lane) {
    return (lane & ((32 >> halvings) - 1) & ~(lanes - 1)) == 0;
  }
};

/// Waits until at most `pending` of this thread's groups are under way; more than 6 wait for none.
__device__ __forceinline__ void wait_for_copies(int pending) {
  switch (pending) {
    case 0: wait_for_copy_groups<0>(); break;
    case 1: wait_for_copy_groups<1>(); break;
    case 2: wait_for_copy_groups<2>(); break;
    case 3: wait_for_copy_groups<3>(); break;
    case 4: wait_for_copy_groups<4>(); break;
    case 5: wait_for_copy_groups<5>(); break;
    default: wait_for_copy_groups<6>();
  }
}

template <class T, int lanes>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  constexpr int width = vector_width<T>;
  constexpr int panel = lanes * width;              // columns
  constexpr int pass_rows = panel_threads / lanes;  // rows of one pass
  constexpr int warps = panel_threads / 32;
  using reduction = panel_reduction<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  uint4* const ring = reinterpret_cast<uint4*>(shared) + threadIdx.x;  // slot s at ring[s · panel_threads]
  float* const by_warp = reinterpret_cast<float*>(shared + a.depth * a.passes * panel_threads * 16);
  float* const by_block = by_warp + 2 * warps * panel;         // by_warp: [2, warps, panel]
  float* const scratch = by_block + 2 * most_cluster * panel;  // by_block: [2, most_cluster, panel]
  wait_for_previous_kernel();
  let_next_kernel_start();

  const thread_group group(panel_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int rank = cluster_rank();
  const int blocks = cluster_size();
  const int cluster = static_cast<int>(blockIdx.x) / blocks;
  const int first_row = rank * a.passes * pass_rows + thread / lanes;  // this thread's row in pass 0
  const int own = (thread % lanes) * width;                            // its first column in the panel
  const int begin = a.part.first_tile(cluster);
  const int end = a.part.first_tile(cluster + 1);
  const auto fast = [&](const T* base) {
    return aligned_to_16(base, a.weights.hidden * static_cast<long long>(sizeof(T)),
                         a.ffn * static_cast<long long>(sizeof(T)));
  };
  const auto slots_of = [&](int tile) { return ring + (tile - begin) % a.depth * a.passes * panel_threads; };
  // Starts the copies of this thread's part of a panel: one group, be there anything to copy or not.
  const auto copy_panel = [&](int tile) {
    if (tile < end) {
      const int e = tile / a.part.tiles_per_expert;
      const int column = (tile - e * a.part.tiles_per_expert) * panel + own;
      const T* const base = a.weights.of(e);
      if (fast(base) && column < a.ffn) {
        const T* at = base + first_row * a.weights.hidden + column;
        uint4* const slots = slots_of(tile);
#pragma unroll
        for (int p = 0; p < panel_passes; ++p) {
          if (p < a.passes && first_row + p * pass_rows < a.hidden) {
            copy_async_16(slots + p * panel_threads, at);
            at += pass_rows * a.weights.hidden;
          }
        }
      }
    }
    close_copy_group();
  };
#pragma unroll 1
  for (int s = 0; s < a.depth; ++s) {
    copy_panel(begin + s);
  }

  int turn = 0;
  int tile = begin;
  while (tile < end) {
    const int expert = tile / a.part.tiles_per_expert;
    const int stop = min(end, (expert + 1) * a.part.tiles_per_expert);
    const T* const base = a.weights.of(expert);
    const bool in_ring = fast(base);
    unsigned most_word = 0;
    for (int d = thread; d < a.hidden; d += panel_threads) {
      most_word = max(most_word, high_word(a.rows.load(expert, d)));
    }
    const int row_exponent = exponent_of_high_word(max_over_group(most_word, group, scratch, turn));
    const double row_scale = wide_power_of_two(-row_exponent);
    float r[panel_passes];
    float u[panel_passes];
#pragma unroll
    for (int p = 0; p < panel_passes; ++p) {
      const int row = first_row + p * pass_rows;
      r[p] = p < a.passes && row < a.hidden ? static_cast<float>(a.rows.load(expert, row) * row_scale) : 0.0F;
      u[p] = 0.0F;
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;

    // This thread's part of pass p of a panel, zero outside of the matrix.
    const auto part_of = [&](const uint4* slots, int column, int p) {
      const bool inside = p < a.passes && first_row + p * pass_rows < a.hidden && column < a.ffn;
      return inside ? slots[p * panel_threads] : make_uint4(0, 0, 0, 0);
    };
    const auto column_of = [&](int t) { return (t - expert * a.part.tiles_per_expert) * panel + own; };
    // The warps' sums of a panel's dots.
    const auto dot = [&](int t) {
      const int column = column_of(t);
      uint4* const slots = slots_of(t);
      if (!in_ring && column < a.ffn) [[unlikely]] {
#pragma unroll 1
        for (int p = 0; p < a.passes && first_row + p * pass_rows < a.hidden; ++p) {
          slots[p * panel_threads] = gather_vector(
              base + (first_row + p * pass_rows) * a.weights.hidden + column, min(width, a.ffn - column));
        }
      }
      float y[width] = {};
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        float x[width];
        unpack<T>(part_of(slots, column, p), x);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          y[i] = fmaf(x[i], r[p], y[i]);
        }
      }
      reduction::run(y, lane);
      if (reduction::writes(lane)) {
        float* const to = by_warp + ((t & 1) * warps + thread / 32) * panel + own +
                          (lane >> (5 - reduction::halvings)) * reduction::left;
#pragma unroll
        for (int i = 0; i < reduction::left; ++i) {
          to[i] = y[i];
        }
      }
    };
    // Adds up the warps' sums and tells all blocks of the cluster.
    const auto exchange = [&](int t) {
      __syncthreads();
      if (thread < panel) {
        float sum = 0.0F;
#pragma unroll
        for (int w = 0; w < warps; ++w) {
          sum += by_warp[((t & 1) * warps + w) * panel + thread];
        }
        for (int b = 0; b < blocks; ++b) {
          store_remote(by_block + ((t & 1) * most_cluster + rank) * panel + thread, b, sum);
        }
      }
      cluster_arrive();
    };

    wait_for_copies(a.depth - 1);
    dot(tile);
    exchange(tile);
    for (; tile < stop; ++tile) {
      // While a panel's dots travel, the next panel's are taken.
      if (tile + 1 < stop) {
        wait_for_copies(a.depth - 2);
        dot(tile + 1);
      }
      float y[width];
      unsigned most = 0;
      shift.begin_tile();
      while (true) {
        cluster_wait();
#pragma unroll
        for (int i = 0; i < width; ++i) {
          y[i] = 0.0F;
        }
        for (int b = 0; b < blocks; ++b) {
          const float* const from = by_block + ((tile & 1) * most_cluster + b) * panel + own;
#pragma unroll
          for (int i = 0; i < width; i += 4) {
            const float4 part = *reinterpret_cast<const float4*>(from + i);
            y[i] += part.x;
            y[i + 1] += part.y;
            y[i + 2] += part.z;
            y[i + 3] += part.w;
          }
        }
        most = 0;
#pragma unroll
        for (int i = 0; i < width; ++i) {
          most = max(most, magnitude_bits(y[i]));
        }
#pragma unroll
        for (int m = lanes / 2; m >= 1; m /= 2) {
          most = max(most, __shfl_xor_sync(0xffffffffU, most, m));
        }
        const float factor = shift.retry(most);
        if (factor == 0.0F) [[likely]] {
          break;
        }
        // Once more with the rows shifted, and the next panel's dots as well.
#pragma unroll
        for (int p = 0; p < panel_passes; ++p) {
          r[p] *= factor;
        }
        cluster_sync();
        dot(tile);
        exchange(tile);
        if (tile + 1 < stop) {
          dot(tile + 1);
        }
      }
      if (most != 0) {
        scale.admit(most, shift.exponent(), [&](float image_factor, float energy_factor) {
          energy *= energy_factor;
#pragma unroll
          for (int p = 0; p < panel_passes; ++p) {
            u[p] *= image_factor;
          }
        });
      }
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float e = y[i] * scale.energy_factor;
        energy = fmaf(e, e, energy);
        y[i] *= scale.image_factor;
      }
      const uint4* const slots = slots_of(tile);
      const int column = column_of(tile);
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        float x[width];
        unpack<T>(part_of(slots, column, p), x);
#pragma unroll
        for (int i = 0; i < width; ++i) {
          u[p] = fmaf(x[i], y[i], u[p]);
        }
      }
      copy_panel(tile + a.depth);
      if (tile + 1 < stop) {
        exchange(tile + 1);
      }
    }

    const int slot = a.part.slot(cluster, expert);
#pragma unroll
    for (int m = lanes / 2; m >= 1; m /= 2) {
      energy += __shfl_xor_sync(0xffffffffU, energy, m);
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        u[p] += __shfl_xor_sync(0xffffffffU, u[p], m);
      }
    }
    if (thread % lanes == 0) {
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        const int row = first_row + p * pass_rows;
        if (p < a.passes && row < a.out.pitch) {
          a.out.rows[static_cast<long long>(slot) * a.out.pitch + row] = u[p];
        }
      }
    }
    if (rank == 0 && thread == 0) {
      a.out.headers[slot] = {energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    }
  }
  if (blocks > 1) {
    cluster_sync();  // no block may end while another still stores into it
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
