// The rows of the backward, r and the dual z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), in the registers of a group of threads.
#pragma once

#include <mpi_router/cuda/detail/row_tile.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// What the dual rows z̄ are made of: ḡ, the saved forward and C.
struct dual_source {
  any_matrix grad_rows;  // ḡ, to the rows that the forward gave
  any_matrix direction;  // ẑ
  saved_step saved;
  double radius;
  degenerate_row degenerate;

  /// Whether a row that had no step passes its gradient on, as it passed through itself.
  [[nodiscard]] __host__ __device__ bool passes_on() const { return degenerate == degenerate_row::keep; }
};

/// What the rows of an expert are scaled by.
struct row_exponents {
  int row;
  int dual;
};

/// This thread's columns of r and of z̄ of expert e without their powers of two, which are returned: the
/// largest element of r is in [1, 2), those of z̄ are below 8√D. Zero where there was no step. All loads (but
/// those of f64) are asked for before any is waited for, `meanwhile` is called in between, and one barrier is
/// enough.
template <int vectors, int width, class Meanwhile>
__device__ __forceinline__ row_exponents load_rows(const any_matrix& rows, const dual_source& from, int e,
                                                   bool dead, int hidden, const thread_group& group,
                                                   float* scratch, int& turn, const Meanwhile& meanwhile,
                                                   float (&r)[vectors * width], float (&z)[vectors * width]) {
  using stored = stored_row<vectors, width>;
  const stored row(rows, e, hidden, group);
  const stored upstream(from.grad_rows, e, hidden, group);
  const stored direction(from.direction, e, hidden, group);
  const double norm = from.saved.image_norm[e];
  meanwhile();

  struct facts {
    unsigned most_of_row;
    unsigned most_of_upstream;
    double along;  // ẑ·ḡ
  };
  facts sum = {__reduce_max_sync(0xffffffffU, row.most()), __reduce_max_sync(0xffffffffU, upstream.most()),
               add_over_warp(upstream.dot(direction))};
  if (group.warps() > 1) {
    auto* const all = reinterpret_cast<facts*>(scratch + turn * group.warps() * sums_at_once);
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

  const int row_exponent = exponent_of_high_word(sum.most_of_row);
  const int exponent = exponent_of_high_word(sum.most_of_upstream);
  // C/‖z‖ as a number near one and a power of two; the division is of floats, and a step of Newton's makes up
  // for that.
  const int norm_exponent = exponent_of_high_word(high_word(norm));
  const int radius_exponent = exponent_of_high_word(high_word(from.radius));
  const double m = norm * wide_power_of_two(-norm_exponent);
  const double inverse = static_cast<double>(1.0F / static_cast<float>(m));
  const auto scale = static_cast<float>(from.radius * wide_power_of_two(-radius_exponent) *
                                        fma(inverse, fma(-m, inverse, 1.0), inverse));
  const double along = sum.along * wide_power_of_two(-exponent);
  const auto most_of_it = static_cast<float>(along);
  const auto rest = static_cast<float>(along - static_cast<double>(most_of_it));
  float unit[vectors * width];
  direction.scaled(0, unit);
  row.scaled(row_exponent, r);
  upstream.scaled(exponent, z);
#pragma unroll
  for (int i = 0; i < vectors * width; ++i) {
    r[i] = dead ? 0.0F : r[i];
    z[i] = dead ? 0.0F : fmaf(-rest, unit[i], fmaf(-most_of_it, unit[i], z[i])) * scale;
  }
  return {row_exponent, exponent + radius_exponent - norm_exponent};
}

}  // namespace detail
MPIROUTER_CUDA_END
