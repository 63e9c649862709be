// A row of [N, D] in the registers of a group of threads.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// This thread's columns of a row, in two halves: other work can start while the loads are under way (but not
/// those of f64, which no float holds).
template <int vectors, int width>
class stored_row {
 public:
  static constexpr int columns = vectors * width;

  __device__ __forceinline__ stored_row(const any_matrix& rows, int e, int hidden, const thread_group& group)
      : rows_(rows), e_(e), hidden_(hidden), first_(group.rank * width), step_(group.threads * width) {
    rows.load_fours_bits<columns / 4, width>(e, hidden, first_, step_, bits_);
  }
  /// The numbers times 2^-exponent.
  __device__ __forceinline__ void scaled(int exponent, float (&out)[columns]) const {
    rows_.fours_from_bits(bits_, out);
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      out[i] = scale_by(out[i], -exponent);
    }
    for_doubles([&](int at, double x) {
      const auto value = static_cast<float>(x * wide_power_of_two(-exponent));
#pragma unroll
      for (int i = 0; i < columns; ++i) {  // an array in registers has constant indices alone
        out[i] = i == at ? value : out[i];
      }
    });
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
    unsigned most = high_word(static_cast<double>(__uint_as_float(bits)));
    for_doubles([&](int, double y) { most = max(most, high_word(y)); });
    return most;
  }
  /// Σ x².
  [[nodiscard]] __device__ __forceinline__ double square() const {
    float x[columns];
    rows_.fours_from_bits(bits_, x);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      sum = fma(static_cast<double>(x[i]), static_cast<double>(x[i]), sum);
    }
    for_doubles([&](int, double y) { sum = fma(y, y, sum); });
    return sum;
  }
  /// Σ x · other, where `other` is of floats.
  [[nodiscard]] __device__ __forceinline__ double dot(const stored_row& other) const {
    float x[columns];
    float y[columns];
    rows_.fours_from_bits(bits_, x);
    other.scaled(0, y);
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      sum = fma(static_cast<double>(x[i]), static_cast<double>(y[i]), sum);
    }
    for_doubles([&](int i, double z) {
      sum = fma(z, other.rows_.load_four_rarely(e_, column(i), hidden_).at[0], sum);
    });
    return sum;
  }

 private:
  [[nodiscard]] __device__ __forceinline__ int column(int i) const {
    return first_ + i / width * step_ + i % width;
  }
  /// visit(i, x) for this thread's columns of a row of f64, whose bits are zero.
  template <class Visit>
  __device__ __forceinline__ void for_doubles(const Visit& visit) const {
    if (rows_.format == storage_format::f64) [[unlikely]] {
#pragma unroll 1
      for (int i = 0; i < columns; i += 4) {
        const any_matrix::four x = rows_.load_four_rarely(e_, column(i), hidden_);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          visit(i + k, x.at[k]);
        }
      }
    }
  }
  const any_matrix& rows_;
  int e_;
  int hidden_;
  int first_;
  int step_;
  unsigned bits_[columns / 4][4];
};

MPIROUTER_CUDA_DETAIL_END
