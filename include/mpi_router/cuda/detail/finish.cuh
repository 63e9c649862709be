// What follows the read of the weights: sum the segments in order, then normalise (Eq. 5) and report.
#pragma once

#include <mpi_router/cuda/detail/row_step.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The images as the step kernels leave them: one slot for each segment.
struct slot_images {
  partial_sums sums;
  partition part;

  struct row {
    const float* first;
    const slot_header* header;
    int count;
    int pitch;
    [[nodiscard]] __device__ __forceinline__ double energy() const {
      double total = 0.0;
      for (int s = 0; s < count; ++s) {
        total += header[s].energy * wide_power_of_two(header[s].energy_exponent);
      }
      return total;
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
      out[0] = out[1] = out[2] = out[3] = 0.0;
#pragma unroll 4
      for (int s = 0; s < count; ++s) {
        const double scale = wide_power_of_two(header[s].image_exponent);
        const float4 x = *reinterpret_cast<const float4*>(first + static_cast<long long>(s) * pitch + column);
        out[0] += x.x * scale;
        out[1] += x.y * scale;
        out[2] += x.z * scale;
        out[3] += x.w * scale;
      }
    }
  };
  [[nodiscard]] __device__ __forceinline__ row of(int expert, int) const {
    const int first = part.block_of(expert * part.tiles_per_expert);
    const int last = part.block_of((expert + 1) * part.tiles_per_expert - 1);
    const int slot = part.slot(first, expert);
    return {sums.rows + static_cast<long long>(slot) * sums.pitch, sums.headers + slot, last - first + 1, sums.pitch};
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
    [[nodiscard]] __device__ __forceinline__ double energy() const { return energy_at == nullptr ? 0.0 : *energy_at; }
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

template <class Images>
struct finish_args {
  Images images;
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

/// Chunks of four columns that a thread keeps in registers between the norm and the division.
constexpr int kept_chunks = 4;

/// One block for each expert. `kept`: D ≤ 4 · kept_chunks · threads, so that the images are summed only once.
template <class Images, bool kept>
__global__ void __launch_bounds__(512, 1) finish_kernel(const __grid_constant__ finish_args<Images> a) {
  __shared__ double scratch[64];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const auto image = a.images.of(e, a.hidden);
  double z[kept_chunks][4];
  double r[kept_chunks][4];
  const auto load = [&](int c, int column) {
    image.load(column, z[c]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      r[c][i] = column + i < a.hidden ? a.rows.load(e, column + i) : 0.0;
    }
  };
  // Visits this thread's columns, four at a time, as visit(chunk, first column).
  const auto for_columns = [&](bool reload, const auto& visit) {
    if constexpr (kept) {
#pragma unroll
      for (int c = 0; c < kept_chunks; ++c) {
        const int column = (c * threads + static_cast<int>(threadIdx.x)) * 4;
        if (column < a.hidden) {
          if (reload) {
            load(c, column);
          }
          visit(c, column);
        }
      }
    } else {
      for (int column = static_cast<int>(threadIdx.x) * 4; column < a.hidden; column += threads * 4) {
        load(0, column);
        visit(0, column);
      }
    }
  };

  double norms[2] = {0.0, 0.0};
  for_columns(true, [&](int c, int) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      norms[0] = fma(r[c][i], r[c][i], norms[0]);
      norms[1] = fma(z[c][i], z[c][i], norms[1]);
    }
  });
  sum_over_block(norms, scratch);
  const double energy = image.energy();
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
  const double rayleigh = energy / norms[0];
  const double row_norm = sqrt(norms[0]);
  const double image_norm = sqrt(norms[1]);
  const double scale = a.radius / image_norm;

  double residual[1] = {0.0};
  for_columns(false, [&](int c, int column) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < a.hidden) {
        const double g = z[c][i] - rayleigh * r[c][i];
        residual[0] = fma(g, g, residual[0]);
        if (a.out.data != nullptr) {
          const double kept_row = a.degenerate == degenerate_row::keep ? r[c][i] : 0.0;
          a.out.store(e, column + i, state == status::ok ? z[c][i] * scale : kept_row);
        }
        if (a.saved.direction != nullptr) {
          a.saved.direction[static_cast<long long>(e) * a.hidden + column + i] =
              state == status::ok ? static_cast<float>(z[c][i] / image_norm) : 0.0F;
        }
      }
    }
  });
  if (a.report.residual != nullptr) {
    sum_over_block(residual, scratch);
  }
  if (threadIdx.x != 0) {
    return;
  }
  if (a.earlier != nullptr && a.earlier[e] != status::ok) {
    state = a.earlier[e];
  }
  const auto report = [e](auto* where, auto value) {
    if (where != nullptr) {
      where[e] = value;
    }
  };
  const bool ok = state == status::ok;
  report(a.report.rayleigh, ok ? rayleigh : 0.0);
  report(a.report.residual, ok ? sqrt(residual[0]) / row_norm : 0.0);
  report(a.report.energy, ok ? energy : 0.0);
  report(a.report.row_norm, ok ? row_norm : 0.0);
  report(a.report.image_norm, ok ? image_norm : 0.0);
  report(a.report.statuses, state);
  report(a.saved.image_norm, ok ? image_norm : 0.0);
  report(a.saved.statuses, state);
  report(a.final_status, state);
}

/// Sums the segments into a matrix, without normalising: the image of one shard, or the gradient to the rows.
/// `exponents`, where given, holds a power of two for each expert to multiply by.
template <class Images>
struct collect_args {
  Images images;
  any_matrix out;
  double* energies;
  const int* exponents;
  const status* statuses;  // rows whose status is not ok become zero
  int hidden;
};

template <class Images>
__global__ void __launch_bounds__(512, 1) collect_kernel(const __grid_constant__ collect_args<Images> a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  const auto image = a.images.of(e, a.hidden);
  const double scale = a.exponents == nullptr ? 1.0 : wide_power_of_two(a.exponents[e]);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  for (int column = static_cast<int>(threadIdx.x) * 4; column < a.hidden; column += static_cast<int>(blockDim.x) * 4) {
    double z[4];
    image.load(column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < a.hidden) {
        a.out.store(e, column + i, dead ? 0.0 : z[i] * scale);
      }
    }
  }
  if (a.energies != nullptr && threadIdx.x == 0) {
    a.energies[e] = image.energy();
  }
}

[[nodiscard]] inline launch_shape one_block_each(index_t experts, int hidden) {
  return {static_cast<unsigned>(experts), hidden <= 2048 ? 256U : 512U};
}

template <class Images>
void collect(const context& ctx, index_t experts, const collect_args<Images>& args) {
  launch("collect_kernel", ctx, one_block_each(experts, args.hidden), collect_kernel<Images>, args);
}

template <class Images>
void finish(const context& ctx, index_t experts, const finish_args<Images>& args) {
  const launch_shape shape = one_block_each(experts, args.hidden);
  if (args.hidden <= 4 * kept_chunks * static_cast<int>(shape.threads)) {
    launch("finish_kernel", ctx, shape, finish_kernel<Images, true>, args);
  } else {
    launch("finish_kernel", ctx, shape, finish_kernel<Images, false>, args);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
