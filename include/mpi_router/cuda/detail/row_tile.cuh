// What the kernels over stored rows share: a block's memory, rows and tiles in registers.
#pragma once

#include <mpi_router/cuda/detail/finish.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// A block's shared memory after the rings.
struct block_memory : row_memory {
  using row_memory::row_memory;

  /// All threads of the block call it first: the first tile of group g is `tile` + g.
  template <copier by>
  __device__ __forceinline__ void start(const ring_shape& ring, const tile_shape& tiles, int tile) const {
    if (threadIdx.x == 0) {
      barrier_init(&leader->arrived, 1);
    }
    const int groups = by == copier::engine ? ring.groups : 0;
    for (int i = static_cast<int>(threadIdx.x); i < groups * ring.stages; i += static_cast<int>(blockDim.x)) {
      barrier_init(full + i / ring.stages * most_stages + i % ring.stages, 1);
    }
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += static_cast<int>(blockDim.x)) {
      const tile_cursor at(tiles, tile + g);
      feed[g] = {tile + g, at.expert(), at.first(), 0};
    }
    publish_barriers();
    __syncthreads();
    cluster_arrive();
    cluster_wait();
  }
};

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

/// A tile as one thread sees it: its `vectors` of each row, in a stage of the ring. Of them the last may lie
/// beyond the row's end (and the first, if it is the only one).
template <class T, int vectors>
struct tile_share {
  unsigned char* own;  // this thread's first vector of the tile's first row
  int pitch;
  int step;       // bytes from one of this thread's vectors of a row to the next
  int count;      // rows
  int columns;    // left from this thread's first column on
  bool has_last;  // the last vector, or a part of it, is in the row

  __device__ __forceinline__ tile_share(const ring_lane<T>& lane, unsigned char* stage, int rows_left,
                                        int hidden, const thread_group& group)
      : own(stage + lane.offset + group.rank * 16),
        pitch(lane.pitch),
        step(group.threads * 16),
        count(rows_left),
        columns(hidden - group.rank * vector_width<T>),
        has_last((vectors - 1) * step < columns * static_cast<int>(sizeof(T))) {}

  /// Vector v of row g, zero beyond the row's end.
  [[nodiscard]] __device__ __forceinline__ uint4 load(int g, int v) const {
    const unsigned char* const at = own + g * pitch + v * step;
    return v + 1 < vectors ? *reinterpret_cast<const uint4*>(at) : load_shared_or_zero(at, has_last);
  }
  /// Makes rows beyond the last zero, for loops over all `rows` of a tile.
  template <int rows>
  __device__ __forceinline__ void complete() const {
    if (count < rows) [[unlikely]] {
#pragma unroll 1
      for (int i = count * vectors; i < rows * vectors; ++i) {
        const int v = i % vectors;
        if (v + 1 < vectors || has_last) {
          *reinterpret_cast<uint4*>(own + i / vectors * pitch + v * step) = make_uint4(0, 0, 0, 0);
        }
      }
      order_before_engine();
    }
  }

  /// Fetches a tile that the asynchronous copies left out, element by element: `from` is its first row.
  template <int rows>
  __device__ __forceinline__ void fetch(const T* from, long long row_stride,
                                        const thread_group& group) const {
#pragma unroll 1
    for (int i = 0; i < rows * vectors; ++i) {
      const int g = i / vectors;
      const int v = i % vectors;
      const int skipped = v * step / static_cast<int>(sizeof(T));
      if (g < count && skipped < columns) {
        const T* const at = from + g * row_stride + group.rank * vector_width<T> + skipped;
        *reinterpret_cast<uint4*>(own + g * pitch + v * step) =
            gather_vector(at, min(columns - skipped, vector_width<T>));
      }
    }
    order_before_engine();
  }
};

}  // namespace detail
MPIROUTER_CUDA_END
