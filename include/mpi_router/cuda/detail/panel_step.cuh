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
constexpr int panel_passes = 16;  // rows of a panel that a thread owns, at most

/// A thread's slots in the ring, 16 bytes each: a panel and as much more as there is room for.
[[nodiscard]] __host__ __device__ constexpr int panel_slots(bool large) { return large ? 24 : 18; }

template <class T>
struct panel_step_args {
  batch<const T> weights;
  any_matrix rows;
  int ffn;
  int hidden;
  int passes;
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

/// y += this thread's part of a panel times its rows, as the passes arrive: all copies but those of the last
/// `slots` − 1 − p groups have when pass p is read.
template <class T, int slots, int p, int width>
__device__ __forceinline__ void dot_passes(const uint4* ring, int slot, int passes, int inside,
                                           const float (&r)[panel_passes], float (&y)[width]) {
  if constexpr (p < panel_passes) {
    if (p < passes) {
      wait_for_copy_groups<slots - 1 - p>();
      float x[width];
      unpack<T>(p < inside ? ring[slot * panel_threads] : make_uint4(0, 0, 0, 0), x);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        y[i] = fmaf(x[i], r[p], y[i]);
      }
      dot_passes<T, slots, p + 1>(ring, slot + 1 == slots ? 0 : slot + 1, passes, inside, r, y);
    }
  }
}

template <class T, int lanes, bool large>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  constexpr int width = vector_width<T>;
  constexpr int panel = lanes * width;              // columns
  constexpr int pass_rows = panel_threads / lanes;  // rows of one pass
  constexpr int warps = panel_threads / 32;
  constexpr int slots = panel_slots(large);
  using reduction = panel_reduction<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  uint4* const ring = reinterpret_cast<uint4*>(shared) + threadIdx.x;  // slot s at ring[s · panel_threads]
  float* const by_warp = reinterpret_cast<float*>(shared + slots * panel_threads * 16);
  float* const by_block = by_warp + warps * panel;             // by_warp: [warps, panel]
  float* const scratch = by_block + 2 * most_cluster * panel;  // by_block: [2, most_cluster, panel]
  auto* const arrived = reinterpret_cast<std::uint64_t*>(scratch + warps * 2 * sums_at_once);  // [2]
  wait_for_previous_kernel();
  let_next_kernel_start();

  const thread_group group(panel_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int rank = cluster_rank();
  const int blocks = cluster_size();
  const int cluster = static_cast<int>(blockIdx.x) / blocks;
  const int first_row = rank * a.passes * pass_rows + thread / lanes;  // this thread's row in pass 0
  const int rows =
      min(a.passes, max(0, (a.hidden - first_row + pass_rows - 1) / pass_rows));  // and how many it has
  const int own = (thread % lanes) * width;  // its first column in a panel
  const int end = a.part.first_tile(cluster + 1);
  int tile = a.part.first_tile(cluster);
  const auto fast = [&](const T* base) {
    return aligned_to_16(base, a.weights.hidden * static_cast<long long>(sizeof(T)),
                         a.ffn * static_cast<long long>(sizeof(T)));
  };

  // The pass to copy next: one group of copies each, be there anything to copy or not.
  const long long step = pass_rows * a.weights.hidden;
  int next_panel = tile;
  int next_pass = 0;
  int next_rows = 0;
  const T* next = nullptr;
  const auto push = [&](uint4* slot) {
    if (next_pass == 0) {
      next_rows = 0;
      if (next_panel < end) {
        const int e = next_panel / a.part.tiles_per_expert;
        const int column = (next_panel - e * a.part.tiles_per_expert) * panel + own;
        const T* const base = a.weights.of(e);
        next = base + first_row * a.weights.hidden + column;
        next_rows = fast(base) && column < a.ffn ? rows : 0;
      }
      ++next_panel;
    }
    if (next_pass < next_rows) {
      copy_async_16(slot, next);
      next += step;
    }
    close_copy_group();
    next_pass = next_pass + 1 == a.passes ? 0 : next_pass + 1;
  };
#pragma unroll 1
  for (int s = 0; s < slots; ++s) {
    push(ring + s * panel_threads);
  }
  if (thread < 2) {
    barrier_init(arrived + thread, 1);
  }
  publish_barriers();
  cluster_sync();  // all blocks have begun: their memory may be written

  int turn = 0;
  int first_slot = 0;
  unsigned parity = 0;
  int swap = 0;
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
      r[p] = p < rows ? static_cast<float>(a.rows.load(expert, first_row + p * pass_rows) * row_scale) : 0.0F;
      u[p] = 0.0F;
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;

    for (; tile < stop; ++tile) {
      const int column = (tile - expert * a.part.tiles_per_expert) * panel + own;
      const int inside = column < a.ffn ? rows : 0;
      if (!in_ring) [[unlikely]] {
#pragma unroll 1
        for (int p = 0; p < inside; ++p) {
          ring[(first_slot + p) % slots * panel_threads] = gather_vector(
              base + (first_row + p * pass_rows) * a.weights.hidden + column, min(width, a.ffn - column));
        }
      }
      float y[width];
      unsigned most = 0;
      shift.begin_tile();
      while (true) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          y[i] = 0.0F;
        }
        dot_passes<T, slots, 0>(ring, first_slot, a.passes, inside, r, y);
        reduction::run(y, lane);
        if (reduction::writes(lane)) {
          float* const to =
              by_warp + thread / 32 * panel + own + (lane >> (5 - reduction::halvings)) * reduction::left;
#pragma unroll
          for (int i = 0; i < reduction::left; ++i) {
            to[i] = y[i];
          }
        }
        __syncthreads();
        // A block that has all parts of one exchange knows that nobody reads those of the one before any
        // more; so two places in turn are enough.
        float* const parts = by_block + swap * most_cluster * panel;
        if (thread < panel) {
          float sum = 0.0F;
#pragma unroll
          for (int w = 0; w < warps; ++w) {
            sum += by_warp[w * panel + thread];
          }
          if (blocks == 1) {
            parts[thread] = sum;
          } else {
            if (thread == 0) {
              barrier_expect(arrived + swap, static_cast<unsigned>(blocks * panel) * 4);
            }
            for (int b = 0; b < blocks; ++b) {
              send_remote(parts + rank * panel + thread, b, sum, arrived + swap);
            }
          }
        }
        if (blocks == 1) {
          __syncthreads();
        } else {
          barrier_wait(arrived + swap, parity >> swap & 1U);
          parity ^= 1U << swap;
        }
        swap ^= 1;
#pragma unroll
        for (int i = 0; i < width; ++i) {
          y[i] = 0.0F;
        }
        for (int b = 0; b < blocks; ++b) {
#pragma unroll
          for (int i = 0; i < width; i += 4) {
            const float4 part = *reinterpret_cast<const float4*>(parts + b * panel + own + i);
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
#pragma unroll
        for (int p = 0; p < panel_passes; ++p) {
          r[p] *= factor;
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
      int slot = first_slot;
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        if (p < a.passes) {
          uint4* const at = ring + slot * panel_threads;
          float x[width];
          unpack<T>(p < inside ? *at : make_uint4(0, 0, 0, 0), x);
#pragma unroll
          for (int i = 0; i < width; ++i) {
            u[p] = fmaf(x[i], y[i], u[p]);
          }
          push(at);
          slot = slot + 1 == slots ? 0 : slot + 1;
        }
      }
      first_slot = slot;
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
