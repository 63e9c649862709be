// The backward over stored rows: with z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), y = A r and w = A z̄, the gradients are
// r̄ = Σ_f w_f a_f and Ā = y z̄ᵀ + w rᵀ: each stored row is read once and its gradient written once.
#pragma once

#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/plan/vjp_mode.hpp>
#include <mpi_router/cuda/detail/rows/dual_row.cuh>
#include <mpi_router/cuda/detail/rows/gradient.cuh>
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

/// r and z̄ in the registers of a group, without their exponents, and what the sweep over the stored rows adds
/// up.
template <int columns>
struct vjp_sums {
  float r[columns];
  float z[columns];
  float u[columns];
  row_exponents exponents;
  row_shift shift;
  sum_scale scale;

  __device__ __forceinline__ void scale_rows(float factor) {
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      r[i] *= factor;
      z[i] *= factor;
    }
  }
};

/// Where the gradient of an expert goes; nowhere if it is left in factors.
template <class G>
struct gradient_place {
  G* data = nullptr;
  bool has_vectors = false;

  template <vjp_mode mode>
  __device__ __forceinline__ static gradient_place of(const batch<G>& gradient, int expert, int hidden) {
    if constexpr (mode == vjp_mode::factored) {
      return {};
    } else {
      G* const data = gradient.of(expert);
      return {data, aligned_to_16(data, gradient.ffn * static_cast<long long>(sizeof(G)),
                                  hidden * static_cast<long long>(sizeof(G)))};
    }
  }
};

/// Loads the rows of an expert, and starts the copies of its first tiles.
template <int vectors, vjp_mode mode, class T, class G, class Sweep, int columns>
__device__ __forceinline__ void begin_rows(const row_vjp_args<T, G>& a, Sweep& sweep, int expert, bool dead,
                                           vjp_sums<columns>& sums) {
  const thread_group& group = sweep.group;
  const int hidden = a.sweep.tiles.hidden;
  using stored = stored_row<vectors, columns / vectors>;
  const stored row(a.rows, expert, hidden, group);
  const stored upstream(a.dual.grad_rows, expert, hidden, group);
  const stored direction(a.dual.direction, expert, hidden, group);
  const double norm = a.dual.saved.image_norm[expert];
  sweep.begin_copies(1);
  sums.exponents = dual_rows(row, upstream, direction, norm, a.dual.radius, dead, group, sweep.scratch,
                             sweep.turn, sums.r, sums.z);
  sweep.begin_copies(a.sweep.ring.stages);
  clear(sums.u);
  if (mode == vjp_mode::factored && sweep.tile == expert * a.sweep.tiles.per_expert && group.id == 0 &&
      a.factors.dual_row != nullptr) {
    write_dual_row<columns / vectors>(a.factors.dual_row, expert, hidden, group, sums.z, sums.exponents.dual);
  }
}

/// The dots of a tile: y, then w. Returns the one of them that the lane owns.
template <class T, int vectors, int rows, class Sweep, class Load, int columns>
__device__ __forceinline__ float project_both(Sweep& sweep, const Load& load, bool dead,
                                              vjp_sums<columns>& sums, float (&dots)[2 * rows]) {
  const float own = project(
                        sweep, sums.shift, dead, dots,
                        [&](float(&d)[2 * rows]) { take_dots<T, vectors, rows>(load, d, sums.r, sums.z); },
                        [&](float factor) { sums.scale_rows(factor); })
                        .own;
  if (dead) {  // no gradient, whatever the weights hold
    clear(dots);
    return 0.0F;
  }
  return own;
}

/// Makes room in the scale of the image for a tile whose w are `own` in half of the lanes. Returns what they
/// enter it with.
template <int rows, int columns>
__device__ __forceinline__ float admit_duals(const thread_group& group, float own, vjp_sums<columns>& sums) {
  const unsigned most = largest_over_warp(group.lane() % (2 * rows) >= rows ? own : 0.0F);
  if (most != 0) {
    sums.scale.admit(most, sums.shift.exponent(),
                     [&](float image_factor, float) { multiply(sums.u, image_factor); });
  }
  return most != 0 ? sums.scale.image_factor : 0.0F;
}

/// This thread's vector v of the gradient y z̄ᵀ + w rᵀ of row g of a tile, whose first row is at `to`.
template <class T, class G, vjp_mode mode, class Share, int columns>
__device__ __forceinline__ void write_vector(const row_vjp_args<T, G>& a, const thread_group& group,
                                             const Share& share, const gradient_place<G>& place, G* first_row,
                                             int g, int v, float y, float w, const vjp_sums<columns>& sums) {
  constexpr int width = vector_width<T>;
  constexpr bool accumulate = mode == vjp_mode::accumulate;
  float x[width];
#pragma unroll
  for (int i = 0; i < width; ++i) {
    x[i] = fmaf(y, sums.z[v * width + i], w * sums.r[v * width + i]);
  }
  const int column = (v * group.threads + group.rank) * width;
  G* const to = first_row + g * a.gradient.ffn + column;
  const void* const old = accumulate && old_in_ring<T, G> ? share.stage + a.old.offset + g * a.old.pitch +
                                                                column * static_cast<int>(sizeof(G))
                                                          : static_cast<const void*>(to);
  write_gradient<G, width, accumulate>(to, place.has_vectors, a.sweep.tiles.hidden - column, old, x);
}

/// u += Σ w_f a_f over the rows of a tile, and their gradients y_f z̄ᵀ + w_f rᵀ, from row `first` on.
template <class T, class G, int vectors, int rows, vjp_mode mode, class Share, class Load, int columns>
__device__ __forceinline__ void lift_and_write(const row_vjp_args<T, G>& a, const thread_group& group,
                                               const Share& share, const Load& load, bool dead,
                                               const gradient_place<G>& place, int first, float image_factor,
                                               const float (&dots)[2 * rows], vjp_sums<columns>& sums) {
  const outer_exponents outer(sums.exponents.row + sums.exponents.dual, sums.shift);
  if (mode != vjp_mode::factored && outer.rows != 0) [[unlikely]] {
    sums.scale_rows(power_of_two(outer.rows));
  }
  const int to_write = mode == vjp_mode::accumulate && dead ? 0 : share.count;
  G* gradient_row = place.data + static_cast<long long>(first) * a.gradient.ffn;
  float y = 0.0F;
  float w = 0.0F;
  lift<T, vectors, rows>(
      load, sums.u,
      [&](int g) {
        y = scale_by(dots[g], outer.dots);
        w = scale_by(dots[rows + g], outer.dots);
        return dots[rows + g] * image_factor;
      },
      [&](int g, int v, const float(&)[vector_width<T>]) {
        if constexpr (mode != vjp_mode::factored) {
          if (g < to_write) {
            write_vector<T, G, mode>(a, group, share, place, gradient_row, g, v, y, w, sums);
          }
        }
      });
  if (const int back = -outer_exponents(sums.exponents.row + sums.exponents.dual, sums.shift).rows;
      mode != vjp_mode::factored && back != 0) [[unlikely]] {
    sums.scale_rows(power_of_two(back));
  }
}

/// The group's next tile, from row `first` of the expert on.
template <class T, class G, int vectors, int rows, vjp_mode mode, class Sweep, int columns>
__device__ __forceinline__ void vjp_tile(const row_vjp_args<T, G>& a, Sweep& sweep, const T* base,
                                         bool in_ring, bool dead, int expert, const gradient_place<G>& place,
                                         int first, bool is_free, vjp_sums<columns>& sums) {
  const thread_group& group = sweep.group;
  // Read from its stage again after the group's barrier, which saves registers: only the stage of the tile
  // before can be fed anew.
  const auto share = sweep.template take<rows>(base, in_ring, first);
  const auto load = [&share](int g, int v) { return share.load(g, v); };
  sweep.begin_tile(is_free);
  float dots[2 * rows];  // y, then w
  const float own = project_both<T, vectors, rows>(sweep, load, dead, sums, dots);
  if constexpr (mode == vjp_mode::factored) {
    write_projection<rows>(a.factors, expert, a.sweep.tiles.ffn, first, group, own, sums.exponents,
                           sums.shift.exponent());
  }
  const float image_factor = admit_duals<rows>(group, own, sums);
  lift_and_write<T, G, vectors, rows, mode>(a, group, share, load, dead, place, first, image_factor, dots,
                                            sums);
  sweep.copy();
}

/// What becomes of a block's sums over its rows of one expert.
template <int vectors, class T, class G, class Sweep, int columns>
__device__ __forceinline__ void end_rows(const row_vjp_args<T, G>& a, const Sweep& sweep, int expert,
                                         bool dead, const vjp_sums<columns>& sums) {
  const int hidden = a.sweep.tiles.hidden;
  const slot_header header{0.0F, exponent_unset, sums.scale.image + sums.exponents.dual, 0};
  end_segment<vectors, columns / vectors>(
      a.sweep, sweep.memory, sweep.group, expert, header, sums.u, [&](const image_parts& image) {
        if (dead && a.grad_router.data != nullptr && a.dual.passes_on()) [[unlikely]] {
          pass_on_rarely(a.dual.grad_rows, a.grad_router, expert, hidden);
        } else {
          collect_expert(image, a.grad_router, expert, dead, hidden);
        }
      });
}

template <class T, class G, int vectors, int rows, vjp_mode mode, copier by>
__global__ void __launch_bounds__(most_threads, 1)
    row_vjp_kernel(const __grid_constant__ row_vjp_args<T, G> a) {
  if (not_on_this_device<by>()) {
    return;
  }
  extern __shared__ __align__(128) unsigned char shared[];
  const tile_shape& tiles = a.sweep.tiles;
  const auto lanes = [&a](const auto& use) {
    if constexpr (mode == vjp_mode::accumulate && old_in_ring<T, G>) {
      use(a.sweep.weights, a.old);
    } else {
      use(a.sweep.weights);
    }
  };
  row_sweep<by, T, vectors, decltype(lanes)> sweep(a.sweep, lanes, shared);
  wait_for_previous_kernel();
  let_next_kernel_start();

  const int first_of_group = sweep.mine;
  while (sweep.tile < sweep.end) {
    const int expert = sweep.tile / tiles.per_expert;
    const int stop = min(sweep.end, (expert + 1) * tiles.per_expert);
    const T* const base = a.sweep.weights.tensor.of(expert);
    const bool in_ring = a.sweep.weights.fast(base, tiles.hidden);
    const bool dead = a.dual.saved.statuses != nullptr && a.dual.saved.statuses[expert] != status::ok;
    const auto place = gradient_place<G>::template of<mode>(a.gradient, expert, tiles.hidden);
    vjp_sums<vectors * vector_width<T>> sums;
    begin_rows<vectors, mode>(a, sweep, expert, dead, sums);
    int first = (sweep.mine - expert * tiles.per_expert) * rows;
    for (; sweep.mine < stop; sweep.advance(), first += a.sweep.ring.groups * rows) {
      vjp_tile<T, G, vectors, rows, mode>(a, sweep, base, in_ring, dead, expert, place, first,
                                          sweep.mine != first_of_group, sums);
    }
    end_rows<vectors>(a, sweep, expert, dead, sums);
    sweep.tile = stop;
  }
}

MPIROUTER_CUDA_DETAIL_END
