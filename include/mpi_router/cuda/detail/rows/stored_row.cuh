// A row of [N, D] in the registers of a group of threads.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// This thread's columns of a row, in two halves: other work can start while the loads are under way.
template <int vectors, int width>
class stored_row {
 public:
  static constexpr int columns = vectors * width;

  __device__ __forceinline__ stored_row(const any_matrix& rows, int e, int hidden, const thread_group& group)
      : rows_(rows) {
    rows.load_fours_bits<columns / 4, width>(e, hidden, group.rank * width, group.threads * width, bits_);
  }
  /// The numbers times 2^-exponent.
  __device__ __forceinline__ void scaled(int exponent, float (&out)[columns]) const {
    rows_.fours_from_bits(bits_, out);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      out[i] = scale_by(out[i], -exponent);
    }
  }
  /// The high word of the largest magnitude.
  [[nodiscard]] __device__ __forceinline__ unsigned most() const {
    float x[columns];
    rows_.fours_from_bits(bits_, x);
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      bits = max(bits, magnitude_bits(x[i]));
    }
    return high_word(static_cast<double>(__uint_as_float(bits)));
  }
  /// Σ x².
  [[nodiscard]] __device__ __forceinline__ double square() const { return dot(*this); }
  /// Σ x · other.
  [[nodiscard]] __device__ __forceinline__ double dot(const stored_row& other) const {
    float x[columns];
    float y[columns];
    rows_.fours_from_bits(bits_, x);
    other.rows_.fours_from_bits(other.bits_, y);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      sum = fma(static_cast<double>(x[i]), static_cast<double>(y[i]), sum);
    }
    return sum;
  }

 private:
  const any_matrix& rows_;
  unsigned bits_[columns / 4][4];
};

MPIROUTER_CUDA_DETAIL_END
