// What becomes of one image: it is normalised (Eq. 5) and reported, or written as it is.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/types.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What becomes of an image.
struct finish_args {
  any_matrix rows;
  any_matrix out;
  double radius;
  int hidden;
  degenerate_row degenerate;
  const status* earlier;  // of the steps before this one; null at the first
  status* final_status;   // where `earlier` of the next step is read from; may be null
  step_by_products report;
  saved_step saved;
};

/// Normalises and reports the image of expert e. `row_square` is this thread's part of ‖r‖². `kept` chunks of
/// four columns stay in registers between the norm and the division, all that there are; if none do, the
/// image is read twice. All threads of the block call it.
template <int kept, class Image>
__device__ __forceinline__ void finish_expert(const finish_args& a, int e, const Image& image,
                                              double row_square, leader_scratch& scratch) {
  const int threads = static_cast<int>(blockDim.x);
  const int stride = threads * 4;
  const int first = static_cast<int>(threadIdx.x) * 4;
  double z[kept > 0 ? kept : 1][4];
  const auto for_columns = [&](bool again, const auto& visit) {
#pragma unroll
    for (int c = 0; c < kept; ++c) {
      const int column = first + c * stride;
      if (column < a.hidden) {
        if (!again) {
          image.load(column, z[c]);
        }
        visit(z[c], column);
      }
    }
    for (int column = first + kept * stride; kept == 0 && column < a.hidden; column += stride) {
      double other[4];
      image.load(column, other);
      visit(other, column);
    }
  };

  double norms[2] = {row_square, 0.0};
  for_columns(false, [&](const double(&x)[4], int) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      norms[1] = fma(x[i], x[i], norms[1]);
    }
  });
  sum_over_block(norms, scratch.norms, threads);
  status state = status::ok;
  if (!isfinite(norms[0])) {
    state = status::non_finite;
  } else if (norms[0] == 0.0) {
    state = status::zero_row;
  } else if (!isfinite(norms[1])) {
    state = status::non_finite;
  } else if (norms[1] == 0.0) {
    state = status::zero_image;
  }
  const bool ok = state == status::ok;
  const double per_norm = rsqrt(norms[1]);
  const double scale = a.radius * per_norm;
  const bool wants_residual = a.report.residual != nullptr;
  const bool wants_row = wants_residual || (!ok && a.degenerate == degenerate_row::keep);
  const double rayleigh = wants_residual || a.report.rayleigh != nullptr ? image.energy() / norms[0] : 0.0;

  double residual[1] = {0.0};
  for_columns(true, [&](const double(&x)[4], int column) {
    double r[4] = {};
    if (wants_row) {
      a.rows.load_four(e, column, a.hidden, r);
    }
    double out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double g = x[i] - rayleigh * r[i];
      residual[0] = fma(g, g, residual[0]);  // columns beyond D add zero
      out[i] = ok ? x[i] * scale : a.degenerate == degenerate_row::keep ? r[i] : 0.0;
    }
    a.out.store_four(e, column, a.hidden, out);
    if (a.saved.direction != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < a.hidden) {
          a.saved.direction[static_cast<long long>(e) * a.hidden + column + i] =
              ok ? static_cast<float>(x[i] * per_norm) : 0.0F;
        }
      }
    }
  });
  if (wants_residual) {
    sum_over_block(residual, scratch.residual, threads);
  }
  // Each lane reports one number, so that there are one root and one store of them, and little code.
  const int lane = static_cast<int>(threadIdx.x);
  if (lane >= 7) {
    return;
  }
  const status earlier = a.earlier != nullptr ? a.earlier[e] : status::ok;
  state = earlier != status::ok ? earlier : state;
  __syncwarp(0x7fU);  // the last status may go where the earlier one was
  status* const told = lane == 0   ? a.report.statuses
                       : lane == 1 ? a.saved.statuses
                       : lane == 2 ? a.final_status
                                   : nullptr;
  if (told != nullptr) {
    told[e] = state;
  }
  double* const number = lane == 0   ? a.report.rayleigh
                         : lane == 1 ? a.report.energy
                         : lane == 2 ? a.report.residual
                         : lane == 3 ? a.report.row_norm
                         : lane == 4 ? a.report.image_norm
                         : lane == 5 ? a.report.cosine
                                     : a.saved.image_norm;
  if (number == nullptr) {
    return;
  }
  const double root = sqrt(lane == 2   ? residual[0] / norms[0]
                           : lane == 3 ? norms[0]
                           : lane == 5 ? image.energy() / norms[0] * (image.energy() / norms[1])
                                       : norms[1]);
  const double value = lane == 0 ? rayleigh : lane == 1 ? image.energy() : lane == 5 ? fmin(root, 1.0) : root;
  number[e] = state == status::ok ? value : 0.0;
}

/// Writes an image as it is, zero if `dead`.
template <class Image>
__device__ __forceinline__ void collect_expert(const Image& image, const any_matrix& out, int e, bool dead,
                                               int hidden) {
  for (int column = static_cast<int>(threadIdx.x) * 4; column < hidden && out.data != nullptr;
       column += static_cast<int>(blockDim.x) * 4) {
    double z[4];
    image.load(column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[i] = dead ? 0.0 : z[i];
    }
    out.store_four(e, column, hidden, z);
  }
}

/// The gradient of a row that had no step passes on as it came. Called, not inlined: it is rare, and its
/// registers would be taken from the loops before it.
template <class = void>
__device__ __noinline__ void pass_on_rarely(const any_matrix& from, const any_matrix& to, int e, int hidden) {
  for (int column = static_cast<int>(threadIdx.x); column < hidden; column += static_cast<int>(blockDim.x)) {
    to.store(e, column, from.load(e, column));
  }
}

MPIROUTER_CUDA_DETAIL_END
