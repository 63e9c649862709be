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

/// Which panels a block has, and where their weights are.
template <class T, class Place, class Ring>
struct panel_sweep {
  const panel_step_args<T>& a;
  const Place& at;
  Ring& ring;
  bool aligned;
  int tile;        // the first panel of the team in the present expert
  int end;         // of the team's panels
  int mine;        // the next panel of this member of the team
  int next_panel;  // to copy

  __device__ __forceinline__ panel_sweep(const panel_step_args<T>& args, const Place& place, Ring& its_ring,
                                         bool is_aligned)
      : a(args),
        at(place),
        ring(its_ring),
        aligned(is_aligned),
        tile(a.part.first_tile(at.run)),
        end(a.part.first_tile(at.run + 1)),
        mine(tile + at.member(a.part.team)),
        next_panel(mine) {}
  [[nodiscard]] __device__ __forceinline__ bool fast(const T* base) const {
    return aligned && aligned_to_16(base, 0, 0);
  }
  /// This thread's first column in a panel of expert e.
  [[nodiscard]] __device__ __forceinline__ int column(int panel, int e) const {
    return (panel - e * a.part.tiles_per_expert) * Place::panel + at.own;
  }
  /// Has the ring copy the next panel.
  __device__ __forceinline__ void aim_at_next() {
    const T* first = nullptr;
    int present = 0;
    if (next_panel < end) {
      const int e = next_panel / a.part.tiles_per_expert;
      const int c = column(next_panel, e);
      const T* const base = a.weights.of(e);
      if (fast(base) && c < a.ffn) {
        first = base + at.first_row * a.weights.hidden + c;
        present = at.rows;
      }
    }
    ring.aim(first, present);
    next_panel += a.part.team;
  }
  /// This thread's part of the panel at hand, which the asynchronous copies left out, element by element.
  __device__ __forceinline__ void fetch(int expert) const {
    const int c = column(mine, expert);
    const T* const from = a.weights.of(expert) + at.first_row * a.weights.hidden + c;
    const int passes = c < a.ffn ? at.rows : 0;
    wait_for_copy_groups<0>();
#pragma unroll 1
    for (int p = 0; p < passes; ++p) {
      *ring.slot(p) =
          gather_vector(from + p * (Place::pass_rows * a.weights.hidden), min(vector_width<T>, a.ffn - c));
    }
  }
};

/// Whether rows and columns start at multiples of 16 bytes, where the experts do.
template <class T>
[[nodiscard]] __device__ __forceinline__ bool is_aligned(const panel_step_args<T>& a) {
  return aligned_to_16(nullptr, a.weights.hidden * static_cast<long long>(sizeof(T)),
                       a.ffn * static_cast<long long>(sizeof(T)));
}

/// The first copies, as far as they need not wait for the kernel ahead.
template <class Sweep>
__device__ __forceinline__ void start(Sweep& sweep) {
  if (!sweep.a.at_rest && sweep.a.weights.table != nullptr) {  // which the kernel ahead may write
    wait_for_previous_kernel();
  }
  sweep.aim_at_next();
  if (!sweep.a.at_rest) {
    wait_for_previous_kernel();
  }
  let_next_kernel_start();
}

/// A router row in the registers of a block, and what the sweep over the panels adds up.
template <int passes>
struct panel_sums {
  float r[passes];
  float u[passes];
  float energy = 0.0F;
  row_shift shift;
  sum_scale scale;
};

/// Loads the row of an expert and starts the copies of its first panel: behind the loads of the row, which
/// would queue behind them. And not all at once, or what comes before the first dots, be it code, would.
/// Returns the exponent that is taken out of r.
template <int lanes, int passes, class Sweep>
__device__ __forceinline__ int begin_row(Sweep& sweep, const panel_memory& memory, const thread_group& group,
                                         int expert, int& turn, float (&r)[passes]) {
  const panel_row<passes, lanes> row(sweep.a.finish.rows, expert, sweep.a.hidden,
                                     sweep.at.first_row - sweep.at.lane / lanes, group);
  const bool first = sweep.next_panel == sweep.mine + sweep.a.part.team;  // later two are asked for ahead
  if (first) {
    push_passes<0, panel_early_passes>(sweep.ring);
  }
  const int exponent = row.scaled(group, memory.scratch, turn, memory.row_squares, r);
  if (first) {
    push_passes<panel_early_passes, passes>(sweep.ring);
    sweep.ring.advance();
    sweep.aim_at_next();
  }
  return exponent;
}

/// The projections of the panel at hand; returns the bits of the largest.
template <int passes, int width, int lanes, class Ring>
__device__ __forceinline__ unsigned project_panel(Ring& ring, panel_exchange<width, lanes>& exchange,
                                                  const panel_place<width, lanes>& at,
                                                  panel_sums<passes>& sums, float (&y)[width]) {
  bool again = false;
  sums.shift.begin_tile();
  while (true) {
    clear(y);
    if (!again) [[likely]] {
      dot_passes<false, 0>(ring, sums.r, y);
    } else {
      dot_passes<true, 0>(ring, sums.r, y);
    }
    again = true;
    exchange.sum(at, y);
    const unsigned most = largest_over_lanes<lanes>(y);
    const float factor = sums.shift.retry(most);
    if (factor == 0.0F) [[likely]] {
      return most;
    }
    multiply(sums.r, factor);
  }
}

/// Adds the panel at hand, by its projections, to energy and image.
template <int passes, int width, class Ring>
__device__ __forceinline__ void lift_panel(Ring& ring, unsigned most, panel_sums<passes>& sums,
                                           float (&y)[width]) {
  if (most != 0) {
    sums.scale.admit(most, sums.shift.exponent(), [&](float image_factor, float energy_factor) {
      sums.energy *= energy_factor;
      multiply(sums.u, image_factor);
    });
  }
#pragma unroll
  for (int i = 0; i < width; ++i) {
    const float e = y[i] * sums.scale.energy_factor;
    sums.energy = fmaf(e, e, sums.energy);
    y[i] *= sums.scale.image_factor;
  }
  lift_passes(ring, y, sums.u);
}

/// What becomes of a block's sums over the panels of one expert.
template <int passes, int width, int lanes, class T>
__device__ __forceinline__ void end_expert(const panel_step_args<T>& a, const panel_place<width, lanes>& at,
                                           const panel_memory& memory, panel_exchange<width, lanes>& exchange,
                                           int expert, int row_exponent, panel_sums<passes>& sums) {
#pragma unroll
  for (int m = lanes / 2; m >= 1; m /= 2) {
    sums.energy += __shfl_xor_sync(0xffffffffU, sums.energy, m);
  }
  halve_over_warp<passes, lanes / 2, passes / lanes>(sums.u, at.lane);
  wait_for_previous_kernel();
  const slot_header header{sums.energy, 2 * sums.scale.projection + 2 * row_exponent,
                           sums.scale.image + row_exponent, 0};
  if (!a.fused) {
    leave_image(at, a.out, a.part.slot(at.run, expert) + at.member(a.part.team), header, sums.u);
    return;
  }
  // No part of this cluster's next expert comes too early: it follows an exchange in which the leader takes
  // part, and only a cluster whose blocks share the rows has a next expert.
  const leader_inbox inbox = send_image(at, memory, a.part.team, header, sums.u);
  if (leader_inbox::leads()) {
    const image_parts image = inbox.collect(exchange.image_turn());
    finish_expert<0>(a.finish, expert, image, at.thread < at.warps ? memory.row_squares[at.thread] : 0.0,
                     *memory.leader);
  }
}

template <class T, int lanes, panel_depth depth, int line>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  constexpr int width = vector_width<T>;
  using place = panel_place<width, lanes>;
  extern __shared__ __align__(128) unsigned char shared[];
  const panel_memory memory(placed_blocks(shared), depth, place::panel);
  panel_exchange<width, lanes> exchange(memory);
  const thread_group group(panel_threads);
  const place at(a.passes, a.row_blocks, a.part.team, a.hidden);
  const bool aligned = is_aligned(a);
  panel_ring<T, depth, line> ring(memory.ring, a.passes, aligned ? place::pass_rows * a.weights.hidden : 0);
  panel_sweep sweep(a, at, ring, aligned);
  start(sweep);

  int turn = 0;
  for (int expert = sweep.tile / a.part.tiles_per_expert; sweep.tile < sweep.end; ++expert) {
    const int stop = min(sweep.end, (expert + 1) * a.part.tiles_per_expert);
    const bool in_ring = sweep.fast(a.weights.of(expert));
    panel_sums<panel_passes(depth)> sums;
    const int row_exponent = begin_row<lanes>(sweep, memory, group, expert, turn, sums.r);
    clear(sums.u);
    for (; sweep.mine < stop; sweep.mine += a.part.team) {
      if (!in_ring) [[unlikely]] {
        sweep.fetch(expert);
      }
      float y[width];
      const unsigned most = project_panel(ring, exchange, at, sums, y);
      lift_panel(ring, most, sums, y);
      ring.advance();
      sweep.aim_at_next();
    }
    end_expert(a, at, memory, exchange, expert, row_exponent, sums);
    sweep.tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
