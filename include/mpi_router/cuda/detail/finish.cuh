// What follows the read of the weights: sum the partial images, then normalise (Eq. 5) and report.
#pragma once

#include <mpi_router/cuda/detail/image_parts.cuh>
#include <mpi_router/cuda/detail/scaling.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The images as the step kernels leave them in memory: one slot for each segment.
struct slot_images {
  partial_sums sums;
  partition part;

  [[nodiscard]] __device__ __forceinline__ image_parts of(int expert, int) const {
    const slot_range slots = part.slots_of(expert);
    const float* const first = sums.rows + static_cast<long long>(slots.first) * sums.pitch;
    return {first, first + sums.pitch, sums.headers + slots.first, slots.count, sums.pitch};
  }
};

/// Images in an ordinary matrix, with their energies apart; without data all zero.
struct matrix_images {
  any_matrix images;
  const double* energies = nullptr;

  struct row {
    any_matrix images;
    const double* energy_at;
    int expert;
    int hidden;
    [[nodiscard]] __device__ __forceinline__ double energy() const {
      return energy_at == nullptr ? 0.0 : *energy_at;
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = images.data != nullptr && column + i < hidden ? images.load(expert, column + i) : 0.0;
      }
    }
  };
  [[nodiscard]] __device__ __forceinline__ row of(int expert, int hidden) const {
    return {images, energies == nullptr ? nullptr : energies + expert, expert, hidden};
  }
};

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
  if (lane >= 6) {
    return;
  }
  const status earlier = a.earlier != nullptr ? a.earlier[e] : status::ok;
  state = earlier != status::ok ? earlier : state;
  __syncwarp(0x3fU);  // the last status may go where the earlier one was
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
                                     : a.saved.image_norm;
  if (number == nullptr) {
    return;
  }
  const double root = sqrt(lane == 2 ? residual[0] / norms[0] : lane == 3 ? norms[0] : norms[1]);
  const double value = lane == 0 ? rayleigh : lane == 1 ? image.energy() : root;
  number[e] = state == status::ok ? value : 0.0;
}

/// One block for each expert.
template <class Images, int kept>
__global__ void __launch_bounds__(512, 1)
    finish_kernel(const __grid_constant__ Images images, const __grid_constant__ finish_args a) {
  __shared__ leader_scratch scratch;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  double square = 0.0;
  for (int column = static_cast<int>(threadIdx.x) * 4; column < a.hidden; column += threads * 4) {
    double r[4];
    a.rows.load_four(e, column, a.hidden, r);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      square = fma(r[i], r[i], square);
    }
  }
  finish_expert<kept>(a, e, images.of(e, a.hidden), square, scratch);
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

/// Sums the segments into a matrix, without normalising: the image of one shard, or the gradient to the rows.
template <class Images>
struct collect_args {
  Images images;
  any_matrix out;
  double* energies;
  const status* statuses;  // null, or rows whose status is not ok take those of `instead`
  any_matrix instead;      // without data: zeros
  int hidden;
};

template <class Images>
__global__ void __launch_bounds__(512, 1) collect_kernel(const __grid_constant__ collect_args<Images> a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  const auto image = a.images.of(e, a.hidden);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  if (dead && a.instead.data != nullptr) [[unlikely]] {
    pass_on_rarely(a.instead, a.out, e, a.hidden);
  } else {
    collect_expert(image, a.out, e, dead, a.hidden);
  }
  if (a.energies != nullptr && threadIdx.x == 0) {
    a.energies[e] = image.energy();
  }
}

[[nodiscard]] inline launch_shape one_block_each(index_t experts, int hidden) {
  const int threads = hidden <= 1024 ? 256 : 512;
  return {static_cast<unsigned>(experts), static_cast<unsigned>(threads)};
}

template <class Images>
void collect(const context& ctx, index_t experts, const collect_args<Images>& args) {
  launch("collect_kernel", ctx, one_block_each(experts, args.hidden), collect_kernel<Images>, args);
}

template <class Images>
void finish(const context& ctx, index_t experts, const Images& images, const finish_args& args) {
  const launch_shape shape = one_block_each(experts, args.hidden);
  if (args.hidden <= 8192) {
    launch("finish_kernel", ctx, shape, finish_kernel<Images, 4>, images, args);
  } else {
    launch("finish_kernel", ctx, shape, finish_kernel<Images, 0>, images, args);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
