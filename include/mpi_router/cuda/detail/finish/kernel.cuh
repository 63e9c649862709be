// The second kernel, where the read of the weights does not finish by itself: one block for each expert takes
// its image from where the first left it.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/finish/expert.cuh>
#include <mpi_router/cuda/detail/finish/image_parts.cuh>
#include <mpi_router/cuda/detail/plan/partial_sums.hpp>
#include <mpi_router/cuda/detail/plan/partition.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>

#include <type_traits>

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

/// Images in f64, [N, D], of which powers of two were taken out.
struct scaled_images {
  const double* images;
  const double* energies;
  step_exponents exponents;

  /// As finish_expert takes it: image, row and energy in the units in which none of their squares leaves the
  /// range, and the exponents of what is told.
  struct scaled_row {
    const double* image;
    double sum;
    int row;
    int ratio;  // of the Rayleigh quotient
    int hidden;
    [[nodiscard]] __device__ __forceinline__ double energy() const { return sum; }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = column + i < hidden ? image[column + i] : 0.0;
      }
    }
  };
  /// As it is.
  struct true_row {
    scaled_row scaled;
    int exponent;
    int energy_exponent;
    [[nodiscard]] __device__ __forceinline__ double energy() const {
      return scale_by(scaled.sum, energy_exponent);
    }
    __device__ __forceinline__ void load(int column, double (&out)[4]) const {
      scaled.load(column, out);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = scale_by(out[i], exponent);
      }
    }
  };
  [[nodiscard]] __device__ __forceinline__ true_row of(int expert, int hidden) const {
    const int row = exponents.row[expert];
    const int projection = exponents.projection[expert];
    return {row_of(expert, hidden, energies[expert]), row + projection + exponents.image[expert],
            2 * (row + projection)};
  }
  [[nodiscard]] __device__ __forceinline__ scaled_row scaled_of(int expert, int hidden) const {
    const int apart = exponents.projection[expert] - exponents.image[expert];
    return row_of(expert, hidden, scale_by(energies[expert], apart));
  }

 private:
  [[nodiscard]] __device__ __forceinline__ scaled_row row_of(int expert, int hidden, double energy) const {
    return {images + static_cast<long long>(expert) * hidden, energy, exponents.row[expert],
            exponents.projection[expert] + exponents.image[expert], hidden};
  }
};

/// A thread's columns of a router row of floats, as own_columns has those of the image, in two halves: the
/// loads of the image can be under way at the same time.
template <int kept>
class own_row {
 public:
  __device__ __forceinline__ own_row(const any_matrix& rows, int e, int hidden) : rows_(rows) {
    rows.load_fours_bits<kept, 4>(e, hidden, static_cast<int>(threadIdx.x) * 4,
                                  static_cast<int>(blockDim.x) * 4, bits_);
  }
  /// Σ x² over them.
  [[nodiscard]] __device__ __forceinline__ double square() const {
    float r[4 * kept];
    rows_.fours_from_bits(bits_, r);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < 4 * kept; ++i) {
      sum = fma(static_cast<double>(r[i]), static_cast<double>(r[i]), sum);
    }
    return sum;
  }

 private:
  const any_matrix& rows_;
  unsigned bits_[kept][4];
};

/// This thread's part of ‖r‖² of a row of any type, in the units of its image if powers of two were taken out
/// of that.
template <class Image>
[[nodiscard]] __device__ __forceinline__ double square_of_row(const finish_args& a, int e,
                                                              const Image& image) {
  double square = 0.0;
  for (int column = static_cast<int>(threadIdx.x) * 4; column < a.hidden;
       column += static_cast<int>(blockDim.x) * 4) {
    double r[4];
    a.rows.load_four(e, column, a.hidden, r);
    in_units_of(image, r);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      square = fma(r[i], r[i], square);
    }
  }
  return square;
}

/// Finishes expert e, with all threads of the block.
template <int kept, class Images>
__device__ __forceinline__ void finish_by_block(const Images& images, const finish_args& a, int e,
                                                leader_scratch& scratch) {
  if constexpr (std::is_same_v<Images, slot_images> && kept > 0) {  // rows of f64 leave no slots
    const own_row<kept> row(a.rows, e, a.hidden);
    finish_expert<kept>(a, e, images.of(e, a.hidden), [&] { return row.square(); }, scratch);
  } else if constexpr (requires { images.scaled_of(e, a.hidden); }) {
    const auto image = images.scaled_of(e, a.hidden);
    finish_expert<kept>(a, e, image, [&] { return square_of_row(a, e, image); }, scratch);
  } else {
    const auto image = images.of(e, a.hidden);
    finish_expert<kept>(a, e, image, [&] { return square_of_row(a, e, image); }, scratch);
  }
}

/// One block for each expert.
template <class Images, int kept>
__global__ void __launch_bounds__(finish_most_threads, 1)
    finish_kernel(const __grid_constant__ Images images, const __grid_constant__ finish_args a) {
  __shared__ leader_scratch scratch;
  wait_for_previous_kernel();
  let_next_kernel_start();
  finish_by_block<kept>(images, a, static_cast<int>(blockIdx.x), scratch);
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

/// Writes the sums of expert e, with all threads of the block.
template <class Images>
__device__ __forceinline__ void collect_by_block(const collect_args<Images>& a, int e) {
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

template <class Images>
__global__ void __launch_bounds__(finish_most_threads, 1)
    collect_kernel(const __grid_constant__ collect_args<Images> a) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  collect_by_block(a, static_cast<int>(blockIdx.x));
}

MPIROUTER_CUDA_DETAIL_END
