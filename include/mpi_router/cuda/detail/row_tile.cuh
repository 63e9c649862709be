// What the kernels over stored rows share: a block's memory, rows and tiles in registers.
#pragma once

#include <mpi_router/cuda/detail/finish.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// Where a block's shared memory goes, after the rings.
struct block_memory {
  leader_scratch* leader;
  double* row_squares;   // [most_warps]: each warp's part of ‖r‖²
  std::uint64_t* full;   // [groups, most_stages]
  feed_state* feed;      // [groups]
  float* scratch;        // [warps, 2 · sums_at_once]
  slot_header* headers;  // [groups]
  /// [groups, columns], where there are several groups, and several segments; or the other parts of an image
  /// of which this block has the first.
  float* sums;

  [[nodiscard]] __host__ __device__ static constexpr int fixed_bytes(int groups, int warps) {
    return static_cast<int>(sizeof(leader_scratch)) + most_warps * 8 +
           groups * (most_stages * 8 + static_cast<int>(sizeof(feed_state))) + warps * 2 * sums_at_once * 4 +
           groups * static_cast<int>(sizeof(slot_header));
  }
  __device__ __forceinline__ block_memory(unsigned char* after_rings, int groups, int warps)
      : leader(reinterpret_cast<leader_scratch*>(after_rings)),
        row_squares(reinterpret_cast<double*>(leader + 1)),
        full(reinterpret_cast<std::uint64_t*>(row_squares + most_warps)),
        feed(reinterpret_cast<feed_state*>(full + groups * most_stages)),
        scratch(reinterpret_cast<float*>(feed + groups)),
        headers(reinterpret_cast<slot_header*>(scratch + warps * 2 * sums_at_once)),
        sums(reinterpret_cast<float*>(headers + groups)) {}

  /// All threads of the block call it first: the first tile of group g is `tile` + g.
  template <copier by>
  __device__ __forceinline__ void start(const ring_shape& ring, const tile_shape& tiles, int tile) const {
    if (threadIdx.x == 0) {
      leader->init();
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

/// This thread's columns of a row, in two halves: other work can start while the loads are under way.
template <int vectors, int width>
class stored_row {
 public:
  __device__ __forceinline__ stored_row(const any_matrix& rows, int e, int hidden, const thread_group& group)
      : rows_(rows), e_(e), hidden_(hidden) {
#pragma unroll
    for (int i = 0; i < vectors * width / 4; ++i) {
      rows.load_four_bits(e, column(i, group), hidden, bits_[i]);
    }
  }
  /// Scaled so that the row's largest element is in [1, 2): returns the exponent that was taken out. Columns
  /// beyond D are zero. `squares` is null or takes each warp's part of ‖r‖².
  __device__ __forceinline__ int scaled(const thread_group& group, float* scratch, int& turn, double* squares,
                                        float (&out)[vectors * width]) const {
    const auto for_fours = [&](const auto& visit) {
#pragma unroll
      for (int i = 0; i < vectors * width / 4; ++i) {
        double four[4];
        rows_.four_from_bits(bits_[i], e_, column(i, group), hidden_, four);
        visit(4 * i, four);
      }
    };
    unsigned most = 0;
    double square = 0.0;
    for_fours([&](int, const double(&four)[4]) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        most = max(most, high_word(four[k]));
        square = fma(four[k], four[k], square);
      }
    });
    if (squares != nullptr) {
      square = add_over_warp(square);
      if (group.lane() == 0) {
        squares[group.warp()] = square;
      }
    }
    most = max_over_group(most, group, scratch, turn);
    const int exponent = exponent_of_high_word(most);
    const double scale = wide_power_of_two(-exponent);
    for_fours([&](int i, const double(&four)[4]) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        out[i + k] = static_cast<float>(four[k] * scale);
      }
    });
    return exponent;
  }

 private:
  /// The first of this thread's i-th four columns.
  [[nodiscard]] __device__ __forceinline__ static int column(int i, const thread_group& group) {
    return (4 * i / width * group.threads + group.rank) * width + 4 * i % width;
  }
  const any_matrix& rows_;
  int e_;
  int hidden_;
  unsigned bits_[vectors * width / 4][4];
};

template <int vectors, int width>
__device__ __forceinline__ int load_row(const any_matrix& rows, int e, int hidden, const thread_group& group,
                                        float* scratch, int& turn, float (&out)[vectors * width]) {
  return stored_row<vectors, width>(rows, e, hidden, group).scaled(group, scratch, turn, nullptr, out);
}

/// A tile as one thread sees it: its vectors of each row, in a stage of the ring.
template <class T>
struct tile_share {
  unsigned char* own;  // this thread's first vector of the tile's first row
  int pitch;
  int step;     // bytes from one of this thread's vectors of a row to the next
  int count;    // rows
  int columns;  // left from this thread's first column on

  __device__ __forceinline__ tile_share(const ring_lane<T>& lane, unsigned char* stage, int rows_left,
                                        int hidden, const thread_group& group)
      : own(stage + lane.offset + group.rank * 16),
        pitch(lane.pitch),
        step(group.threads * 16),
        count(rows_left),
        columns(hidden - group.rank * vector_width<T>) {}

  /// Vector v of row g, zero beyond the row's end. Beyond the last row, the last: its dots are to be dropped.
  [[nodiscard]] __device__ __forceinline__ uint4 load(int g, int v) const {
    const bool inside = v * step < columns * static_cast<int>(sizeof(T));
    return inside ? *reinterpret_cast<const uint4*>(own + min(g, count - 1) * pitch + v * step)
                  : make_uint4(0, 0, 0, 0);
  }
  /// Drops the dots of rows beyond the last; `n` is a multiple of the rows of a tile.
  template <int rows, int n>
  __device__ __forceinline__ void drop(float (&dots)[n]) const {
#pragma unroll
    for (int g = 0; g < n; ++g) {
      dots[g] = g % rows < count ? dots[g] : 0.0F;
    }
  }

  /// Fetches a tile that the asynchronous copies left out, element by element: `from` is its first row.
  template <int rows, int vectors>
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
