// The forward over stored columns ([N, D, F]): a panel of adjacent columns at a time, each read from memory
// once.
//
// A panel holds `lanes` × 16 bytes of each of the D stored rows. Each thread copies to shared memory, and
// works on, its own 16 bytes of up to panel_passes rows, so that it waits for its own copies only: y =
// W_panelᵀ r needs all D rows, u += W_panel y then the same bytes again. Where D is too large for one block,
// the blocks of a cluster share the rows of a panel and swap their parts of y.
#pragma once

#include <mpi_router/cuda/detail/panel_memory.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

template <class T>
struct panel_step_args {
  batch<const T> weights;
  int ffn;
  int hidden;
  int passes;
  int row_blocks;  // blocks that share the rows of a panel
  partition part;  // over such teams of blocks
  partial_sums out;
  /// A cluster has all of its experts' panels, and also does what otherwise a second kernel does.
  bool fused;
  finish_args finish;
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

/// A thread's place in its ring.
template <bool large>
struct ring_place {
  static constexpr int slots = panel_slots(large);
  uint4* at;
  const uint4* end;

  __device__ __forceinline__ explicit ring_place(uint4* first)
      : at(first), end(first + slots * panel_threads) {}
  __device__ __forceinline__ void advance() {
    at += panel_threads;
    at = at == end ? at - slots * panel_threads : at;
  }
};

/// y += this thread's part of a panel times its rows, as the passes arrive: pass p has when all copies but
/// those closed after it have. `push` starts a copy to a slot that is free; a panel that is done `again`,
/// with rows of another scale, has arrived already.
template <class T, bool large, bool again, int p, int width, class Push>
__device__ __forceinline__ void dot_passes(ring_place<large> place, int passes,
                                           const float (&r)[panel_passes], float (&y)[width],
                                           const Push& push) {
  constexpr int every = panel_copy_every(large);
  constexpr int slots = panel_slots(large);
  if constexpr (p < panel_passes) {
    if (p < passes) {
      if constexpr (!again) {
        wait_for_copy_groups<slots - panel_passes / every - 1 - p + p / every>();
      }
      float x[width];
      unpack<T>(*place.at, x);
      if constexpr (!again && p % every == every - 1) {
        push();
      }
#pragma unroll
      for (int i = 0; i < width; ++i) {
        y[i] = fmaf(x[i], r[p], y[i]);
      }
      place.advance();
      dot_passes<T, large, again, p + 1>(place, passes, r, y, push);
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
  constexpr int copy_every = panel_copy_every(large);
  using reduction = panel_reduction<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  ring_place<large> place(reinterpret_cast<uint4*>(shared) + threadIdx.x);
  const panel_memory<panel> memory(shared + slots * panel_threads * 16);
  if (threadIdx.x < 2) {
    barrier_init(memory.arrived + threadIdx.x, 1);
  }
  publish_barriers();
  cluster_arrive();
  wait_for_previous_kernel();
  let_next_kernel_start();

  const thread_group group(panel_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int blocks = a.row_blocks;
  const int rank = cluster_rank() % blocks;
  const int first_block = cluster_rank() - rank;  // of those that share the rows, in the cluster
  const int unit = static_cast<int>(blockIdx.x) / blocks;
  const int run = unit / a.part.team;
  const int block_rows = a.passes * pass_rows;
  const int first_row = rank * block_rows + thread / lanes;  // this thread's row in pass 0
  const int rows =
      min(a.passes, max(0, (a.hidden - first_row + pass_rows - 1) / pass_rows));  // and how many it has
  const int own = (thread % lanes) * width;  // its first column in a panel
  const int end = a.part.first_tile(run + 1);
  int tile = a.part.first_tile(run);
  int mine = tile + unit % a.part.team;  // the next panel of this member of the team

  // Where a panel's passes lie: the first, and how many there are; the ring has zeros for the others.
  const bool aligned = aligned_to_16(nullptr, a.weights.hidden * static_cast<long long>(sizeof(T)),
                                     a.ffn * static_cast<long long>(sizeof(T)));
  const auto fast = [&](const T* base) { return aligned && aligned_to_16(base, 0, 0); };
  const long long step = aligned ? pass_rows * a.weights.hidden : 0;
  struct source {
    const T* first;
    int rows;
  };
  int next_panel = mine;
  const auto next_source = [&] {
    source from{nullptr, 0};
    if (next_panel < end) {
      const int e = next_panel / a.part.tiles_per_expert;
      const int column = (next_panel - e * a.part.tiles_per_expert) * panel + own;
      const T* const base = a.weights.of(e);
      if (fast(base) && column < a.ffn) {
        from = {base + first_row * a.weights.hidden + column, rows};
      }
    }
    next_panel += a.part.team;
    return from;
  };
  // The pass to copy next: one group of copies each. From the first of a panel on they are those of `coming`.
  source coming = next_source();
  source copied{};
  int next_pass = 0;
  ring_place<large> next_place = place;
  const auto push = [&] {
    copied.first = next_pass == 0 ? coming.first : copied.first;
    copied.rows = next_pass == 0 ? coming.rows : copied.rows;
    if (next_pass < copied.rows) {
      copy_async_16(next_place.at, copied.first);
    } else {
      *next_place.at = make_uint4(0, 0, 0, 0);
    }
    close_copy_group();
    copied.first += step;
    next_place.advance();
    next_pass = next_pass + 1 == a.passes ? 0 : next_pass + 1;
  };
#pragma unroll 1
  for (int s = 0; s < slots - panel_passes / copy_every; ++s) {
    const bool begins = next_pass == 0;
    push();
    if (begins) {
      coming = next_source();
    }
  }
  cluster_wait();  // all blocks have begun: their memory may be written

  int turn = 0;
  unsigned parity = 0;
  int swap = 0;
  while (tile < end) {
    const int expert = tile / a.part.tiles_per_expert;
    const int stop = min(end, (expert + 1) * a.part.tiles_per_expert);
    const T* const base = a.weights.of(expert);
    const bool in_ring = fast(base);
    unsigned most_word = 0;
    for (int d = thread; d < a.hidden; d += panel_threads * panel_passes) {
      double x[panel_passes];
      a.finish.rows.load_every(expert, d, panel_threads, (a.hidden - d + panel_threads - 1) / panel_threads,
                               x);
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        most_word = max(most_word, high_word(x[p]));
      }
    }
    const int row_exponent = exponent_of_high_word(max_over_group(most_word, group, memory.scratch, turn));
    const double row_scale = wide_power_of_two(-row_exponent);
    float r[panel_passes];
    float u[panel_passes];
    {
      double x[panel_passes];
      a.finish.rows.load_every(expert, first_row, pass_rows, rows, x);
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        r[p] = static_cast<float>(x[p] * row_scale);
        u[p] = 0.0F;
      }
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;

    for (; mine < stop; mine += a.part.team) {
      if (!in_ring) [[unlikely]] {
        const int column = (mine - expert * a.part.tiles_per_expert) * panel + own;
        wait_for_copy_groups<0>();
        ring_place<large> to = place;
#pragma unroll 1
        for (int p = 0; p < rows && column < a.ffn; ++p) {
          *to.at = gather_vector(base + (first_row + p * pass_rows) * a.weights.hidden + column,
                                 min(width, a.ffn - column));
          to.advance();
        }
      }
      float y[width];
      unsigned most = 0;
      bool again = false;
      shift.begin_tile();
      while (true) {
#pragma unroll
        for (int i = 0; i < width; ++i) {
          y[i] = 0.0F;
        }
        if (!again) [[likely]] {
          dot_passes<T, large, false, 0>(place, a.passes, r, y, push);
        } else {
          dot_passes<T, large, true, 0>(place, a.passes, r, y, push);
        }
        again = true;
        reduction::run(y, lane);
        if (reduction::writes(lane)) {
          float* const to = memory.by_warp + thread / 32 * panel + own +
                            (lane >> (5 - reduction::halvings)) * reduction::left;
#pragma unroll
          for (int i = 0; i < reduction::left; ++i) {
            to[i] = y[i];
          }
        }
        __syncthreads();
        // A block that has all parts of one exchange knows that nobody reads those of the one before any
        // more; so two places in turn are enough.
        float* const parts = memory.by_block + swap * most_cluster * panel;
        std::uint64_t* const arrived = memory.arrived + swap;
        if (thread == 0 && blocks > 1) {
          barrier_expect(arrived, static_cast<unsigned>(blocks * panel) * 4);
        }
#pragma unroll 1
        for (int i = thread; i < blocks * panel; i += panel_threads) {
          const int c = i % panel;
          float sum = 0.0F;
#pragma unroll
          for (int w = 0; w < warps; ++w) {
            sum += memory.by_warp[w * panel + c];
          }
          if (blocks == 1) {
            parts[c] = sum;
          } else {
            send_remote(parts + rank * panel + c, first_block + i / panel, sum, arrived);
          }
        }
        if (blocks == 1) {
          __syncthreads();
        } else {
          barrier_wait(arrived, parity >> swap & 1U);
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
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        if (p < a.passes) {
          float x[width];
          unpack<T>(*place.at, x);
#pragma unroll
          for (int i = 0; i < width; ++i) {
            u[p] = fmaf(x[i], y[i], u[p]);
          }
          if (p % copy_every != copy_every - 1) {
            push();
          }
          place.advance();
        }
      }
      coming = next_source();
    }

#pragma unroll
    for (int m = lanes / 2; m >= 1; m /= 2) {
      energy += __shfl_xor_sync(0xffffffffU, energy, m);
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        u[p] += __shfl_xor_sync(0xffffffffU, u[p], m);
      }
    }
    const slot_header header{energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    const int slot = a.part.slot(run, expert) + unit % a.part.team;
    const int begin = rank * block_rows;
    float* const image =
        a.fused ? memory.image : a.out.rows + static_cast<long long>(slot) * a.out.pitch + begin;
    if (thread % lanes == 0) {
#pragma unroll
      for (int p = 0; p < panel_passes; ++p) {
        const int row = first_row + p * pass_rows;
        if (p < a.passes && (a.fused || row < a.out.pitch)) {
          image[row - begin] = u[p];
        }
      }
    }
    if (thread == 0 && (a.fused || rank == 0)) {
      *(a.fused ? memory.header : a.out.headers + slot) = header;
    }
    if (a.fused) {
      const int members = cluster_size() / blocks;
      const int share = block_rows / members;
      const int from = begin + first_block / blocks * share;
      cluster_sync();
      constexpr int kept = pass_rows * panel_passes <= 4 * panel_threads ? 1 : 0;
      finish_expert<kept>(a.finish, expert,
                          panel_image{memory.image, memory.header, begin, rank, blocks, members}, from,
                          min(min(from + share, begin + block_rows), a.hidden), memory.finish, panel_threads);
      cluster_sync_after_reads();  // the next expert's image, or the block's end, may come
    }
    tile = stop;
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
