// The dual row of the backward, z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), in the registers of a group of threads.
#pragma once

#include <mpi_router/cuda/detail/row_tile.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The dual row z̄ before its scale: ḡ, the saved forward and C.
struct dual_source {
  any_matrix grad_out;
  saved_step saved;
  double radius;
};

__device__ __forceinline__ double sum_over_group(double x, const thread_group& group, float* scratch,
                                                 int& turn) {
  x = add_over_warp(x);
  if (group.warps() == 1) {
    return x;
  }
  auto* const all = reinterpret_cast<double*>(scratch + turn * group.warps() * sums_at_once);
  turn ^= 1;
  if (group.lane() == 0) {
    all[group.warp()] = x;
  }
  group.sync();
  double sum = 0.0;
  for (int i = 0; i < group.warps(); ++i) {
    sum += all[i];
  }
  return sum;
}

/// This thread's columns of z̄ of expert e without their power of two, which is returned: elements up to 4.
/// Zero where there was no step.
template <int vectors, int width>
__device__ __forceinline__ int load_dual(const dual_source& from, int e, bool dead, int hidden,
                                         const thread_group& group, float* scratch, int& turn,
                                         float (&out)[vectors * width]) {
  const int exponent = load_row<vectors, width>(from.grad_out, e, hidden, group, scratch, turn, out);
  const float* const direction = from.saved.direction + static_cast<long long>(e) * hidden;
  float unit[vectors * width];
  double along = 0.0;
#pragma unroll
  for (int i = 0; i < vectors * width; ++i) {
    const int column = (i / width * group.threads + group.rank) * width + i % width;
    unit[i] = column < hidden ? direction[column] : 0.0F;
    along = fma(static_cast<double>(out[i]), static_cast<double>(unit[i]), along);
  }
  along = sum_over_group(along, group, scratch, turn);
  const double gain = dead ? 0.0 : from.radius / from.saved.image_norm[e];
  const int gain_exponent = exponent_of_high_word(high_word(gain));
  const double scale = gain * wide_power_of_two(-gain_exponent);
#pragma unroll
  for (int i = 0; i < vectors * width; ++i) {
    out[i] = dead ? 0.0F
                  : static_cast<float>(
                        fma(-along, static_cast<double>(unit[i]), static_cast<double>(out[i])) * scale);
  }
  return exponent + gain_exponent;
}

/// x · 2^e for any e that leaves the result in range.
__device__ __forceinline__ float scale_by(float x, int e) {
  return x * power_of_two(e / 2) * power_of_two(e - e / 2);
}

}  // namespace detail
MPIROUTER_CUDA_END
