// A block's way over panels of stored columns ([N, D, F]), which forward and backward share: which panels it
// has, their copies, and what is done with each.
//
// A panel holds `lanes` × 16 bytes of each of the D stored rows, in shared memory: y = W_panelᵀ r needs all D
// rows, u += W_panel y then the same bytes again. Where D is too large for one block, the blocks of a cluster
// share the rows of a panel and swap their parts of y.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/pair.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/panels/exchange.cuh>
#include <mpi_router/cuda/detail/panels/image.cuh>
#include <mpi_router/cuda/detail/panels/place.cuh>
#include <mpi_router/cuda/detail/panels/ring.cuh>
#include <mpi_router/cuda/detail/plan/partition.hpp>

#include <cstdint>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T>
struct panel_sweep_args {
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
};

/// Whether rows and columns start at multiples of 16 bytes, where the experts do.
template <class T>
[[nodiscard]] __device__ __forceinline__ bool is_aligned(const panel_sweep_args<T>& a) {
  return aligned_to_16(nullptr, a.weights.hidden * static_cast<long long>(sizeof(T)),
                       a.ffn * static_cast<long long>(sizeof(T)));
}

/// Whether rows that are `stride` bytes apart begin at words.
[[nodiscard]] __device__ __forceinline__ bool in_words(const void* first, long long stride) {
  return ((reinterpret_cast<std::uintptr_t>(first) | static_cast<std::uintptr_t>(stride)) & 3U) == 0;
}

/// A block: its memory, where it is, and its way over the panels. (No member refers to another one: the
/// compiler would keep all of them in memory.)
template <class T, int lanes, panel_depth its_depth, int line, int probes, int old_slots,
          bool in_tiles = false>
struct panel_sweep {
  static constexpr panel_depth depth = its_depth;
  static constexpr int width = vector_width<T>;
  static constexpr int passes = panel_passes(depth);
  static constexpr int values = probes * width;
  using place = panel_place<width, lanes>;

  const panel_sweep_args<T>& a;
  panel_memory memory;
  panel_exchange<width, lanes, probes, in_tiles> exchange;
  thread_group group;
  place at;
  bool aligned;
  panel_ring<T, depth, line, (in_tiles ? lanes : 0)> ring;
  int tile;        // the first panel of the team in the present expert
  int end;         // of the team's panels
  int mine;        // the next panel of this member of the team
  int next_panel;  // to copy
  int turn = 0;    // of the scratch

  __device__ __forceinline__ panel_sweep(const panel_sweep_args<T>& args, unsigned char* shared)
      : a(args),
        memory(placed_blocks(shared), depth,
               {probes * place::panel,
                in_tiles ? panel_tile_floats(lanes) : panel_probe_floats(depth, lanes, probes), old_slots, 0,
                panel_exchanges(in_tiles)}),
        exchange(memory),
        group(panel_threads),
        at(a.passes, a.row_blocks, a.part.team, a.hidden),
        aligned(is_aligned(a)),
        ring(memory.ring, a.passes, aligned ? place::pass_rows * a.weights.hidden : 0),
        tile(a.part.first_tile(at.run)),
        end(a.part.first_tile(at.run + 1)),
        mine(tile + at.member(a.part.team)),
        next_panel(mine) {
    if (!a.at_rest && a.weights.table != nullptr) {  // which the kernel ahead may write
      wait_for_previous_kernel();
    }
    aim_at_next();
    if (!a.at_rest) {
      wait_for_previous_kernel();
    }
    let_next_kernel_start();
  }

  [[nodiscard]] __device__ __forceinline__ bool fast(const T* base) const {
    return aligned && aligned_to_16(vector_start(base), 0, 0);
  }
  /// This thread's first column in a panel of expert e.
  [[nodiscard]] __device__ __forceinline__ int column(int panel, int e) const {
    return (panel - e * a.part.tiles_per_expert) * place::panel + at.own;
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
        first = vector_start(base) + at.first_row * a.weights.hidden + c;
        present = at.rows;
      }
    }
    ring.aim(first, present);
    next_panel += a.part.team;
  }
  /// This thread's part of the panel at hand, which the copies ahead left out: by words, all under way at
  /// once, or element by element.
  __device__ __forceinline__ void fetch(int expert) const {
    const int c = column(mine, expert);
    const T* from = a.weights.of(expert) + at.first_row * a.weights.hidden + c;
    const long long step = place::pass_rows * a.weights.hidden;
    const int present = c < a.ffn ? at.rows : 0;
    const int left = min(width, a.ffn - c);
    wait_for_copy_groups<0>();
    if (!is_pair<T> && in_words(from, step * static_cast<long long>(sizeof(T)))) {
#pragma unroll 1
      for (int p = 0; p < present; ++p, from += step) {
        copy_async_words(ring.slot(p), from, left * static_cast<int>(sizeof(T)));
      }
      close_copy_group();
      wait_for_copy_groups<0>();
      return;
    }
#pragma unroll 1
    for (int p = 0; p < present; ++p, from += step) {
      *ring.slot(p) = gather_vector(from, left);
    }
  }
  /// Starts the copies of an expert's first panel around load(), where the rows are made whose loads are
  /// under way: behind the loads, which would queue behind them. And not all at once, or what comes before
  /// the first dots, be it code, would.
  template <class Load>
  __device__ __forceinline__ void begin_expert(const Load& load) {
    const bool first = next_panel == mine + a.part.team;  // later two are asked for ahead
    constexpr int early = in_tiles ? passes : panel_early_passes;
    if (first) {
      push_passes<0, early>(ring);
    }
    load();
    if (first) {
      push_passes<early, passes>(ring);
      ring.advance();
      aim_at_next();
    }
  }
  /// The projections of the panel at hand with each probe; returns the bits of the largest. Where they leave
  /// the range, rescale(factor) shifts the rows and they are taken once more, unless they do not matter
  /// (`dead`). rows(p) are the elements that the probes have in the thread's row of pass p; with: see
  /// dot_passes.
  template <class Rescale, class Rows, class With>
  __device__ __forceinline__ unsigned project(row_shift& shift, bool dead, float (&y)[values],
                                              const Rescale& rescale, const Rows& rows, const With& with) {
    bool again = false;
    shift.begin_tile();
    while (true) {
      clear(y);
      if (!again) [[likely]] {
        dot_passes<false, 0, probes>(ring, y, rows, with);
      } else {
        dot_passes<true, 0, probes>(ring, y, rows, with);
      }
      again = true;
      exchange.sum(at, y);
      const unsigned most = largest_over_lanes<lanes>(y);
      const float factor = dead ? 0.0F : shift.retry(most);
      if (factor == 0.0F) [[likely]] {
        return most;
      }
      rescale(factor);
    }
  }
  /// What becomes of the block's sums over the panels of one expert: they go to their slot, or to the first
  /// block of the cluster, which calls finish(image).
  template <class Finish>
  __device__ __forceinline__ void end_expert(int expert, const slot_header& header, float (&u)[passes],
                                             const Finish& finish) {
    halve_over_warp<passes, lanes / 2, passes / lanes>(u, at.lane);
    end_expert_of(expert, header, [&](const auto& put) { for_rows_of_image(at, u, put); }, finish);
  }
  /// The same where rows(put) calls put(row, x) for the sums that this thread ends with.
  template <class Rows, class Finish>
  __device__ __forceinline__ void end_expert_of(int expert, const slot_header& header, const Rows& rows,
                                                const Finish& finish) {
    wait_for_previous_kernel();
    if (!a.fused) {
      leave_image(at, a.out, a.part.slot(at.run, expert) + at.member(a.part.team), header, rows);
      return;
    }
    // No part of this cluster's next expert comes too early: it follows an exchange in which the leader takes
    // part, and only a cluster whose blocks share the rows has a next expert.
    const leader_inbox inbox = send_image(at, memory, a.part.team, header, rows);
    if (leader_inbox::leads()) {
      finish(inbox.collect(exchange.image_turn()));
    }
  }
};

/// Goes over the panels of a block, one expert after the other: Step is made of the sweep, `args` and the
/// expert, and has panel() and end().
template <class Step, class Sweep, class Args>
__device__ __forceinline__ void for_each_panel(Sweep& sweep, const Args& args) {
  const partition& part = sweep.a.part;
  for (int expert = sweep.tile / part.tiles_per_expert; sweep.tile < sweep.end; ++expert) {
    const int stop = min(sweep.end, (expert + 1) * part.tiles_per_expert);
    const auto* const base = sweep.a.weights.of(expert);
    const bool in_ring = sweep.fast(base);
    sweep.ring.decode = std::remove_cvref_t<decltype(sweep.ring.decode)>(base);
    Step step(sweep, args, expert);
    for (; sweep.mine < stop; sweep.mine += part.team) {
      if (!in_ring) [[unlikely]] {
        sweep.fetch(expert);
      }
      step.panel();
      sweep.ring.advance();
      sweep.aim_at_next();
    }
    step.end();
    sweep.tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
