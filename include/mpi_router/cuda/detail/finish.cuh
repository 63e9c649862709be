// What follows the read of the weights: sum the partial images, then normalise (Eq. 5) and report.
#pragma once

#include <mpi_router/cuda/detail/cluster.cuh>
#include <mpi_router/cuda/detail/scaling.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// The images as the step kernels leave them in memory: one slot for each segment.
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
    int slot = 0;
    int count = 0;
    if (part.whole != 0) {
      count = part.blocks / part.experts;
      slot = part.slot(expert * count, expert);
    } else {
      const int first = part.block_of(expert * part.tiles_per_expert);
      count = part.block_of((expert + 1) * part.tiles_per_expert - 1) - first + 1;
      slot = part.slot(first, expert);
    }
    count *= part.team;
    return {sums.rows + static_cast<long long>(slot) * sums.pitch, sums.headers + slot, count, sums.pitch};
  }
};

/// The parts of one image in the shared memory of a cluster's blocks, at the same place in each.
struct cluster_image {
  const float* sums;
  const slot_header* header;
  int blocks;

  [[nodiscard]] __device__ __forceinline__ float4 header_of(int block) const {
    return load_remote(reinterpret_cast<const float4*>(header), block);
  }
  [[nodiscard]] __device__ __forceinline__ double energy() const {
    double total = 0.0;
    for (int b = 0; b < blocks; ++b) {
      const float4 h = header_of(b);
      total += h.x * wide_power_of_two(__float_as_int(h.y));
    }
    return total;
  }
  __device__ __forceinline__ void load(int column, double (&out)[4]) const {
    out[0] = out[1] = out[2] = out[3] = 0.0;
    for (int b = 0; b < blocks; ++b) {
      const double scale = wide_power_of_two(__float_as_int(header_of(b).z));
      const float4 x = load_remote(reinterpret_cast<const float4*>(sums + column), b);
      out[0] += x.x * scale;
      out[1] += x.y * scale;
      out[2] += x.z * scale;
      out[3] += x.w * scale;
    }
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

constexpr int finish_scratch = team_scratch(2) + team_scratch(1);  // doubles

/// Normalises and reports the image of expert e, with the block's first `threads` threads. The blocks of a
/// cluster share the columns, this one has [begin, end). `kept` chunks of four columns stay in registers
/// between the norm and the division; with 0, images and rows are read twice, and there may be any number of
/// columns.
template <int kept, class Image>
__device__ __forceinline__ void finish_expert(const finish_args& a, int e, const Image& image, int begin,
                                              int end, double* scratch, int threads) {
  constexpr int chunks = kept > 0 ? kept : 1;
  const int stride = threads * 4;
  const int first = begin + static_cast<int>(threadIdx.x) * 4;
  double z[chunks][4];
  double r[chunks][4];
  const auto load = [&](int c, int column) {
    image.load(column, z[c]);
    a.rows.load_four(e, column, a.hidden, r[c]);
  };
  const auto for_columns = [&](bool again, const auto& visit) {
    if constexpr (kept > 0) {
#pragma unroll
      for (int c = 0; c < kept; ++c) {
        const int column = first + c * stride;
        if (column < end) {
          if (!again) {
            load(c, column);
          }
          visit(c, column);
        }
      }
    } else {
      for (int column = first; column < end; column += stride) {
        load(0, column);
        visit(0, column);
      }
    }
  };

  double norms[2] = {0.0, 0.0};
  for_columns(false, [&](int c, int) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      norms[0] = fma(r[c][i], r[c][i], norms[0]);
      norms[1] = fma(z[c][i], z[c][i], norms[1]);
    }
  });
  sum_over_cluster(norms, scratch, threads);
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
  const double per_norm = rsqrt(norms[1]);
  const double scale = a.radius * per_norm;
  const bool wants_residual = a.report.residual != nullptr;
  const double rayleigh = wants_residual || a.report.rayleigh != nullptr ? image.energy() / norms[0] : 0.0;

  double residual[1] = {0.0};
  for_columns(true, [&](int c, int column) {
    double out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double g = z[c][i] - rayleigh * r[c][i];
      residual[0] = fma(g, g, residual[0]);  // columns beyond D add zero
      const double old = a.degenerate == degenerate_row::keep ? r[c][i] : 0.0;
      out[i] = state == status::ok ? z[c][i] * scale : old;
    }
    a.out.store_four(e, column, a.hidden, out);
    if (a.saved.direction != nullptr) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < a.hidden) {
          a.saved.direction[static_cast<long long>(e) * a.hidden + column + i] =
              state == status::ok ? static_cast<float>(z[c][i] * per_norm) : 0.0F;
        }
      }
    }
  });
  if (wants_residual) {
    sum_over_cluster(residual, scratch + team_scratch(2), threads);
  }
  if (threadIdx.x != 0 || cluster_rank() != 0) {
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
  report(a.report.residual, ok ? sqrt(residual[0] / norms[0]) : 0.0);
  report(a.report.energy, ok && a.report.energy != nullptr ? image.energy() : 0.0);
  report(a.report.row_norm, ok ? sqrt(norms[0]) : 0.0);
  report(a.report.image_norm, ok ? sqrt(norms[1]) : 0.0);
  report(a.report.statuses, state);
  report(a.saved.image_norm, ok ? sqrt(norms[1]) : 0.0);
  report(a.saved.statuses, state);
  report(a.final_status, state);
}

/// One block for each expert.
template <class Images, int kept>
__global__ void __launch_bounds__(512, 1)
    finish_kernel(const __grid_constant__ Images images, const __grid_constant__ finish_args a) {
  __shared__ double scratch[finish_scratch];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  finish_expert<kept>(a, e, images.of(e, a.hidden), 0, a.hidden, scratch, static_cast<int>(blockDim.x));
}

/// Writes an image as it is, zero if `dead`: columns from `column` on, four in every `stride`.
template <class Image>
__device__ __forceinline__ void collect_expert(const Image& image, const any_matrix& out, int e, bool dead,
                                               int hidden, int column, int stride) {
  for (; column < hidden && out.data != nullptr; column += stride) {
    double z[4];
    image.load(column, z);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      z[i] = dead ? 0.0 : z[i];
    }
    out.store_four(e, column, hidden, z);
  }
}

/// Sums the segments into a matrix, without normalising: the image of one shard, or the gradient to the rows.
template <class Images>
struct collect_args {
  Images images;
  any_matrix out;
  double* energies;
  const status* statuses;  // null, or rows whose status is not ok become zero
  int hidden;
};

template <class Images>
__global__ void __launch_bounds__(512, 1) collect_kernel(const __grid_constant__ collect_args<Images> a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int e = static_cast<int>(blockIdx.x);
  const auto image = a.images.of(e, a.hidden);
  const bool dead = a.statuses != nullptr && a.statuses[e] != status::ok;
  collect_expert(image, a.out, e, dead, a.hidden, static_cast<int>(threadIdx.x) * 4,
                 static_cast<int>(blockDim.x) * 4);
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
