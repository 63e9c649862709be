// The forward over stored columns ([N, D, F]): a panel of adjacent columns at a time, each read from memory
// once.
//
// A panel holds `lanes` × 16 bytes of each of the D stored rows, in shared memory: y = W_panelᵀ r needs all D
// rows, u += W_panel y then the same bytes again. Where D is too large for one block, the blocks of a cluster
// share the rows of a panel and swap their parts of y.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/finish/image_parts.cuh>
#include <mpi_router/cuda/detail/panels/ring.cuh>
#include <mpi_router/cuda/detail/panels/row.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

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
  bool at_rest;  // weights and rows: only what is written waits for the kernel ahead
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

template <class T, int lanes, bool large, int line>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  constexpr int width = vector_width<T>;
  constexpr int panel = lanes * width;              // columns
  constexpr int pass_rows = panel_threads / lanes;  // rows of one pass
  constexpr int warps = panel_threads / 32;
  using reduction = panel_reduction<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int block_rows = a.passes * pass_rows;
  const panel_memory memory(placed_blocks(shared), large, panel);
  if (threadIdx.x == 0) {
    barrier_init(&memory.leader->arrived, 1);
    barrier_init(memory.arrived, 1);
    barrier_init(memory.arrived + 1, 1);
    publish_barriers();
  }
  cluster_arrive();
  cluster_wait();

  const thread_group group(panel_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int blocks = a.row_blocks;
  const int rank = cluster_rank() % blocks;
  const int first_block = cluster_rank() - rank;  // of those that share the rows, in the cluster
  const int unit = static_cast<int>(blockIdx.x) / blocks;
  const int run = unit / a.part.team;
  const int first_row = rank * block_rows + thread / lanes;  // this thread's row in pass 0
  const int rows =
      min(a.passes, max(0, (a.hidden - first_row + pass_rows - 1) / pass_rows));  // and how many it has
  const int own = (thread % lanes) * width;  // its first column in a panel
  const int end = a.part.first_tile(run + 1);
  int tile = a.part.first_tile(run);
  int mine = tile + unit % a.part.team;  // the next panel of this member of the team

  const bool aligned = aligned_to_16(nullptr, a.weights.hidden * static_cast<long long>(sizeof(T)),
                                     a.ffn * static_cast<long long>(sizeof(T)));
  const auto fast = [&](const T* base) { return aligned && aligned_to_16(base, 0, 0); };
  panel_ring<T, large, line> ring(memory.ring, a.passes, aligned ? pass_rows * a.weights.hidden : 0);
  int next_panel = mine;
  const auto aim_at_next = [&] {
    const T* first = nullptr;
    int present = 0;
    if (next_panel < end) {
      const int e = next_panel / a.part.tiles_per_expert;
      const int column = (next_panel - e * a.part.tiles_per_expert) * panel + own;
      const T* const base = a.weights.of(e);
      if (fast(base) && column < a.ffn) {
        first = base + first_row * a.weights.hidden + column;
        present = rows;
      }
    }
    ring.aim(first, present);
    next_panel += a.part.team;
  };
  int expert = tile / a.part.tiles_per_expert;
  if (!a.at_rest && a.weights.table != nullptr) {  // which the kernel ahead may write
    wait_for_previous_kernel();
  }
  aim_at_next();
  if (!a.at_rest) {
    wait_for_previous_kernel();
  }
  let_next_kernel_start();

  int turn = 0;
  unsigned parity = 0;  // bit `place`: of that exchange; bit 2: of the leader's inbox
  int place = 0;        // of this exchange: there are two, used in turn
  for (; tile < end; ++expert) {
    const int stop = min(end, (expert + 1) * a.part.tiles_per_expert);
    const bool in_ring = fast(a.weights.of(expert));
    float r[panel_passes];
    float u[panel_passes];
    // The first copies: behind the loads of the row, which would queue behind them. And not all at once, or
    // what comes before the first dots, be it code, would.
    const panel_row<lanes> row(a.finish.rows, expert, a.hidden, first_row - lane / lanes, group);
    const bool first = next_panel == mine + a.part.team;  // later two are asked for ahead
    if (first) {
#pragma unroll
      for (int p = 0; p < panel_early_passes; ++p) {
        ring.push(p);
      }
    }
    const int row_exponent = row.scaled(group, memory.scratch, turn, memory.row_squares, r);
    if (first) {
#pragma unroll
      for (int p = panel_early_passes; p < panel_passes; ++p) {
        ring.push(p);
      }
      ring.advance();
      aim_at_next();
    }
#pragma unroll
    for (int p = 0; p < panel_passes; ++p) {
      u[p] = 0.0F;
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;

    for (; mine < stop; mine += a.part.team) {
      if (!in_ring) [[unlikely]] {
        const int column = (mine - expert * a.part.tiles_per_expert) * panel + own;
        wait_for_copy_groups<0>();
#pragma unroll 1
        for (int p = 0; p < rows && column < a.ffn; ++p) {
          *ring.slot(p) =
              gather_vector(a.weights.of(expert) + (first_row + p * pass_rows) * a.weights.hidden + column,
                            min(width, a.ffn - column));
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
          dot_passes<false, 0>(ring, r, y);
        } else {
          dot_passes<true, 0>(ring, r, y);
        }
        again = true;
        reduction::run(y, lane);
        // A block that has all parts of one exchange knows that nobody reads those of the one before any
        // more.
        float* const by_warp = memory.by_warp + place * warps * panel;
        float* const parts = memory.by_block + place * most_cluster * panel;
        std::uint64_t* const arrived = memory.arrived + place;
        if (reduction::writes(lane)) {
          float* const to =
              by_warp + thread / 32 * panel + own + (lane >> (5 - reduction::halvings)) * reduction::left;
#pragma unroll
          for (int i = 0; i < reduction::left; ++i) {
            to[i] = y[i];
          }
        }
        __syncthreads();
        if (thread == 0 && blocks > 1) {
          barrier_expect(arrived, static_cast<unsigned>(blocks * panel) * 4);
        }
#pragma unroll 1
        for (int i = thread; i < blocks * panel; i += panel_threads) {
          const int c = i % panel;
          float sum = 0.0F;
#pragma unroll
          for (int w = 0; w < warps; ++w) {
            sum += by_warp[w * panel + c];
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
          barrier_wait<writers::cluster>(arrived, parity >> place & 1U);
          parity ^= 1U << place;
        }
        place ^= 1;
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
      lift_passes(ring, y, u);
      ring.advance();
      aim_at_next();
    }

#pragma unroll
    for (int m = lanes / 2; m >= 1; m /= 2) {
      energy += __shfl_xor_sync(0xffffffffU, energy, m);
    }
    constexpr int left = panel_passes / lanes;  // passes whose sums a lane ends with
    halve_over_warp<panel_passes, lanes / 2, left>(u, lane);
    wait_for_previous_kernel();
    const slot_header header{energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    const int begin = rank * block_rows;
    const int member = unit % a.part.team;
    const auto put_image = [&](const auto& put) {
#pragma unroll
      for (int i = 0; i < left; ++i) {
        put(begin + thread / lanes + (thread % lanes * left + i) * pass_rows, u[i]);
      }
    };
    if (!a.fused) {
      const int slot = a.part.slot(run, expert) + member;
      float* const image = a.out.rows + static_cast<long long>(slot) * a.out.pitch;
      put_image([&](int row, float x) {
        if (row < min(begin + block_rows, a.out.pitch)) {
          image[row] = x;
        }
      });
      if (thread == 0 && rank == 0) {
        a.out.headers[slot] = header;
      }
    } else {
      const int pitch = blocks * block_rows;
      const leader_inbox inbox{memory.image, memory.image + pitch, memory.leader, a.part.team, pitch,
                               block_rows};
      put_image([&](int row, float x) {
        if (row < begin + block_rows) {
          inbox.put(member, row, x);
        }
      });
      if (thread == 0 && rank == 0) {
        inbox.put(member, header);
      }
      // No part of this cluster's next expert comes too early: it follows an exchange in which the leader
      // takes part, and only a cluster whose blocks share the rows has a next expert.
      if (leader_inbox::leads()) {
        const image_parts image = inbox.collect(parity >> 2);
        finish_expert<0>(a.finish, expert, image, thread < warps ? memory.row_squares[thread] : 0.0,
                         *memory.leader);
        parity ^= 4U;
      }
    }
    tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
