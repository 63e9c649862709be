// The backward over stored rows: with z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), y = A r and w = A z̄, the gradients are
// r̄ = Σ_f w_f a_f and Ā = y z̄ᵀ + w rᵀ: each stored row is read once and its gradient written once.
#pragma once

#include <mpi_router/cuda/detail/device/dual_row.cuh>
#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/device/gradient.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/plan/vjp_mode.hpp>
#include <mpi_router/cuda/detail/rows/project.cuh>
#include <mpi_router/cuda/detail/rows/segment.cuh>
#include <mpi_router/cuda/detail/rows/stored_row.cuh>
#include <mpi_router/cuda/detail/rows/sweep.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, class G>
struct row_vjp_args {
  row_sweep_args<T> sweep;
  ring_lane<G, vector_width<T> * sizeof(G)> old;  // what the gradient is added to, if it is
  batch<G> gradient;                              // where it is written
  gradient_factors factors;
  any_matrix rows;
  dual_source dual;
  any_matrix grad_router;
};

/// Factored: this thread's columns of z̄ = z · 2^exponent of expert e.
template <int width, int columns>
__device__ __forceinline__ void write_dual_row(float* to, int e, int hidden, const thread_group& group,
                                               const float (&z)[columns], int exponent) {
#pragma unroll
  for (int i = 0; i < columns; ++i) {
    const int column = (i / width * group.threads + group.rank) * width + i % width;
    if (column < hidden) {
      to[static_cast<long long>(e) * hidden + column] = scale_by(z[i], exponent);
    }
  }
}
/// Factored: the y or w that the lane owns, of the tile from row `first` on, times 2^exponent.
template <int rows>
__device__ __forceinline__ void write_projection(const gradient_factors& factors, int e, int ffn, int first,
                                                 const thread_group& group, float sum,
                                                 const row_exponents& exponents, int shift) {
  if (group.rank < 2 * rows && first + group.rank % rows < ffn) {
    const bool is_y = group.rank < rows;
    float* const to = is_y ? factors.projection : factors.dual_projection;
    if (to != nullptr) {
      to[static_cast<long long>(e) * ffn + first + group.rank % rows] =
          scale_by(sum, (is_y ? exponents.row : exponents.dual) - shift);
    }
  }
}

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
  constexpr bool by_row = by == copier::threads && copies_by_row(vectors, mode == vjp_mode::write);
  extern __shared__ __align__(128) unsigned char shared[];
  const tile_shape& tiles = a.sweep.tiles;
  const auto lanes = [&a](const auto& use) {
    if constexpr (ring_has_old) {
      return use(a.sweep.weights, a.old);
    } else {
      return use(a.sweep.weights);
    }
  };
  row_sweep<by, T, vectors, decltype(lanes), true> sweep(a.sweep, lanes, shared);
  const thread_group& group = sweep.group;
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int first_of_group = sweep.mine;
  while (sweep.tile < sweep.end) {
    const int expert = sweep.tile / tiles.per_expert;
    const int stop = min(sweep.end, (expert + 1) * tiles.per_expert);
    const T* const base = a.sweep.weights.tensor.of(expert);
    const bool in_ring = a.sweep.weights.fast(base, tiles.hidden);
    const bool dead = a.dual.saved.statuses != nullptr && a.dual.saved.statuses[expert] != status::ok;
    G* gradient = nullptr;
    bool gradient_vectors = false;
    if constexpr (mode != vjp_mode::factored) {
      gradient = a.gradient.of(expert);
      gradient_vectors = aligned_to_16(gradient, a.gradient.ffn * static_cast<long long>(sizeof(G)),
                                       tiles.hidden * static_cast<long long>(sizeof(G)));
    }
    float r[columns];
    float z[columns];
    float u[columns];
    const stored_row<vectors, width> row(a.rows, expert, tiles.hidden, group);
    const stored_row<vectors, width> upstream(a.dual.grad_rows, expert, tiles.hidden, group);
    const stored_row<vectors, width> direction(a.dual.direction, expert, tiles.hidden, group);
    const double norm = a.dual.saved.image_norm[expert];
    sweep.begin_copies(1);
    const row_exponents exponents = dual_rows(row, upstream, direction, norm, a.dual.radius, dead, group,
                                              sweep.scratch, sweep.turn, r, z);
    sweep.begin_copies(a.sweep.ring.stages);
    clear(u);
    if (mode == vjp_mode::factored && sweep.tile == expert * tiles.per_expert && group.id == 0 &&
        a.factors.dual_row != nullptr) {
      write_dual_row<width>(a.factors.dual_row, expert, tiles.hidden, group, z, exponents.dual);
    }
    row_shift shift;
    sum_scale scale;
    int first = (sweep.mine - expert * tiles.per_expert) * rows;

    for (; sweep.mine < stop; sweep.advance(), first += a.sweep.ring.groups * rows) {
      // Read from its stage again after the group's barrier, which saves registers: only the stage of the
      // tile before can be fed anew.
      const auto share = sweep.template take<rows>(base, in_ring, first);
      const auto load = [&share](int g, int v) { return share.load(g, v); };
      const auto scale_rows = [&](float factor) {
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          r[i] *= factor;
          z[i] *= factor;
        }
      };
      sweep.begin_tile(sweep.mine != first_of_group);
      float dots[2 * rows];  // y, then w
      float sum =            // of them, the one that the lane owns
          project(
              sweep, shift, dead, dots,
              [&](float(&d)[2 * rows]) { take_dots<T, vectors, rows>(load, d, r, z); }, scale_rows)
              .own;
      if (dead) {  // no gradient, whatever the weights hold
        clear(dots);
        sum = 0.0F;
      }
      if constexpr (mode == vjp_mode::factored) {
        write_projection<rows>(a.factors, expert, tiles.ffn, first, group, sum, exponents, shift.exponent());
      }
      const unsigned most_w = largest_over_warp(group.lane() % (2 * rows) >= rows ? sum : 0.0F);
      if (most_w != 0) {
        scale.admit(most_w, shift.exponent(), [&](float image_factor, float) { multiply(u, image_factor); });
      }
      const float image_factor = most_w != 0 ? scale.image_factor : 0.0F;
      const outer_exponents outer(exponents.row + exponents.dual, shift);
      if (mode != vjp_mode::factored && outer.rows != 0) [[unlikely]] {
        scale_rows(power_of_two(outer.rows));
      }
      const int to_write = accumulate && dead ? 0 : share.count;
      G* gradient_row = gradient + static_cast<long long>(first) * a.gradient.ffn;
      float y = 0.0F;
      float w = 0.0F;
      auto copies = sweep.template begin_rows<by_row>();
      lift<T, vectors, rows>(
          load, u,
          [&](int g) {
            y = scale_by(dots[g], outer.dots);
            w = scale_by(dots[rows + g], outer.dots);
            return dots[rows + g] * image_factor;
          },
          [&](int g, int v, float(&x)[width]) {
            if constexpr (mode != vjp_mode::factored) {
              if (g < to_write) {
#pragma unroll
                for (int i = 0; i < width; ++i) {
                  x[i] = fmaf(y, z[v * width + i], w * r[v * width + i]);
                }
                const int column = (v * group.threads + group.rank) * width;
                G* const to = gradient_row + g * a.gradient.ffn + column;
                const void* const old = ring_has_old ? share.stage + a.old.offset + g * a.old.pitch +
                                                           column * static_cast<int>(sizeof(G))
                                                     : static_cast<const void*>(to);
                write_gradient<G, width, accumulate>(to, gradient_vectors, tiles.hidden - column, old, x);
              }
            }
            if constexpr (by_row) {
              if (v + 1 == vectors) {
                copies(false);
              }
            }
          });
      if (const int back = -outer_exponents(exponents.row + exponents.dual, shift).rows;
          mode != vjp_mode::factored && back != 0) [[unlikely]] {
        scale_rows(power_of_two(back));
      }
      if constexpr (by_row) {
        sweep.end_rows(copies);
      } else {  // called here: from end_rows, other code is made of the loop
        sweep.copy();
      }
    }
    const slot_header header{0.0F, exponent_unset, scale.image + exponents.dual, 0};
    end_segment<vectors, width>(
        a.sweep, sweep.memory, group, expert, header, u, [&](const image_parts& image) {
          if (dead && a.grad_router.data != nullptr && a.dual.passes_on()) [[unlikely]] {
            pass_on_rarely(a.dual.grad_rows, a.grad_router, expert, tiles.hidden);
          } else {
            collect_expert(image, a.grad_router, expert, dead, tiles.hidden);
          }
        });
    sweep.tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
