// One read of weights that are decoded as they are read: for each row of A its dots with one or two vectors,
// and their product with the row while that is in registers.
#pragma once

#include <mpi_router/cuda/detail/decoded/codes.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/scaling.cuh>
#include <mpi_router/cuda/detail/device/sums.cuh>
#include <mpi_router/cuda/detail/finish/kernel.cuh>
#include <mpi_router/cuda/detail/plan/decoded_plan.hpp>

#include <utility>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class Rows>
struct decoded_args {
  Rows rows;
  int ffn;
  int hidden;
  partition part;
  scaled_vectors vectors[2];  // r; of a backward also z̄, whose image is the one that is wanted then
  partial_sums out;
  double* projections[2] = {};  // [N, F] each, or null
};

/// Images in slots, for rows of any type.
struct decoded_images : slot_images {};

/// A segment's sums without the power of two of its largest projection, for weights between about 2^-100 and
/// 2^100.
struct decoded_scale {
  int exponent = exponent_unset;  // image = sums · 2^exponent
  float factor = 0.0F;            // of a projection that enters them

  /// Prepares for projections of which `most` are the bits of the largest; rescale(factor) multiplies the
  /// sums so far.
  template <class Rescale>
  __device__ __forceinline__ void admit(unsigned most, const Rescale& rescale) {
    const int e = min(max(static_cast<int>(most >> 23) - 127, -100), 100);
    if (most == 0 || e <= exponent + projection_headroom) return;
    if (exponent != exponent_unset) rescale(power_of_two(exponent - e));
    exponent = e;
    factor = power_of_two(-e);
  }
};

/// Eight columns of experts that load what is an element.
template <class Expert>
struct loaded_columns {
  static constexpr bool has_minimum = false;
  struct bytes {
    float elements[decoded_columns];
  };
  const Expert& from;
  int column;
  [[nodiscard]] __device__ __forceinline__ bytes fetch(int row) const {
    bytes eight;
    from.load(row, column, eight.elements);
    return eight;
  }
  [[nodiscard]] __device__ __forceinline__ shared_numbers decode(const bytes& eight,
                                                                 float (&out)[decoded_columns]) const {
#pragma unroll
    for (int i = 0; i < decoded_columns; ++i) out[i] = eight.elements[i];
    return {1.0F, 0.0F};
  }
};
template <class Expert>
[[nodiscard]] __device__ __forceinline__ auto columns_of(const Expert& expert, int column) {
  if constexpr (requires { expert.columns_at(column); }) {
    return expert.columns_at(column);
  } else {
    return loaded_columns<Expert>{expert, column};
  }
}

/// A thread's columns of the vectors, of the image and of one expert's rows.
template <class Rows, class Columns, int probes, int pieces>
class decoded_segment {
 public:
  static constexpr int rows = decoded_rows(pieces);
  static constexpr int dots = probes * rows;

  __device__ __forceinline__ decoded_segment(const decoded_args<Rows>& args, int e,
                                             const Columns (&columns)[pieces], float* scratch)
      : a_(args), columns_(columns), e_(e), scratch_(scratch), group_(static_cast<int>(blockDim.x)) {
#pragma unroll
    for (int k = 0; k < probes; ++k) {
      const scaled_vectors& from = a_.vectors[k];
      const float* const vector = from.values + static_cast<long long>(e) * from.pitch;
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        v_sum_[k][p] = 0.0F;
#pragma unroll
        for (int i = 0; i < decoded_columns; ++i) {
          v_[k][p][i] = is_mine(p) ? vector[column(p) + i] : 0.0F;
          v_sum_[k][p] += v_[k][p][i];
        }
      }
    }
  }
  /// The first of a thread's columns in a piece, and where it looks: threads beyond D fetch what others do,
  /// so that nothing branches, and multiply it by zero.
  [[nodiscard]] __device__ __forceinline__ static int column(int piece) {
    return (piece * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * decoded_columns;
  }
  [[nodiscard]] __device__ __forceinline__ static int looks_at(int piece, int hidden) {
    return column(piece) < hidden ? column(piece) : 0;
  }

  /// The rows from `first` up to `end`, tile by tile: the bytes of the next are under way while this one's
  /// are multiplied.
  __device__ __forceinline__ void take(int first, int end, int& turn) {
    fetch(first, end);
    for (; first < end; first += rows) {
      decode();
      if (first + rows < end) fetch(first + rows, end);
      float y[dots] = {};
#pragma unroll
      for (int j = 0; j < dots; ++j) {
#pragma unroll
        for (int p = 0; p < pieces; ++p) {
          float part = 0.0F;
#pragma unroll
          for (int i = 0; i < decoded_columns; ++i) {
            part = fmaf(codes_[j % rows][p][i], v_[j / rows][p][i], part);
          }
          y[j] = fmaf(shared_[j % rows][p].scale, part, y[j]);
          if constexpr (Columns::has_minimum) {
            y[j] = fmaf(-shared_[j % rows][p].minimum, v_sum_[j / rows][p], y[j]);
          }
        }
      }
      const float mine = sum_over_group(y, group_, scratch_, turn, [] {});
      if (a_.projections[0] != nullptr) tell_projection(first, end, mine);
      add(y + (probes - 1) * rows, end - first);
    }
  }
  /// Leaves the sums in a slot.
  __device__ __forceinline__ void leave(int slot) const {
    float* const to = a_.out.rows + static_cast<long long>(slot) * a_.out.pitch;
#pragma unroll
    for (int p = 0; p < pieces; ++p) {
      if (is_mine(p)) {
#pragma unroll
        for (int i = 0; i < decoded_columns; i += 4) {
          *reinterpret_cast<float4*>(to + column(p) + i) =
              make_float4(sum_[p][i] - low_[p], sum_[p][i + 1] - low_[p], sum_[p][i + 2] - low_[p],
                          sum_[p][i + 3] - low_[p]);
        }
      }
    }
    if (threadIdx.x == 0) {
      const int of_vector = a_.vectors[probes - 1].exponents[e_];
      const bool is_zero = scale_.exponent == exponent_unset || of_vector == exponent_unset;
      const int exponent = is_zero ? 0 : scale_.exponent + of_vector;
      a_.out.headers[slot] = {energy_, 2 * exponent, exponent, 0};
    }
  }

 private:
  [[nodiscard]] __device__ __forceinline__ bool is_mine(int piece) const { return column(piece) < a_.hidden; }

  __device__ __forceinline__ void fetch(int first, int end) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) next_[r][p] = columns_[p].fetch(min(first + r, end - 1));
    }
  }
  __device__ __forceinline__ void decode() {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) shared_[r][p] = columns_[p].decode(next_[r][p], codes_[r][p]);
    }
  }
  /// Of row j mod rows with vector j / rows, j the number of the thread.
  __device__ __forceinline__ void tell_projection(int first, int end, float value) {
    const int j = static_cast<int>(threadIdx.x);
    if (j >= dots || first + j % rows >= end) return;
    const int k = j / rows;
    a_.projections[k][static_cast<long long>(e_) * a_.ffn + first + j % rows] =
        value * wide_power_of_two(a_.vectors[k].exponents[e_]);
  }
  /// The rows times their projections.
  __device__ __forceinline__ void add(const float* y, int left) {
    unsigned most = 0;
#pragma unroll
    for (int r = 0; r < rows; ++r) most = max(most, r < left ? magnitude_bits(y[r]) : 0U);
    scale_.admit(most, [&](float factor) {
      energy_ *= factor * factor;
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        low_[p] *= factor;
#pragma unroll
        for (int i = 0; i < decoded_columns; ++i) sum_[p][i] *= factor;
      }
    });
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float share = r < left ? y[r] * scale_.factor : 0.0F;
      energy_ = fmaf(share, share, energy_);
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const float of_codes = share * shared_[r][p].scale;
#pragma unroll
        for (int i = 0; i < decoded_columns; ++i) {
          sum_[p][i] = fmaf(of_codes, codes_[r][p][i], sum_[p][i]);
        }
        if constexpr (Columns::has_minimum) low_[p] = fmaf(share, shared_[r][p].minimum, low_[p]);
      }
    }
  }

  const decoded_args<Rows>& a_;
  const Columns (&columns_)[pieces];
  int e_;
  float* scratch_;
  thread_group group_;
  float v_[probes][pieces][decoded_columns];
  float v_sum_[probes][pieces];
  float sum_[pieces][decoded_columns] = {};
  float low_[pieces] = {};  // what the minima take from each of them
  float energy_ = 0.0F;
  decoded_scale scale_;
  typename Columns::bytes next_[rows][pieces];
  float codes_[rows][pieces][decoded_columns];
  shared_numbers shared_[rows][pieces];
};

/// columns_of(expert, column) of each piece.
template <int pieces, class Expert, class At, int... p>
__device__ __forceinline__ void with_columns(const Expert& expert, const At& at, const auto& use,
                                             std::integer_sequence<int, p...>) {
  const decltype(columns_of(expert, 0)) columns[pieces] = {columns_of(expert, at(p))...};
  use(columns);
}

template <class Rows, int probes, int pieces>
__global__ void __launch_bounds__(pieces == 1 ? 4 * warp_threads : most_threads, pieces == 1 ? 4 : 1)
    decoded_kernel(const __grid_constant__ decoded_args<Rows> a) {
  __shared__ float scratch[2 * most_warps * sums_at_once];
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  const int end = a.part.first_tile(block + 1);
  int turn = 0;
  for (int tile = a.part.first_tile(block); tile < end;) {
    const int e = tile / a.part.tiles_per_expert;
    const int first = e * a.part.tiles_per_expert;
    const int last = min(end, first + a.part.tiles_per_expert);
    const auto expert = a.rows.of(e);
    using columns = decltype(columns_of(expert, 0));
    using segment = decoded_segment<Rows, columns, probes, pieces>;
    with_columns<pieces>(
        expert, [&](int piece) { return segment::looks_at(piece, a.hidden); },
        [&](const columns(&own)[pieces]) {
          segment rows(a, e, own, scratch);
          rows.take((tile - first) * segment::rows, min((last - first) * segment::rows, a.ffn), turn);
          rows.leave(a.part.slot(block, e));
        },
        std::make_integer_sequence<int, pieces>());
    tile = last;
  }
}

MPIROUTER_CUDA_DETAIL_END
