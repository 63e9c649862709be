// A ring of tiles in shared memory, filled ahead of their use by asynchronous copies.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/threads.cuh>
#include <mpi_router/cuda/detail/plan/tiles.hpp>

#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Who fills the rings: bulk copies of the TMA, whole tiles at the word of one warp (sm_90), or every thread
/// the bytes that it will itself read (sm_80: then a tile's arrival needs no barrier among threads).
enum class copier { tma, threads };

/// For a device without a TMA its kernels need not be compiled: the launches choose by the device,
/// and should one be wrong, it must not pass for a result.
template <copier by>
__device__ __forceinline__ bool not_on_this_device() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (by == copier::tma) {
    __trap();
    return true;
  }
#endif
  return false;
}

/// The first warp of a group starts the copy of the group's next tile before `end`, of each ring_lane, to the
/// stage after the last. No thread may still read what is there.
template <class... Lanes>
__device__ __forceinline__ void feed_ring(unsigned char* memory, std::uint64_t* full, feed_state* state,
                                          const ring_shape& shape, const tile_shape& tiles, int end,
                                          const Lanes&... lanes) {
  const int thread = static_cast<int>(threadIdx.x) % 32;
  const feed_state at = *state;
  if (at.tile >= end) {
    return;
  }
  unsigned char* const stage = memory + at.stage * shape.stage_bytes;
  const auto start = [&](const auto&... copies) {
    if (thread == 0) {
      barrier_expect(full + at.stage, (copies.bytes() + ...));
    }
    __syncwarp();
    (copies.start(thread, full + at.stage), ...);
  };
  start(lanes.part(stage, at, tiles.hidden, min(tiles.rows, tiles.ffn - at.first))...);
  if (thread == 0) {
    tile_cursor cursor(at.expert, at.first);
    cursor.advance(tiles, shape.groups);
    *state = {at.tile + shape.groups, cursor.expert(), cursor.first(),
              at.stage + 1 == shape.stages ? 0 : at.stage + 1};
  }
  __syncwarp();
}

/// One thread's copies of the bytes that it will itself read of a tile, row after row: each is started after
/// this thread's own last read of what was there.
template <int vectors, class Lane>
class row_copies {
 public:
  __device__ __forceinline__ row_copies(const Lane& lane, unsigned char* stage, const tile_shape& tiles,
                                        const tile_cursor& at, const thread_group& group, bool wanted)
      : step_(group.threads * unit) {
    if (!wanted) {
      return;
    }
    const auto* const base = lane.tensor.of(at.expert());
    if (!lane.fast(base, tiles.hidden)) {
      return;
    }
    const int first = group.rank * unit;
    stride_ = lane.tensor.ffn * static_cast<long long>(sizeof(*base));
    pitch_ = lane.pitch;
    from_ = reinterpret_cast<const unsigned char*>(base) + at.first() * stride_ + first;
    to_ = static_cast<int>(shared_address(stage + lane.offset)) + first;
    bytes_ = tiles.hidden * static_cast<int>(sizeof(*base)) - first;
    left_ = at.count(tiles);
  }
  /// Those of the next row, if there is one.
  __device__ __forceinline__ void next() {
    if (left_ > 0) {
      --left_;
#pragma unroll
      for (int v = 0; v < vectors; ++v) {
#pragma unroll
        for (int i = 0; i < unit; i += 16) {
          if (const int at = v * step_ + i; at < bytes_) {
            copy_async_16(to_ + at, from_ + at, true);
          }
        }
      }
      from_ += stride_;
      to_ += pitch_;
    }
  }
  /// Those of all rows that are left.
  __device__ __forceinline__ void rest() {
    while (left_ > 0) {
      next();
    }
  }

 private:
  static constexpr int unit = Lane::unit;
  const unsigned char* from_ = nullptr;
  long long stride_ = 0;
  int step_;       // bytes from one of this thread's units of a row to the next
  int bytes_ = 0;  // of a row, from this thread's first on
  int to_ = 0;
  int pitch_ = 0;
  int left_ = 0;  // rows
};

/// A group's view of its ring. Tiles come in order.
template <copier by>
class ring_view {
 public:
  __device__ __forceinline__ ring_view(unsigned char* memory, std::uint64_t* full, const ring_shape& shape)
      : memory_(memory), full_(full), stages_(shape.stages), stage_bytes_(shape.stage_bytes) {}

  /// Waits for the next tile and returns its stage.
  [[nodiscard]] __device__ __forceinline__ unsigned char* pop() {
    const int stage = tail_;
    if constexpr (by == copier::tma) {
      barrier_wait(full_ + stage, parity_);
    } else {
      switch (stages_) {
        case 2: wait_for_copy_groups<1>(); break;
        case 3: wait_for_copy_groups<2>(); break;
        default: wait_for_copy_groups<3>();
      }
    }
    if (++tail_ == stages_) {
      tail_ = 0;
      parity_ ^= 1U;
    }
    return memory_ + stage * stage_bytes_;
  }
  /// Threads: this thread's copies of the rows of a tile to the stage after the last; none if not `wanted`.
  template <int vectors, class Lane>
  [[nodiscard]] __device__ __forceinline__ row_copies<vectors, Lane> copies(const Lane& lane,
                                                                            const tile_shape& tiles,
                                                                            const tile_cursor& at,
                                                                            const thread_group& group,
                                                                            bool wanted) const {
    return {lane, memory_ + head_ * stage_bytes_, tiles, at, group, wanted};
  }
  /// All of them at once.
  template <int vectors, class Lane>
  __device__ __forceinline__ void copy(const Lane& lane, const tile_shape& tiles, const tile_cursor& at,
                                       const thread_group& group) const {
    constexpr int unit = Lane::unit;
    const auto* const base = lane.tensor.of(at.expert());
    if (!lane.fast(base, tiles.hidden)) {
      return;
    }
    const int row_bytes = tiles.hidden * static_cast<int>(sizeof(*base));
    const long long stride = lane.tensor.ffn * static_cast<long long>(sizeof(*base));
    const auto* row = reinterpret_cast<const unsigned char*>(base) + at.first() * stride;
    int to = static_cast<int>(shared_address(memory_ + head_ * stage_bytes_ + lane.offset));
    for (int g = at.count(tiles); g > 0; --g) {
      for (int offset = group.rank * unit; offset < row_bytes; offset += group.threads * unit) {
#pragma unroll
        for (int i = offset; i < offset + unit; i += 16) {
          if (i < row_bytes) {
            copy_async_16(to + i, row + i, true);
          }
        }
        if (vectors == 1) {  // the only one of this thread's, which saves a loop
          break;
        }
      }
      row += stride;
      to += lane.pitch;
    }
  }
  /// Threads: closes the copies of one tile, be there any or not.
  __device__ __forceinline__ void close() {
    close_copy_group();
    head_ = head_ + 1 == stages_ ? 0 : head_ + 1;
  }

 private:
  unsigned char* memory_;
  std::uint64_t* full_;
  int stages_;
  int stage_bytes_;
  int tail_ = 0;
  int head_ = 0;
  unsigned parity_ = 0;
};

MPIROUTER_CUDA_DETAIL_END
