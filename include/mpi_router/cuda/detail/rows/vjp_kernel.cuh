// The backward over stored rows: with z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), y = A r and w = A z̄, the gradients are
// r̄ = Σ_f w_f a_f and Ā = y z̄ᵀ + w rᵀ: each stored row is read once and its gradient written once.
#pragma once

#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/plan/vjp_mode.hpp>
#include <mpi_router/cuda/detail/rows/dual_row.cuh>
#include <mpi_router/cuda/detail/rows/gradient.cuh>
#include <mpi_router/cuda/detail/rows/memory.cuh>
#include <mpi_router/cuda/detail/rows/segment.cuh>
#include <mpi_router/cuda/detail/rows/stored_row.cuh>
#include <mpi_router/cuda/detail/rows/tile.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, class G>
struct row_vjp_args {
  ring_lane<T> weights;
  ring_lane<G> old;   // what the gradient is added to, if it is
  batch<G> gradient;  // where it is written
  gradient_factors factors;
  any_matrix rows;
  dual_source dual;
  any_matrix grad_router;
  tile_shape tiles;
  partition part;
  partial_sums out;
  int group_threads;
  ring_shape ring;
  bool fused;
};

template <class T, class G, int vectors, int rows, vjp_mode mode, copier by>
__global__ void __launch_bounds__(most_threads, 1)
    row_vjp_kernel(const __grid_constant__ row_vjp_args<T, G> a) {
  if (not_on_this_device<by>()) {
    return;
  }
  constexpr int width = vector_width<T>;
  constexpr int columns = vectors * width;
  constexpr bool accumulate = mode == vjp_mode::accumulate;
  constexpr bool ring_has_old = accumulate && old_in_ring<T, G>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int groups = a.ring.groups;
  const int threads = groups * a.group_threads;  // that compute
  const int block = static_cast<int>(blockIdx.x);
  const int hidden = a.tiles.hidden;
  const int end = a.part.first_tile(block + 1);
  const int ring_bytes = a.ring.group_bytes();
  const block_memory memory(shared + groups * ring_bytes, groups, threads / 32);
  int tile = a.part.first_tile(block);
  memory.start<by>(a.ring, a.tiles, tile);
  wait_for_previous_kernel();
  let_next_kernel_start();

  const thread_group group(a.group_threads);
  float* const scratch = memory.scratch + group.id * group.warps() * 2 * sums_at_once;
  unsigned char* const stages = shared + group.id * ring_bytes;
  std::uint64_t* const full = memory.full + group.id * most_stages;
  ring_view<by> ring(stages, full, a.ring);
  const auto feed = [&] {
    if (by == copier::engine && group.rank < 32) {
      if constexpr (ring_has_old) {
        feed_ring(stages, full, memory.feed + group.id, a.ring, a.tiles, end, a.weights, a.old);
      } else {
        feed_ring(stages, full, memory.feed + group.id, a.ring, a.tiles, end, a.weights);
      }
    }
  };
  const int first_of_group = tile + group.id;
  int mine = first_of_group;  // this group's next tile to work on
  int next = mine;            // and to copy, where the threads do
  tile_cursor cursor(a.tiles, next);
  const auto copy_next = [&] {
    if constexpr (by == copier::threads) {
      if (next < end) {
        ring.template copy<16>(a.weights, a.tiles, cursor, group);
        if constexpr (ring_has_old) {
          ring.template copy<width * sizeof(G)>(a.old, a.tiles, cursor, group);
        }
        next += groups;
        cursor.advance(a.tiles, groups);
      }
      ring.close();
    }
  };

  int turn = 0;
  int begun = 0;
  while (tile < end) {
    const int expert = tile / a.tiles.per_expert;
    const int stop = min(end, (expert + 1) * a.tiles.per_expert);
    const T* const base = a.weights.tensor.of(expert);
    const bool in_ring = a.weights.fast(base, hidden);
    const bool dead = a.dual.saved.statuses != nullptr && a.dual.saved.statuses[expert] != status::ok;
    G* gradient = nullptr;
    bool gradient_vectors = false;
    if constexpr (mode != vjp_mode::factored) {
      gradient = a.gradient.of(expert);
      gradient_vectors = aligned_to_16(gradient, a.gradient.ffn * static_cast<long long>(sizeof(G)),
                                       hidden * static_cast<long long>(sizeof(G)));
    }
    float r[columns];
    float z[columns];
    float u[columns];
    // The first copy behind the loads of the rows, which would queue behind it, and the others behind what
    // comes before the first tile, be it code.
    const auto begin_copies = [&](int count) {
      for (; begun < count; ++begun) {
        feed();
        copy_next();
      }
    };
    const stored_row<vectors, width> row(a.rows, expert, hidden, group);
    const stored_row<vectors, width> upstream(a.dual.grad_rows, expert, hidden, group);
    const stored_row<vectors, width> direction(a.dual.direction, expert, hidden, group);
    const double norm = a.dual.saved.image_norm[expert];
    begin_copies(1);
    const auto [row_exponent, dual_exponent] =
        dual_rows(row, upstream, direction, norm, a.dual.radius, dead, group, scratch, turn, r, z);
    begin_copies(a.ring.stages);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      u[i] = 0.0F;
    }
    if (mode == vjp_mode::factored && tile == expert * a.tiles.per_expert && group.id == 0 &&
        a.factors.dual_row != nullptr) {
#pragma unroll
      for (int i = 0; i < columns; ++i) {
        const int column = (i / width * group.threads + group.rank) * width + i % width;
        if (column < hidden) {
          a.factors.dual_row[static_cast<long long>(expert) * hidden + column] =
              scale_by(z[i], dual_exponent);
        }
      }
    }
    row_shift shift;
    sum_scale scale;
    int first = (mine - expert * a.tiles.per_expert) * rows;

    for (; mine < stop; mine += groups, first += groups * rows) {
      unsigned char* const stage = ring.pop();
      // Read from its stage again after the group's barrier, which saves registers: only the stage of the
      // tile before can be fed anew.
      const tile_share<T, vectors> share(a.weights, stage, a.tiles.ffn - first, hidden, group);
      if (!in_ring) [[unlikely]] {
        share.template fetch<rows>(base + first * a.weights.tensor.ffn, a.weights.tensor.ffn, group);
      }
      share.template complete<rows>();
      float dots[2 * rows];  // y, then w
      float sum = 0.0F;      // of them, the one that the lane answers for
      bool fed = by == copier::threads || mine == first_of_group;
      shift.begin_tile();
      while (true) {
#pragma unroll
        for (int g = 0; g < rows; ++g) {
          dots[g] = 0.0F;
          dots[rows + g] = 0.0F;
#pragma unroll
          for (int v = 0; v < vectors; ++v) {
            float x[width];
            unpack<T>(share.load(g, v), x);
#pragma unroll
            for (int i = 0; i < width; ++i) {
              dots[g] = fmaf(x[i], r[v * width + i], dots[g]);
              dots[rows + g] = fmaf(x[i], z[v * width + i], dots[rows + g]);
            }
          }
        }
        sum = sum_over_group(dots, group, scratch, turn, [&] {
          if (!fed) {
            feed();
            fed = true;
          }
        });
        const float factor = dead ? 0.0F : shift.retry(largest_over_warp(sum));
        if (factor == 0.0F) [[likely]] {
          break;
        }
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          r[i] *= factor;
          z[i] *= factor;
        }
      }
      if (dead) {  // no gradient, whatever the weights hold
#pragma unroll
        for (int g = 0; g < 2 * rows; ++g) {
          dots[g] = 0.0F;
        }
        sum = 0.0F;
      }
      if (mode == vjp_mode::factored && group.rank < 2 * rows && first + group.rank % rows < a.tiles.ffn) {
        const bool is_y = group.rank < rows;
        float* const to = is_y ? a.factors.projection : a.factors.dual_projection;
        if (to != nullptr) {
          to[static_cast<long long>(expert) * a.tiles.ffn + first + group.rank % rows] =
              scale_by(sum, (is_y ? row_exponent : dual_exponent) - shift.exponent());
        }
      }
      const unsigned most_w = largest_over_warp(group.lane() % (2 * rows) >= rows ? sum : 0.0F);
      if (most_w != 0) {
        scale.admit(most_w, shift.exponent(), [&](float image_factor, float) {
#pragma unroll
          for (int i = 0; i < columns; ++i) {
            u[i] *= image_factor;
          }
        });
      }
      const float image_factor = most_w != 0 ? scale.image_factor : 0.0F;
      const auto scale_rows = [&](int exponent) {
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          r[i] *= power_of_two(exponent);
          z[i] *= power_of_two(exponent);
        }
      };
      const outer_exponents outer(row_exponent + dual_exponent, shift);
      if (mode != vjp_mode::factored && outer.rows != 0) [[unlikely]] {
        scale_rows(outer.rows);
      }
      const int to_write = accumulate && dead ? 0 : share.count;
      G* gradient_row = gradient + static_cast<long long>(first) * a.gradient.ffn;
#pragma unroll
      for (int g = 0; g < rows; ++g, gradient_row += a.gradient.ffn) {
        const float weight = dots[rows + g] * image_factor;
        const float y = scale_by(dots[g], outer.dots);
        const float w = scale_by(dots[rows + g], outer.dots);
#pragma unroll
        for (int v = 0; v < vectors; ++v) {
          float x[width];
          unpack<T>(share.load(g, v), x);
#pragma unroll
          for (int i = 0; i < width; ++i) {
            u[v * width + i] = fmaf(x[i], weight, u[v * width + i]);
          }
          if constexpr (mode != vjp_mode::factored) {
            if (g < to_write) {
#pragma unroll
              for (int i = 0; i < width; ++i) {
                x[i] = fmaf(y, z[v * width + i], w * r[v * width + i]);
              }
              const int column = (v * group.threads + group.rank) * width;
              G* const to = gradient_row + column;
              const void* const old =
                  ring_has_old ? stage + a.old.offset + g * a.old.pitch + column * static_cast<int>(sizeof(G))
                               : static_cast<const void*>(to);
              write_gradient<G, width, accumulate>(to, gradient_vectors, hidden - column, old, x);
            }
          }
        }
      }
      if (const int back = -outer_exponents(row_exponent + dual_exponent, shift).rows;
          mode != vjp_mode::factored && back != 0) [[unlikely]] {
        scale_rows(back);
      }
      copy_next();
    }
    const slot_header header{0.0F, exponent_unset, scale.image + dual_exponent, 0};
    end_segment<vectors, width>(memory, shared, a.ring, a.part, a.out, a.fused, expert, hidden, group, header,
                                u, [&](const image_parts& image) {
                                  if (dead && a.grad_router.data != nullptr && a.dual.passes_on())
                                      [[unlikely]] {
                                    pass_on_rarely(a.dual.grad_rows, a.grad_router, expert, hidden);
                                  } else {
                                    collect_expert(image, a.grad_router, expert, dead, hidden);
                                  }
                                });
    tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
