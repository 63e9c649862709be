// The forward over stored rows: rM = Σ_f ⟨a_f, r⟩ a_f, each row a_f read from memory once.
//
// A group of threads takes a tile of whole rows from its ring into registers (every thread has fixed columns), sums
// the dots over the group, and adds the rows, weighted by them, to the image in registers.
#pragma once

#include <mpi_router/cuda/detail/row_tile.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

template <class T>
struct row_step_args {
  ring_lane<T> weights;
  tile_shape tiles;
  partition part;
  partial_sums out;
  int group_threads;
  int stages;
  int stage_bytes;
  /// The blocks of an expert are a cluster, which also does what otherwise a second kernel does.
  bool fused;
  finish_args finish;
};

template <class T, int vectors, int rows, copier by>
__global__ void __launch_bounds__(512, 1) row_step_kernel(const __grid_constant__ row_step_args<T> a) {
  constexpr int width = vector_width<T>;
  constexpr int columns = vectors * width;
  extern __shared__ __align__(128) unsigned char shared[];
  const thread_group group(a.group_threads);
  const int groups = static_cast<int>(blockDim.x) / a.group_threads;
  const int block = static_cast<int>(blockIdx.x);
  const int hidden = a.tiles.hidden;
  const int end = a.part.first_tile(block + 1);
  const int ring_bytes = a.stages * a.stage_bytes;
  const block_memory memory(shared + groups * ring_bytes, groups, static_cast<int>(blockDim.x) / 32);
  float* const scratch = memory.scratch + group.id * group.warps() * 2 * sums_at_once;
  ring_buffer<by> ring(shared + group.id * ring_bytes, memory.barriers + group.id * most_stages, a.stages, a.stage_bytes,
                       group);
  wait_for_previous_kernel();
  let_next_kernel_start();

  int tile = a.part.first_tile(block);
  int mine = tile + group.id;  // this group's next tile to work on
  int next = mine;             // and to copy
  tile_cursor<T> cursor(a.tiles, a.weights, next, a.part.experts);
  const auto push = [&] {
    if (by == copier::engine && group.rank >= 32) {
      return;
    }
    if (next < end) {
      const unsigned bytes = cursor.in_ring() ? static_cast<unsigned>(cursor.count() * hidden) * sizeof(T) : 0U;
      ring.push(bytes, [&](unsigned char* stage, std::uint64_t* barrier) {
        if (cursor.in_ring()) {
          ring.template copy_rows<16>(a.weights, cursor.base(), cursor.first(), cursor.count(), hidden, stage, barrier);
        }
      });
      next += groups;
      cursor.advance(groups);
    } else {
      ring.push_nothing();
    }
  };
  for (int s = 0; s < a.stages; ++s) {
    push();
  }

  int turn = 0;
  while (tile < end) {
    const int expert = tile / a.tiles.per_expert;
    const int stop = min(end, (expert + 1) * a.tiles.per_expert);
    const T* const base = a.weights.tensor.of(expert);
    const bool in_ring = a.weights.fast(base, hidden);
    float r[columns];
    float u[columns];
    const int row_exponent = load_row<vectors, width>(a.finish.rows, expert, hidden, group, scratch, turn, r);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      u[i] = 0.0F;
    }
    float energy = 0.0F;
    row_shift shift;
    sum_scale scale;
    int first = (mine - expert * a.tiles.per_expert) * rows;

    for (; mine < stop; mine += groups, first += groups * rows) {
      const unsigned char* const stage = ring.pop();
      uint4 stored[rows][vectors];
      load_tile<T, vectors, rows>(a.weights, base, in_ring, first, a.tiles.ffn - first, hidden, group, stage, stored);
      float y[rows];
      unsigned most = 0;
      bool pushed = by == copier::threads;
      if (pushed) {
        push();
      }
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
        sum_over_group(y, group, scratch, turn, [&] {
          if (!pushed) {
            push();
            pushed = true;
          }
        });
        most = 0;
#pragma unroll
        for (int g = 0; g < rows; ++g) {
          most = max(most, magnitude_bits(y[g]));
        }
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
    const slot_header header{energy, 2 * scale.projection + 2 * row_exponent, scale.image + row_exponent, 0};
    const int vectors_in_row = (hidden + width - 1) / width;
    // After a block's only segment the rings are idle, and their memory takes the sums.
    float* const sums = a.part.whole != 0 ? reinterpret_cast<float*>(shared) : memory.sums;
    const int distance = a.part.whole != 0 ? ring_bytes / 4 : group.threads * columns;
    if (a.fused) {
      gather_segment<vectors, width>(sums, memory.headers + groups, sums, distance, memory.headers, group, groups,
                                     vectors_in_row, header, u);
      const int blocks = cluster_size();
      cluster_sync();
      const int share = ((hidden + blocks - 1) / blocks + 3) / 4 * 4;
      const int begin = cluster_rank() * share;
      finish_expert<0>(a.finish, expert, cluster_image{sums, memory.headers + groups, blocks}, begin,
                       min(begin + share, hidden), memory.finish);
      if (blocks > 1) {
        cluster_sync();  // no block may end while another still reads its memory
      }
    } else {
      const int slot = a.part.slot(block, expert);
      gather_segment<vectors, width>(a.out.rows + static_cast<long long>(slot) * a.out.pitch, a.out.headers + slot,
                                     sums, distance, memory.headers, group, groups, vectors_in_row, header, u);
    }
    tile = stop;
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
