// The forward over stored rows: rM = Σ_f ⟨a_f, r⟩ a_f, each row a_f read from memory once.
//
// A group of threads takes a tile of whole rows from its ring into registers (every thread has fixed
// columns), sums the dots over the group, and adds the rows, weighted by them, to the image in registers.
#pragma once

#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/rows/memory.cuh>
#include <mpi_router/cuda/detail/rows/segment.cuh>
#include <mpi_router/cuda/detail/rows/stored_row.cuh>
#include <mpi_router/cuda/detail/rows/tile.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T>
struct row_step_args {
  ring_lane<T> weights;
  tile_shape tiles;
  partition part;
  partial_sums out;
  int group_threads;
  ring_shape ring;
  /// The blocks of an expert are a cluster, which also does what otherwise a second kernel does.
  bool fused;
  bool at_rest;  // weights and rows: only what is written waits for the kernel ahead
  finish_args finish;
};

template <class T, int vectors, int rows, copier by>
__global__ void __launch_bounds__(most_threads, 1)
    row_step_kernel(const __grid_constant__ row_step_args<T> a) {
  if (not_on_this_device<by>()) {
    return;
  }
  constexpr int width = vector_width<T>;
  constexpr int columns = vectors * width;
  extern __shared__ __align__(128) unsigned char shared[];
  const int groups = a.ring.groups;
  const int threads = groups * a.group_threads;  // that compute
  const int block = static_cast<int>(blockIdx.x);
  const int hidden = a.tiles.hidden;
  const int end = a.part.first_tile(block + 1);
  const int ring_bytes = a.ring.group_bytes();
  const block_memory memory(shared + groups * ring_bytes, groups, threads / 32);
  int tile = a.part.first_tile(block);
  int expert = tile / a.tiles.per_expert;
  memory.start<by>(a.ring, a.tiles, tile);
  if (!a.at_rest) {
    wait_for_previous_kernel();
  }
  let_next_kernel_start();

  const thread_group group(a.group_threads);
  float* const scratch = memory.scratch + group.id * group.warps() * 2 * sums_at_once;
  unsigned char* const stages = shared + group.id * ring_bytes;
  std::uint64_t* const full = memory.full + group.id * most_stages;
  ring_view<by> ring(stages, full, a.ring);
  const auto feed = [&] {
    if (by == copier::engine && group.rank < 32) {
      feed_ring(stages, full, memory.feed + group.id, a.ring, a.tiles, end, a.weights);
    }
  };
  int mine = tile + group.id;  // this group's next tile to work on
  int next = mine;             // and to copy, where the threads do
  tile_cursor cursor(a.tiles, next);
  const auto copy_next = [&] {
    if constexpr (by == copier::threads) {
      if (next < end) {
        ring.template copy<16>(a.weights, a.tiles, cursor, group);
        next += groups;
        cursor.advance(a.tiles, groups);
      }
      ring.close();
    }
  };
  int begun = 0;
  const auto begin_copies = [&](int count) {
    for (; begun < count; ++begun) {
      feed();
      copy_next();
    }
  };

  int turn = 0;
  for (; tile < end; ++expert) {
    const int stop = min(end, (expert + 1) * a.tiles.per_expert);
    const T* const base = a.weights.tensor.of(expert);
    const bool in_ring = a.weights.fast(base, hidden);
    float r[columns];
    float u[columns];
    // The first copies: behind the loads of the row, which would queue behind them. And not all at once, or
    // what comes before the first tile, be it code, would.
    const stored_row<vectors, width> row(a.finish.rows, expert, hidden, group);
    begin_copies(1);
    if (group.id == 0) {
      const double square = add_over_warp(row.square());
      if (group.lane() == 0) {
        memory.row_squares[group.warp()] = square;
      }
    }
    const int row_exponent = exponent_of_high_word(max_over_group(row.most(), group, scratch, turn));
    row.scaled(row_exponent, r);
    begin_copies(a.ring.stages);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      u[i] = 0.0F;
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;
    int first = (mine - expert * a.tiles.per_expert) * rows;

    for (; mine < stop; mine += groups, first += groups * rows) {
      const tile_share<T, vectors> share(a.weights, ring.pop(), a.tiles.ffn - first, hidden, group);
      if (!in_ring) [[unlikely]] {
        share.template fetch<rows>(base + first * a.weights.tensor.ffn, a.weights.tensor.ffn, group);
      }
      share.template complete<rows>();
      uint4 stored[rows][vectors];
#pragma unroll
      for (int g = 0; g < rows; ++g) {
#pragma unroll
        for (int v = 0; v < vectors; ++v) {
          stored[g][v] = share.load(g, v);
        }
      }
      float y[rows];
      unsigned most = 0;
      copy_next();
      bool fed = by == copier::threads;
      shift.begin_tile();
      while (true) {
#pragma unroll
        for (int g = 0; g < rows; ++g) {
          y[g] = 0.0F;
#pragma unroll
          for (int v = 0; v < vectors; ++v) {
            float x[width];
            unpack<T>(stored[g][v], x);
#pragma unroll
            for (int i = 0; i < width; ++i) {
              y[g] = fmaf(x[i], r[v * width + i], y[g]);
            }
          }
        }
        most = largest_over_warp(sum_over_group(y, group, scratch, turn, [&] {
          if (!fed) {
            feed();
            fed = true;
          }
        }));
        const float factor = shift.retry(most);
        if (factor == 0.0F) [[likely]] {
          break;
        }
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          r[i] *= factor;
        }
      }
      if (most == 0) {
        continue;
      }
      scale.admit(most, shift.exponent(), [&](float image_factor, float energy_factor) {
        energy *= energy_factor;
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          u[i] *= image_factor;
        }
      });
#pragma unroll
      for (int g = 0; g < rows; ++g) {
        const float e = y[g] * scale.energy_factor;
        energy = fmaf(e, e, energy);
        const float weight = y[g] * scale.image_factor;
#pragma unroll
        for (int v = 0; v < vectors; ++v) {
          float x[width];
          unpack<T>(stored[g][v], x);
#pragma unroll
          for (int i = 0; i < width; ++i) {
            u[v * width + i] = fmaf(x[i], weight, u[v * width + i]);
          }
        }
      }
    }
    wait_for_previous_kernel();
    const slot_header header{energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    end_segment<vectors, width>(memory, shared, a.ring, a.part, a.out, a.fused, expert, hidden, group, header,
                                u, [&](const image_parts& image) {
                                  const int warp = static_cast<int>(threadIdx.x);
                                  const double row_square =
                                      warp < group.warps() ? memory.row_squares[warp] : 0.0;
                                  finish_expert<0>(a.finish, expert, image, row_square, *memory.leader);
                                });
    tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
