// The images of all experts, which the kernels after the read of the weights take one by one.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/finish/image_parts.cuh>
#include <mpi_router/cuda/detail/plan/partition.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

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

MPIROUTER_CUDA_DETAIL_END
