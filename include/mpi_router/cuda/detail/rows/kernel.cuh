// The forward over stored rows: rM = Σ_f ⟨a_f, r⟩ a_f, each row a_f read from memory once.
//
// A group of threads takes a tile of whole rows from its ring into registers (every thread has fixed
// columns), sums the dots over the group, and adds the rows, weighted by them, to the image in registers.
#pragma once

#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/rows/project.cuh>
#include <mpi_router/cuda/detail/rows/segment.cuh>
#include <mpi_router/cuda/detail/rows/stored_row.cuh>
#include <mpi_router/cuda/detail/rows/sweep.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T>
struct row_step_args {
  row_sweep_args<T> sweep;
  bool at_rest;  // weights and rows: only what is written waits for the kernel ahead
  finish_args finish;
};

/// A router row in the registers of a group, and what the sweep over the stored rows adds up.
template <int columns>
struct row_sums {
  float r[columns];
  float u[columns];
  float energy = 0.0F;
  row_shift shift;
  sum_scale scale;
};

/// Loads the row of an expert and starts the copies of its first tiles. Returns the exponent that is taken
/// out of r; ‖r‖² goes to shared memory, a part from each warp of the block's first group.
template <int vectors, class T, class Sweep, int columns>
__device__ __forceinline__ int begin_row(const row_step_args<T>& a, Sweep& sweep, int expert,
                                         float (&r)[columns]) {
  const thread_group& group = sweep.group;
  const stored_row<vectors, columns / vectors> row(a.finish.rows, expert, a.sweep.tiles.hidden, group);
  sweep.begin_copies(1);
  if (group.id == 0) {
    const double square = add_over_warp(row.square());
    if (group.lane() == 0) {
      sweep.memory.row_squares[group.warp()] = square;
    }
  }
  const int exponent = exponent_of_high_word(max_over_group(row.most(), group, sweep.scratch, sweep.turn));
  row.scaled(exponent, r);
  sweep.begin_copies(a.sweep.ring.stages);
  return exponent;
}

/// u += Σ ⟨a_f, r⟩ a_f over the rows of a tile, whose vectors are load(g, v). sink: see lift.
template <class T, int vectors, int rows, class Sweep, int columns, class Load, class Sink>
__device__ __forceinline__ void step_rows(Sweep& sweep, const Load& load, row_sums<columns>& sums,
                                          const Sink& sink) {
  float y[rows];
  const unsigned most = project(
                            sweep, sums.shift, false, y,
                            [&](float(&dots)[rows]) { take_dots<T, vectors, rows>(load, dots, sums.r); },
                            [&](float factor) { multiply(sums.r, factor); })
                            .most;
  if (most == 0) {
    return;
  }
  sums.scale.admit(most, sums.shift.exponent(), [&](float image_factor, float energy_factor) {
    sums.energy *= energy_factor;
    multiply(sums.u, image_factor);
  });
  lift<T, vectors, rows>(
      load, sums.u,
      [&](int g) {
        const float e = y[g] * sums.scale.energy_factor;
        sums.energy = fmaf(e, e, sums.energy);
        return y[g] * sums.scale.image_factor;
      },
      sink);
}

/// Over those of the group's next tile, the first of all or not. Where registers can hold it, it is there
/// meanwhile and its stage is filled anew; else the stage is read again, as in the backward.
template <class T, int vectors, int rows, class Sweep, int columns>
__device__ __forceinline__ void step_tile(Sweep& sweep, const T* base, bool in_ring, int first, bool is_first,
                                          row_sums<columns>& sums) {
  const auto share = sweep.template take<rows>(base, in_ring, first);
  const auto load = [&share](int g, int v) { return share.load(g, v); };
  if constexpr (forward_keeps_tile(vectors, rows, sizeof(T), Sweep::threads_copy)) {
    uint4 stored[rows][vectors];
#pragma unroll
    for (int g = 0; g < rows; ++g) {
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
        stored[g][v] = load(g, v);
      }
    }
    sweep.copy();
    sweep.begin_tile(true);
    step_rows<T, vectors, rows>(
        sweep, [&stored](int g, int v) { return stored[g][v]; }, sums, [](int, int, const auto&) {});
  } else {
    constexpr bool by_row = Sweep::threads_copy && copies_by_row(vectors, false);
    sweep.begin_tile(!is_first);
    auto copies = sweep.template begin_rows<by_row>();
    step_rows<T, vectors, rows>(sweep, load, sums, [&copies](int, int v, const auto&) {
      if (by_row && v + 1 == vectors) {
        copies(false);
      }
    });
    copies(true);  // where all dots were zero, none was lifted
    sweep.end_rows(copies);
  }
}

template <class T, int vectors, int rows, copier by>
__global__ void __launch_bounds__(most_threads, 1)
    row_step_kernel(const __grid_constant__ row_step_args<T> a) {
  if (not_on_this_device<by>()) {
    return;
  }
  constexpr int width = vector_width<T>;
  extern __shared__ __align__(128) unsigned char shared[];
  const tile_shape& tiles = a.sweep.tiles;
  const auto lanes = [&a](const auto& use) { return use(a.sweep.weights); };
  row_sweep<by, T, vectors, decltype(lanes), false> sweep(a.sweep, lanes, shared);
  if (!a.at_rest) {
    wait_for_previous_kernel();
  }
  let_next_kernel_start();

  const int first_of_group = sweep.mine;
  for (int expert = sweep.tile / tiles.per_expert; sweep.tile < sweep.end; ++expert) {
    const int stop = min(sweep.end, (expert + 1) * tiles.per_expert);
    const T* const base = a.sweep.weights.tensor.of(expert);
    const bool in_ring = a.sweep.weights.fast(base, tiles.hidden);
    row_sums<vectors * width> sums;
    const int row_exponent = begin_row<vectors>(a, sweep, expert, sums.r);
    clear(sums.u);
    int first = (sweep.mine - expert * tiles.per_expert) * rows;
    for (; sweep.mine < stop; sweep.advance(), first += a.sweep.ring.groups * rows) {
      step_tile<T, vectors, rows>(sweep, base, in_ring, first, sweep.mine == first_of_group, sums);
    }
    wait_for_previous_kernel();
    const slot_header header{sums.energy, 2 * sums.scale.projection + 2 * row_exponent,
                             sums.scale.image + row_exponent, 0};
    const auto row_square = [&sweep] {
      const int warp = static_cast<int>(threadIdx.x);
      return warp < sweep.group.warps() ? sweep.memory.row_squares[warp] : 0.0;
    };
    end_segment<vectors, width>(a.sweep, sweep.memory, sweep.group, expert, header, sums.u,
                                [&](const image_parts& image) {
                                  finish_expert<0>(a.finish, expert, image, row_square, *sweep.memory.leader);
                                  if (a.sweep.part.whole == 0) {
                                    block_sync();  // the next expert's sums go where these are
                                  }
                                });
    sweep.tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
