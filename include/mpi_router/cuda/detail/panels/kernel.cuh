// The forward over stored columns ([N, D, F]): a panel of adjacent columns at a time, each read from memory
// once.
#pragma once

#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/panels/row.cuh>
#include <mpi_router/cuda/detail/panels/sweep.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class T>
struct panel_step_args {
  panel_sweep_args<T> sweep;
  finish_args finish;
};

/// The forward of one expert: its row in the registers of the block, and what the panels add up.
template <class Sweep, class T, int lanes>
class panel_forward {
 public:
  __device__ __forceinline__ panel_forward(Sweep& sweep, const panel_step_args<T>& args, int expert)
      : sweep_(sweep), args_(args), expert_(expert) {
    const panel_row<passes, lanes> row(args.finish.rows, expert, sweep.a.hidden,
                                       sweep.at.first_row - sweep.at.lane / lanes, sweep.group);
    sweep.begin_expert([&] {
      row_exponent_ = row.scaled(sweep.group, sweep.memory.scratch, sweep.turn, sweep.memory.row_squares, r_);
    });
    clear(u_);
  }
  /// Adds the panel at hand, by its projections, to energy and image.
  __device__ __forceinline__ void panel() {
    float y[width];
    const unsigned most = sweep_.project(
        shift_, false, y, [&](float factor) { multiply(r_, factor); }, [&](int p) { return r_[p]; },
        [](int) {});
    if (most != 0) {
      scale_.admit(most, shift_.exponent(), [&](float image_factor, float energy_factor) {
        energy_ *= energy_factor;
        multiply(u_, image_factor);
      });
    }
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float e = y[i] * scale_.energy_factor;
      energy_ = fmaf(e, e, energy_);
      y[i] *= scale_.image_factor;
    }
    lift_passes(sweep_.ring, y, u_, [](int, int, const float(&)[width]) {});
  }
  __device__ __forceinline__ void end() {
#pragma unroll
    for (int m = lanes / 2; m >= 1; m /= 2) {
      energy_ += __shfl_xor_sync(0xffffffffU, energy_, m);
    }
    const slot_header header{energy_, 2 * scale_.projection + 2 * row_exponent_, scale_.image + row_exponent_,
                             0};
    sweep_.end_expert(expert_, header, u_, [&](const image_parts& image) {
      const panel_memory& memory = sweep_.memory;
      const auto row_square = [&] {
        return sweep_.at.thread < panel_memory::warps ? memory.row_squares[sweep_.at.thread] : 0.0;
      };
      finish_expert<0>(args_.finish, expert_, image, row_square, *memory.leader);
    });
  }

 private:
  static constexpr int passes = Sweep::passes;
  static constexpr int width = Sweep::width;
  Sweep& sweep_;
  const panel_step_args<T>& args_;
  int expert_;
  int row_exponent_;  // taken out of r
  float r_[passes];
  float u_[passes];
  float energy_ = 0.0F;
  row_shift shift_;
  sum_scale scale_;
};

template <class T, int lanes, panel_depth depth, int line>
__global__ void __launch_bounds__(panel_threads, 1)
    panel_step_kernel(const __grid_constant__ panel_step_args<T> a) {
  extern __shared__ __align__(128) unsigned char shared[];
  using sweep_of_one = panel_sweep<T, lanes, depth, line, 1, 0>;
  sweep_of_one sweep(a.sweep, shared);
  for_each_panel<panel_forward<sweep_of_one, T, lanes>>(sweep, a);
}

MPIROUTER_CUDA_DETAIL_END
