// The backward over stored columns ([N, D, F]): with z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), y = A r and w = A z̄, the
// gradients are r̄ = Σ_f w_f a_f and Ā = y z̄ᵀ + w rᵀ. A panel is read once; its gradient is written, or added
// to, while the panel is still in shared memory.
#pragma once

#include <mpi_router/cuda/detail/device/dual_row.cuh>
#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/device/gradient.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/panels/gradient_ring.cuh>
#include <mpi_router/cuda/detail/panels/probes.cuh>
#include <mpi_router/cuda/detail/panels/row.cuh>
#include <mpi_router/cuda/detail/panels/sweep.cuh>
#include <mpi_router/cuda/detail/plan/vjp_mode.hpp>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T, class G>
struct panel_vjp_args {
  panel_sweep_args<T> sweep;
  batch<G> gradient;  // where it is written, or what it is added to
  gradient_factors factors;
  any_matrix rows;
  dual_source dual;
  any_matrix grad_router;
};

/// The backward of one expert: r and z̄ in shared memory, r̄ in the registers of the block.
template <class Sweep, class T, class G, vjp_mode mode, int lanes>
class panel_backward {
 public:
  __device__ __forceinline__ panel_backward(Sweep& sweep, const panel_vjp_args<T, G>& args, int expert)
      : sweep_(sweep),
        args_(args),
        expert_(expert),
        dead_(args.dual.saved.statuses != nullptr && args.dual.saved.statuses[expert] != status::ok),
        probes_(sweep.memory.probes),
        old_(sweep.memory.old),
        to_write_(accumulate && dead_ ? 0 : sweep.at.rows) {
    if constexpr (mode != vjp_mode::factored) {
      G* const base = args.gradient.of(expert);
      gradient_ = base + sweep.at.first_row * args.gradient.hidden;
      decode_old_ = decoder<G>(base);
      gradient_vectors_ =
          aligned_to_16(vector_start(base), args.gradient.hidden * static_cast<long long>(sizeof(G)),
                        sweep.a.ffn * static_cast<long long>(sizeof(G)));
    }
    load_rows();
    clear(u_);
    if constexpr (mode == vjp_mode::factored) {
      if (sweep.tile == expert * sweep.a.part.tiles_per_expert && sweep.at.member(sweep.a.part.team) == 0 &&
          args.factors.dual_row != nullptr) {
        write_dual_row();
      }
    }
  }

  __device__ __forceinline__ void panel() {
    const int column = sweep_.column(sweep_.mine, expert_);
    const int left = sweep_.a.ffn - column;
    float dots[2 * width];  // y, then w
    sweep_.project(
        shift_, dead_, dots, [&](float factor) { probes_.scale(factor); }, probes_,
        [&]([[maybe_unused]] int k) {
          if constexpr (ring_has_old) {
#pragma unroll
            for (int i = 0; i < old_gradient::order().ahead; ++i) {
              if (old_gradient::order().dots_group(i) == k) {
                start_old(i, column);
              }
            }
          }
        });
    if (dead_) {  // no gradient, whatever the weights hold
      clear(dots);
    }
    if constexpr (mode == vjp_mode::factored) {
      write_projections(dots, column);
    }
    float lifted[width];  // w, as it enters r̄
#pragma unroll
    for (int i = 0; i < width; ++i) {
      lifted[i] = dots[width + i];
    }
    const unsigned most_w = largest_over_lanes<lanes>(lifted);
    if (most_w != 0) {
      scale_.admit(most_w, shift_.exponent(), [&](float image_factor, float) { multiply(u_, image_factor); });
    }
    multiply(lifted, most_w != 0 ? scale_.image_factor : 0.0F);
    if constexpr (mode == vjp_mode::factored) {
      lift_passes(sweep_.ring, lifted, u_, [](int, int, const float(&)[width]) {});
    } else {
      write_panel(dots, lifted, column, left);
    }
  }

  __device__ __forceinline__ void end() {
    const slot_header header{0.0F, exponent_unset, scale_.image + exponents_.dual, 0};
    sweep_.end_expert(expert_, header, u_, [&](const image_parts& image) {
      if (dead_ && args_.grad_router.data != nullptr && args_.dual.passes_on()) [[unlikely]] {
        pass_on_rarely(args_.dual.grad_rows, args_.grad_router, expert_, sweep_.a.hidden);
      } else {
        collect_expert(image, args_.grad_router, expert_, dead_, sweep_.a.hidden);
      }
    });
  }

 private:
  static constexpr int passes = Sweep::passes;
  static constexpr int width = Sweep::width;
  static constexpr int pass_rows = Sweep::place::pass_rows;
  static constexpr bool accumulate = mode == vjp_mode::accumulate;
  static constexpr bool ring_has_old = needs_old<T, G>(mode, is_pair<G>);
  using old_gradient = old_ring<G, width, Sweep::depth>;
  using share = gradient_share<G, width>;
  using own_row = panel_row<passes, lanes>;

  __device__ __forceinline__ void load_rows() {
    const auto load = [&](const any_matrix& rows) {
      return own_row(rows, expert_, sweep_.a.hidden, sweep_.at.first_row - sweep_.at.lane / lanes,
                     sweep_.group);
    };
    const own_row row = load(args_.rows);
    const own_row upstream = load(args_.dual.grad_rows);
    const own_row direction = load(args_.dual.direction);
    const double norm = args_.dual.saved.image_norm[expert_];
    sweep_.begin_expert([&] {
      float r[passes];
      float z[passes];
      exponents_ = dual_rows(row, upstream, direction, norm, args_.dual.radius, dead_, sweep_.group,
                             sweep_.memory.scratch, sweep_.turn, r, z);
      probes_.put(r, z);
    });
  }
  /// Factored: this thread's rows of z̄.
  __device__ __forceinline__ void write_dual_row() const {
    float* const to = args_.factors.dual_row + static_cast<long long>(expert_) * sweep_.a.hidden;
#pragma unroll
    for (int p = 0; p < passes; ++p) {
      if (p % lanes == sweep_.at.lane % lanes && p < sweep_.at.rows) {
        to[sweep_.at.first_row + p * pass_rows] = scale_by(probes_(p).y, exponents_.dual);
      }
    }
  }
  /// Factored: y and w of the panel, which all rows of threads have; each writes one of a thread's.
  __device__ __forceinline__ void write_projections(const float (&dots)[2 * width], int column) const {
    const int mine = sweep_.at.thread / lanes;
    const bool is_y = mine < width;
    float* const to = is_y ? args_.factors.projection : args_.factors.dual_projection;
    const int at = column + mine % width;
    if (sweep_.at.rank != 0 || mine >= 2 * width || to == nullptr || at >= sweep_.a.ffn) {
      return;
    }
    float sum = 0.0F;  // picked one by one: an index that is no constant would keep the dots in memory
#pragma unroll
    for (int i = 0; i < 2 * width; ++i) {
      sum = mine == i ? dots[i] : sum;
    }
    to[static_cast<long long>(expert_) * sweep_.a.ffn + at] =
        scale_by(sum, (is_y ? exponents_.row : exponents_.dual) - shift_.exponent());
  }
  /// Starts the copy of what the ith pass to be lifted is added to.
  __device__ __forceinline__ void start_old(int i, int column) const {
    const int p = old_gradient::order().pass(i);
    if (gradient_vectors_ && p < to_write_) {
      const int first = column + share::first();
      old_.copy(i, vector_start(gradient_) + first + p * (pass_rows * args_.gradient.hidden), share::apart,
                sweep_.a.ffn - first);
    }
  }
  /// A row's part of Ā from `to` on, `left` elements of which there are; `old` in pieces, where a ring has
  /// it.
  template <int vectors>
  __device__ __forceinline__ void write_row(G* to, int left, const uint4 (&old)[vectors],
                                            float (&x)[width]) const {
    if constexpr (is_pair<G>) {
      if (ring_has_old && gradient_vectors_) {
        write_pairs(to, left, old, x);
      } else {
        write_pairs_rarely<decltype(to->element), width, accumulate>(to, left, x);
      }
    } else if (share::swaps && gradient_vectors_) {
#pragma unroll
      for (int v = 0; v < width / share::piece; ++v) {
        float piece[share::piece];
        copy_piece(x, v, piece);
        const int first = share::first() + v * share::apart;
        write_gradient<G, share::piece, accumulate>(to + first, true, left - first, old + v % vectors, piece);
      }
    } else {
      write_gradient<G, width, accumulate, unaligned::by_word>(
          to, gradient_vectors_, left, ring_has_old ? static_cast<const void*>(old) : to, x);
    }
  }
  /// The same of pairs: `old` also has what lies between, which is written back.
  template <int vectors>
  __device__ __forceinline__ void write_pairs(G* to, int left, const uint4 (&old)[vectors],
                                              const float (&x)[width]) const {
    constexpr int each = vector_width<G>;
#pragma unroll
    for (int v = 0; v < vectors; ++v) {
      float piece[each];
      copy_piece(x, v, piece);
      if constexpr (accumulate) {
        float before[each];
        decode_old_(old[v], before);
#pragma unroll
        for (int k = 0; k < each; ++k) {
          piece[k] += before[k];
        }
      }
      const int first = share::first() + v * share::apart;
      if (first < left) {
        __stcs(reinterpret_cast<uint4*>(vector_start(to) + first), decode_old_.with(old[v], piece));
      }
    }
  }
  template <int each>
  __device__ __forceinline__ static void copy_piece(const float (&x)[width], int v, float (&piece)[each]) {
#pragma unroll
    for (int k = 0; k < each; ++k) {
      piece[k] = x[(v * each + k) % width];
    }
  }
  /// Ā of the panel, written or added, and the panel added to r̄.
  __device__ __forceinline__ void write_panel(float (&dots)[2 * width], const float (&lifted)[width],
                                              int column, int left) {
    const int exponent = exponents_.row + exponents_.dual;
    const outer_exponents outer(exponent, shift_);
    if (outer.rows != 0) [[unlikely]] {
      probes_.scale(power_of_two(outer.rows));
    }
#pragma unroll
    for (int i = 0; i < 2 * width; ++i) {
      dots[i] = scale_by(dots[i], outer.dots);
    }
    G* const first = gradient_ + column;
    const long long step = pass_rows * args_.gradient.hidden;
    lift_passes(sweep_.ring, lifted, u_, [&](int i, int p, float(&x)[width]) {
      G* const to = first + p * step;
      uint4 bits[old_gradient::vectors > 0 ? old_gradient::vectors : 1];
      if constexpr (ring_has_old) {
        old_.load(i, bits);
        if (i + old_gradient::order().ahead < passes) {
          start_old(i + old_gradient::order().ahead, column);
        }
      }
      const float2 both = probes_(p);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        x[k] = fmaf(dots[k], both.y, dots[width + k] * both.x);
      }
      if (share::swaps && gradient_vectors_) {
        share::swap(x);
      }
      if (p < to_write_) {
        write_row(to, left, bits, x);
      }
    });
    if (const int back = -outer.rows; back != 0) [[unlikely]] {
      probes_.scale(power_of_two(back));
    }
  }

  Sweep& sweep_;
  const panel_vjp_args<T, G>& args_;
  int expert_;
  bool dead_;
  panel_probes<passes, lanes> probes_;
  old_gradient old_;
  int to_write_;  // rows of this thread
  row_exponents exponents_;
  float u_[passes];
  row_shift shift_;
  sum_scale scale_;
  G* gradient_ = nullptr;  // this thread's first row
  decoder<G> decode_old_;
  bool gradient_vectors_ = false;
};

template <class T, class G, vjp_mode mode, int lanes>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_vjp_kernel(const __grid_constant__ panel_vjp_args<T, G> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr bool with_old = needs_old<T, G>(mode, is_pair<G>);
  using sweep_of_two = panel_sweep<T, lanes, panel_vjp_depth(mode == vjp_mode::factored, with_old),
                                   panel_line, 2, with_old ? panel_old_slots : 0>;
  sweep_of_two sweep(a.sweep, shared);
  for_each_panel<panel_backward<sweep_of_two, T, G, mode, lanes>>(sweep, a);
}

MPIROUTER_CUDA_DETAIL_END
