// Tiles of stored rows in a stage of a ring: what a warp asks the TMA for, and what one thread sees.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>
#include <mpi_router/cuda/detail/plan/tiles.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// One tensor's part of a tile, as a warp asks the TMA for it: in one piece where whole rows lie one behind
/// the other both there and here, else row by row. Nothing of an expert whose rows stay out of the ring.
template <class T>
struct tile_copy {
  const T* from;
  unsigned char* to;
  long long stride;  // elements, from row to row there
  int pitch;         // bytes, here
  int row_bytes;     // 0: nothing
  int count;         // rows

  template <class Lane>
  __device__ __forceinline__ tile_copy(const Lane& lane, unsigned char* stage, const feed_state& at,
                                       int hidden, int rows)
      : from(lane.tensor.of(at.expert)), to(stage + lane.offset), stride(lane.tensor.ffn), pitch(lane.pitch) {
    row_bytes = lane.fast(from, hidden) ? hidden * static_cast<int>(sizeof(T)) : 0;
    from += at.first * stride;
    count = rows;
  }
  [[nodiscard]] __device__ __forceinline__ unsigned bytes() const {
    return static_cast<unsigned>(count * row_bytes);
  }
  __device__ __forceinline__ void start(int thread, std::uint64_t* arrived) const {
    if (row_bytes == 0) {
      return;
    }
    if (stride * static_cast<long long>(sizeof(T)) == row_bytes && pitch == row_bytes) {
      if (thread == 0) {
        copy_bulk(to, from, bytes(), arrived);
      }
    } else if (thread < count) {
      copy_bulk(to + thread * pitch, from + thread * stride, static_cast<unsigned>(row_bytes), arrived);
    }
  }
};

/// One tensor's share of a stage. Where threads copy, each owns `unit` bytes of a row at a
/// time.
template <class T, int bytes_at_a_time = vector_bytes>
struct ring_lane {
  static constexpr int unit = bytes_at_a_time;
  batch<const T> tensor;
  int offset = 0;  // bytes, in a stage
  int pitch = 0;   // bytes from row to row in shared memory

  /// Whether an expert's rows can go through the ring. Those that do not start at multiples of 16 bytes stay
  /// out, and are fetched by the threads that use them.
  [[nodiscard]] __device__ __forceinline__ bool fast(const T* base, int hidden) const {
    return aligned_to_16(base, tensor.ffn * static_cast<long long>(sizeof(T)),
                         hidden * static_cast<long long>(sizeof(T)));
  }
  /// Its part of the tile `at`, of `rows` rows.
  [[nodiscard]] __device__ __forceinline__ tile_copy<T> part(unsigned char* stage, const feed_state& at,
                                                             int hidden, int rows) const {
    return {*this, stage, at, hidden, rows};
  }
};

/// A tile as one thread sees it: its `vectors` of each row, in a stage of the ring. Of them the last may lie
/// beyond the row's end (and the first, if it is the only one).
template <class T, int vectors>
struct tile_share {
  unsigned char* stage;
  unsigned char* own;  // this thread's first vector of the tile's first row
  int pitch;
  int step;       // bytes from one of this thread's vectors of a row to the next
  int count;      // rows
  int columns;    // left from this thread's first column on
  bool has_last;  // the last vector, or a part of it, is in the row

  __device__ __forceinline__ tile_share(const ring_lane<T>& lane, unsigned char* its_stage, int rows_left,
                                        int hidden, const thread_group& group)
      : stage(its_stage),
        own(stage + lane.offset + group.rank * 16),
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
      order_before_tma();
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
    order_before_tma();
  }
};

MPIROUTER_CUDA_DETAIL_END
