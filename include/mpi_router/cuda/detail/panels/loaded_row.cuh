// A router row as the warps that multiply tiles need it: each lane the rows that it loaded.
#pragma once

#include <mpi_router/cuda/detail/panels/row.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

constexpr int early_loads_of_tiles(int lanes) {
  return lanes == panel_most_lanes ? panel_early_loads : panel_more_early_loads;
}

/// As panel_row, and not handed round: of 32 rows, `lanes` passes of a warp, each lane has one. The format is
/// asked for once a row, not once an element.
template <int passes, int lanes>
class panel_loaded_row : public panel_row<passes, lanes, early_loads_of_tiles(lanes)> {
  using base = panel_row<passes, lanes, early_loads_of_tiles(lanes)>;

 public:
  __device__ __forceinline__ panel_loaded_row(const any_matrix& rows, int e, int hidden, int first_row,
                                              const thread_group& group)
      : base(rows, e, hidden,
             first_row + group.lane() % base::warp_rows + group.lane() / base::warp_rows * base::pass_rows) {
    if (rows.format == storage_format::f32) {
      load_as<unsigned>();
    } else {
      load_as<unsigned short>();  // the two of 16 bits
    }
  }
  /// This lane's rows times 2^-exponent, zero beyond D.
  __device__ __forceinline__ void scaled(int exponent, float (&r)[base::loads]) const {
    const double scale = wide_power_of_two(-exponent);
#pragma unroll
    for (int i = 0; i < base::loads; ++i) {
      const bool is_there = this->first_ + i * lanes * base::pass_rows < this->hidden_;
      r[i] = is_there ? static_cast<float>(this->rows_.from_bits(this->own_[i]) * scale) : 0.0F;
    }
  }

 private:
  template <class Bits>
  __device__ __forceinline__ void load_as() {
    const auto* const row = static_cast<const Bits*>(this->rows_.data) + this->e_ * this->rows_.row_stride;
    load_each<lanes * base::pass_rows>(row, this->first_, this->own_);
    load_each<panel_threads>(row, static_cast<int>(threadIdx.x), this->all_);
  }
  /// The elements at `at`, at + step, … of those that there are, else zeros.
  template <int step, class Bits, int count>
  __device__ __forceinline__ void load_each(const Bits* row, int at, unsigned (&to)[count]) const {
    const Bits* from = row + at * this->rows_.col_stride;
    const long long apart = step * this->rows_.col_stride;
#pragma unroll
    for (int i = 0; i < count; ++i, from += apart) {
      to[i] = at + i * step < this->hidden_ ? *from : 0U;
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
