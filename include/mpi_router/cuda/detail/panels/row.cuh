// A router row as the threads that work on panels need it: each its rows of every pass.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

/// This thread's rows of a router row, in two halves: other work can start while the loads are under way.
/// `first_row` is the warp's in pass 0; its lanes load each of its rows once and hand them round. Of the
/// whole row `early_loads` elements of each thread are under way at once.
template <int passes, int lanes, int early_loads = panel_early_loads>
class panel_row {
 public:
  __device__ __forceinline__ panel_row(const any_matrix& rows, int e, int hidden, int first_row,
                                       const thread_group& group)
      : panel_row(rows, e, hidden,
                  first_row + group.lane() % warp_rows + group.lane() / warp_rows * pass_rows) {
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int row = first_ + i * lanes * pass_rows;
      own_[i] = row < hidden ? rows.load_bits(e, row) : 0U;
    }
#pragma unroll
    for (int i = 0; i < early_loads; ++i) {
      const int row = group.rank + i * panel_threads;
      all_[i] = row < hidden ? rows.load_bits(e, row) : 0U;
    }
  }
  /// r[p], scaled so that the whole row's largest element is in [1, 2), zero beyond D; returns the exponent
  /// that was taken out. `squares` takes each warp's part of ‖r‖².
  __device__ __forceinline__ int scaled(const thread_group& group, float* scratch, int& turn, double* squares,
                                        float (&r)[passes]) const {
    unsigned most = 0;
    double square = 0.0;
    const auto admit = [&](double x) {
      most = max(most, high_word(x));
      square = fma(x, x, square);
    };
#pragma unroll
    for (int i = 0; i < early_loads; ++i) {
      const int row = group.rank + i * panel_threads;
      if (row < hidden_) {
        admit(rows_.from_bits(all_[i]));
      }
    }
#pragma unroll 4
    for (int row = group.rank + early_loads * panel_threads; row < hidden_; row += panel_threads) {
      admit(rows_.from_bits(rows_.load_bits(e_, row)));
    }
    square = add_over_warp(square);
    if (group.lane() == 0) {
      squares[group.warp()] = square;
    }
    const int exponent = exponent_of_high_word(max_over_group(most, group, scratch, turn));
    scaled(exponent, r);
    return exponent;
  }
  /// This thread's rows times 2^-exponent, zero beyond D.
  __device__ __forceinline__ void scaled(int exponent, float (&r)[passes]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const double scale = wide_power_of_two(-exponent);
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const int row = first_ + i * lanes * pass_rows;
      const float x = row < hidden_ ? static_cast<float>(rows_.from_bits(own_[i]) * scale) : 0.0F;
#pragma unroll
      for (int p = 0; p < lanes; ++p) {
        r[i * lanes + p] = __shfl_sync(0xffffffffU, x, p * warp_rows + lane / lanes);
      }
    }
  }
  /// The high word of the largest magnitude that this thread has of the whole row.
  [[nodiscard]] __device__ __forceinline__ unsigned most() const {
    unsigned bits = 0;
    for_own_of_all([&](int, float x) { bits = max(bits, magnitude_bits(x)); });
    return high_word(static_cast<double>(__uint_as_float(bits)));
  }
  /// This thread's part of Σ x · other over the whole row.
  [[nodiscard]] __device__ __forceinline__ double dot(const panel_row& other) const {
    double sum = 0.0;
    for_own_of_all([&](int i, float x) {
      const float y = other.rows_.from_bits(i < early_loads ? other.all_[i] : other.load(i));
      sum = fma(static_cast<double>(x), static_cast<double>(y), sum);
    });
    return sum;
  }

 protected:
  static constexpr int warp_rows = 32 / lanes;  // of one pass
  static constexpr int pass_rows = panel_threads / lanes;
  static constexpr int loads = passes / lanes;

  /// What it loads is for a derived class to say.
  __device__ __forceinline__ panel_row(const any_matrix& rows, int e, int hidden, int first)
      : rows_(rows), e_(e), hidden_(hidden), first_(first) {}

  const any_matrix& rows_;
  int e_;
  int hidden_;
  int first_;
  unsigned own_[loads];
  unsigned all_[early_loads];  // of the whole row

 private:
  [[nodiscard]] __device__ __forceinline__ unsigned load(int i) const {
    return rows_.load_bits(e_, static_cast<int>(threadIdx.x) + i * panel_threads);
  }
  /// use(i, x) for every panel_threads-th element of the whole row from this thread's first on.
  template <class Use>
  __device__ __forceinline__ void for_own_of_all(const Use& use) const {
#pragma unroll
    for (int i = 0; i < early_loads; ++i) {
      use(i, rows_.from_bits(all_[i]));  // zero beyond D
    }
#pragma unroll 4
    for (int i = early_loads; static_cast<int>(threadIdx.x) + i * panel_threads < hidden_; ++i) {
      use(i, rows_.from_bits(load(i)));
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
