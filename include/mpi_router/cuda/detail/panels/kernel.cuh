// The forward over stored columns ([N, D, F]): a panel of adjacent columns at a time, each read from memory
// once.
//
// A panel holds `lanes` × 16 bytes of each of the D stored rows, in shared memory: y = W_panelᵀ r needs all D
// rows, u += W_panel y then the same bytes again. Where D is too large for one block, the blocks of a cluster
// share the rows of a panel and swap their parts of y.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/panels/exchange.cuh>
#include <mpi_router/cuda/detail/panels/image.cuh>
#include <mpi_router/cuda/detail/panels/place.cuh>
#include <mpi_router/cuda/detail/panels/ring.cuh>
#include <mpi_router/cuda/detail/panels/row.cuh>
#include <mpi_router/cuda/detail/plan/partition.hpp>

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

/// This thread's part of a panel that the asynchronous copies left out, element by element: `from` is its
/// first element of the first pass.
template <class T, bool large, int line>
__device__ __forceinline__ void fetch_panel(const panel_ring<T, large, line>& ring, const T* from,
                                            long long step, int passes, int columns) {
  wait_for_copy_groups<0>();
#pragma unroll 1
  for (int p = 0; p < passes; ++p) {
    *ring.slot(p) = gather_vector(from + p * step, min(vector_width<T>, columns));
  }
}

template <class T, int lanes, bool large, int line>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  constexpr int width = vector_width<T>;
  using place = panel_place<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  const panel_memory memory(placed_blocks(shared), large, place::panel);
  panel_exchange<width, lanes> exchange(memory);
  const thread_group group(panel_threads);
  const place at(a.passes, a.row_blocks, a.part.team, a.hidden);
  const int end = a.part.first_tile(at.run + 1);
  int tile = a.part.first_tile(at.run);
  int mine = tile + at.member(a.part.team);  // the next panel of this member of the team

  const bool aligned = aligned_to_16(nullptr, a.weights.hidden * static_cast<long long>(sizeof(T)),
                                     a.ffn * static_cast<long long>(sizeof(T)));
  const auto fast = [&](const T* base) { return aligned && aligned_to_16(base, 0, 0); };
  panel_ring<T, large, line> ring(memory.ring, a.passes, aligned ? place::pass_rows * a.weights.hidden : 0);
  int next_panel = mine;
  const auto aim_at_next = [&] {
    const T* first = nullptr;
    int present = 0;
    if (next_panel < end) {
      const int e = next_panel / a.part.tiles_per_expert;
      const int column = (next_panel - e * a.part.tiles_per_expert) * place::panel + at.own;
      const T* const base = a.weights.of(e);
      if (fast(base) && column < a.ffn) {
        first = base + at.first_row * a.weights.hidden + column;
        present = at.rows;
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
  for (; tile < end; ++expert) {
    const int stop = min(end, (expert + 1) * a.part.tiles_per_expert);
    const bool in_ring = fast(a.weights.of(expert));
    float r[panel_passes];
    float u[panel_passes];
    // The first copies: behind the loads of the row, which would queue behind them. And not all at once, or
    // what comes before the first dots, be it code, would.
    const panel_row<lanes> row(a.finish.rows, expert, a.hidden, at.first_row - at.lane / lanes, group);
    const bool first = next_panel == mine + a.part.team;  // later two are asked for ahead
    if (first) {
      push_passes<0, panel_early_passes>(ring);
    }
    const int row_exponent = row.scaled(group, memory.scratch, turn, memory.row_squares, r);
    if (first) {
      push_passes<panel_early_passes, panel_passes>(ring);
      ring.advance();
      aim_at_next();
    }
    clear(u);
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;

    for (; mine < stop; mine += a.part.team) {
      if (!in_ring) [[unlikely]] {
        const int column = (mine - expert * a.part.tiles_per_expert) * place::panel + at.own;
        fetch_panel(ring, a.weights.of(expert) + at.first_row * a.weights.hidden + column,
                    place::pass_rows * a.weights.hidden, column < a.ffn ? at.rows : 0, a.ffn - column);
      }
      float y[width];
      unsigned most = 0;
      bool again = false;
      shift.begin_tile();
      while (true) {
        clear(y);
        if (!again) [[likely]] {
          dot_passes<false, 0>(ring, r, y);
        } else {
          dot_passes<true, 0>(ring, r, y);
        }
        again = true;
        exchange.sum(at, y);
        most = largest_over_lanes<lanes>(y);
        const float factor = shift.retry(most);
        if (factor == 0.0F) [[likely]] {
          break;
        }
        multiply(r, factor);
      }
      if (most != 0) {
        scale.admit(most, shift.exponent(), [&](float image_factor, float energy_factor) {
          energy *= energy_factor;
          multiply(u, image_factor);
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
    halve_over_warp<panel_passes, lanes / 2, panel_passes / lanes>(u, at.lane);
    wait_for_previous_kernel();
    const slot_header header{energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    if (!a.fused) {
      leave_image(at, a.out, a.part.slot(at.run, expert) + at.member(a.part.team), header, u);
    } else {
      // No part of this cluster's next expert comes too early: it follows an exchange in which the leader
      // takes part, and only a cluster whose blocks share the rows has a next expert.
      const leader_inbox inbox = send_image(at, memory, a.part.team, header, u);
      if (leader_inbox::leads()) {
        const image_parts image = inbox.collect(exchange.image_turn());
        finish_expert<0>(a.finish, expert, image,
                         at.thread < place::warps ? memory.row_squares[at.thread] : 0.0, *memory.leader);
      }
    }
    tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
