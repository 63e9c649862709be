// The rows of the backward, r and the dual z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), in the registers of a group of threads.
#pragma once

#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What the rows of an expert are scaled by.
struct row_exponents {
  int row;
  int dual;
};

/// The largest magnitudes of r and ḡ by their high words, and ẑ·ḡ.
struct dual_facts {
  unsigned most_of_row;
  unsigned most_of_upstream;
  double along;
};

/// Those of the group from those of its threads; one barrier.
__device__ __forceinline__ dual_facts over_group(dual_facts sum, const thread_group& group, float* scratch,
                                                 int& turn) {
  sum = {__reduce_max_sync(0xffffffffU, sum.most_of_row),
         __reduce_max_sync(0xffffffffU, sum.most_of_upstream), add_over_warp(sum.along)};
  if (group.warps() > 1) {
    auto* const all = reinterpret_cast<dual_facts*>(scratch + turn * group.warps() * sums_at_once);
    turn ^= 1;
    if (group.lane() == 0) {
      all[group.warp()] = sum;
    }
    group.sync();
    sum = {0, 0, 0.0};
    for (int i = 0; i < group.warps(); ++i) {
      sum.most_of_row = max(sum.most_of_row, all[i].most_of_row);
      sum.most_of_upstream = max(sum.most_of_upstream, all[i].most_of_upstream);
      sum.along += all[i].along;
    }
  }
  return sum;
}

/// C/‖z‖ as a number near one and a power of two; the division is of floats, and a step of Newton's makes up
/// for that.
struct dual_scale {
  float factor;
  int exponent;
  __device__ __forceinline__ dual_scale(double radius, double norm) {
    const int norm_exponent = exponent_of_high_word(high_word(norm));
    const int radius_exponent = exponent_of_high_word(high_word(radius));
    const double m = norm * wide_power_of_two(-norm_exponent);
    const double inverse = static_cast<double>(1.0F / static_cast<float>(m));
    factor = static_cast<float>(radius * wide_power_of_two(-radius_exponent) *
                                fma(inverse, fma(-m, inverse, 1.0), inverse));
    exponent = radius_exponent - norm_exponent;
  }
};

/// This thread's columns of r and of z̄ without their powers of two, which are returned: the largest element
/// of r is in [1, 2), those of z̄ are below 8√D. Zero where there was no step, if `dead`. `norm` is ‖z‖. The
/// loads of the rows are under way; one barrier is enough.
template <class Row, int columns>
__device__ __forceinline__ row_exponents dual_rows(const Row& row, const Row& upstream, const Row& direction,
                                                   double norm, double radius, bool dead,
                                                   const thread_group& group, float* scratch, int& turn,
                                                   float (&r)[columns], float (&z)[columns]) {
  const dual_facts sum =
      over_group({row.most(), upstream.most(), upstream.dot(direction)}, group, scratch, turn);
  const int row_exponent = exponent_of_high_word(sum.most_of_row);
  const int exponent = exponent_of_high_word(sum.most_of_upstream);
  const dual_scale scale(radius, norm);
  const double along = sum.along * wide_power_of_two(-exponent);
  const auto most_of_it = static_cast<float>(along);
  const auto rest = static_cast<float>(along - static_cast<double>(most_of_it));
  float unit[columns];
  direction.scaled(0, unit);
  row.scaled(row_exponent, r);
  upstream.scaled(exponent, z);
#pragma unroll
  for (int i = 0; i < columns; ++i) {
    r[i] = dead ? 0.0F : r[i];
    z[i] = dead ? 0.0F : fmaf(-rest, unit[i], fmaf(-most_of_it, unit[i], z[i])) * scale.factor;
  }
  return {row_exponent, exponent + scale.exponent};
}

MPIROUTER_CUDA_DETAIL_END
