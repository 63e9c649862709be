// A ring of tiles in shared memory, filled ahead of their use by asynchronous copies.
#pragma once

#include <mpi_router/cuda/detail/tensor.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// Who fills the ring: the copy engine, one thread asking for whole tiles (sm_90), or every thread the 16 bytes
/// that it will itself read (sm_80: then a tile's arrival needs no barrier among threads).
enum class copier { engine, threads };

/// The threads that work on one tile together, `threads` of them (a multiple of 32). A block has several such
/// groups, each with a ring and a named barrier of its own.
struct thread_group {
  int id;       // of the group in its block
  int threads;  // in the group
  int rank;     // of this thread in its group
  __device__ __forceinline__ explicit thread_group(int group_threads)
      : id(static_cast<int>(threadIdx.x) / group_threads),
        threads(group_threads),
        rank(static_cast<int>(threadIdx.x) - id * group_threads) {}
  [[nodiscard]] __device__ __forceinline__ int warp() const { return rank / 32; }
  [[nodiscard]] __device__ __forceinline__ int warps() const { return threads / 32; }
  [[nodiscard]] __device__ __forceinline__ int lane() const { return rank % 32; }
  __device__ __forceinline__ void sync() const {
    if (threads == 32) {
      __syncwarp();
    } else {
      named_barrier(id + 1, threads);
    }
  }
};

struct tile_shape {
  int ffn;         // F
  int hidden;      // D
  int rows;        // of a full tile
  int per_expert;  // tiles
};

/// One tensor's share of a stage.
template <class T>
struct ring_lane {
  batch<const T> tensor;
  int offset = 0;  // bytes, in a stage
  int pitch = 0;   // bytes from row to row in shared memory

  [[nodiscard]] __device__ __forceinline__ bool fast(const T* base, int hidden) const {
    return aligned_to_16(base, tensor.ffn * static_cast<long long>(sizeof(T)),
                         hidden * static_cast<long long>(sizeof(T)));
  }
};

/// Where a group's copying is: a tile of some expert, and whether its rows can go through the ring.
template <class T>
class tile_cursor {
 public:
  __device__ __forceinline__ tile_cursor(const tile_shape& tiles, const ring_lane<T>& lane, int tile, int experts)
      : tiles_(tiles), lane_(lane), experts_(experts), expert_(tile / tiles.per_expert),
        first_((tile - expert_ * tiles.per_expert) * tiles.rows) {
    enter();
  }
  __device__ __forceinline__ void advance(int count) {
    first_ += count * tiles_.rows;
    if (first_ >= tiles_.ffn) {
      const int span = tiles_.per_expert * tiles_.rows;
      if (first_ >= span) {
        do {
          first_ -= span;
          ++expert_;
        } while (first_ >= span);
        enter();
      }
    }
  }
  [[nodiscard]] __device__ __forceinline__ int expert() const { return expert_; }
  [[nodiscard]] __device__ __forceinline__ int first() const { return first_; }
  [[nodiscard]] __device__ __forceinline__ int count() const { return min(tiles_.rows, tiles_.ffn - first_); }
  [[nodiscard]] __device__ __forceinline__ const T* base() const { return base_; }
  [[nodiscard]] __device__ __forceinline__ bool in_ring() const { return in_ring_; }

 private:
  __device__ __forceinline__ void enter() {
    if (expert_ < experts_) {
      base_ = lane_.tensor.of(expert_);
      in_ring_ = lane_.fast(base_, tiles_.hidden);
    }
  }
  const tile_shape& tiles_;
  const ring_lane<T>& lane_;
  int experts_;
  int expert_;
  int first_;
  const T* base_ = nullptr;
  bool in_ring_ = false;
};

/// The ring of one group. Tiles are numbered 0, 1, … in the order of their use; tile i lives in stage
/// i mod stages. Tiles whose rows do not start at multiples of 16 bytes stay out: read them directly.
template <copier by>
class ring_buffer {
 public:
  __device__ __forceinline__ ring_buffer(unsigned char* stages_memory, std::uint64_t* barriers, int stages,
                                         int stage_bytes, const thread_group& group)
      : memory_(stages_memory), barriers_(barriers), stages_(stages), stage_bytes_(stage_bytes), group_(group) {
    if constexpr (by == copier::engine) {
      if (group_.rank == 0) {
        for (int s = 0; s < stages_; ++s) {
          barrier_init(barriers_ + s, 1);
        }
        publish_barriers();
      }
      __syncthreads();
    }
  }

  [[nodiscard]] __device__ __forceinline__ int stages() const { return stages_; }

  /// Begins the copy of the next tile in order. All threads of the group call it, after the group's last read of
  /// the stage it goes to (engine: with a barrier in between). `copy(stage, barrier)` starts the copies.
  template <class Copy>
  __device__ __forceinline__ void push(unsigned expected_bytes, const Copy& copy) {
    unsigned char* const stage = memory_ + head_ * stage_bytes_;
    if constexpr (by == copier::engine) {
      if (group_.rank < 32) {
        if (group_.rank == 0) {
          barrier_expect(barriers_ + head_, expected_bytes);
        }
        __syncwarp();
        copy(stage, barriers_ + head_);
      }
    } else {
      copy(stage, nullptr);
      close_copy_group();
    }
    head_ = head_ + 1 == stages_ ? 0 : head_ + 1;
  }
  /// Nothing left to copy: keeps the count of groups in step.
  __device__ __forceinline__ void push_nothing() {
    if constexpr (by == copier::threads) {
      close_copy_group();
    }
  }

  /// Waits for the oldest tile and returns its stage.
  __device__ __forceinline__ const unsigned char* pop() {
    const unsigned char* const stage = memory_ + tail_ * stage_bytes_;
    if constexpr (by == copier::engine) {
      barrier_wait(barriers_ + tail_, parity_);
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
    return stage;
  }

  /// Copies the rows of a tile of one tensor, of whose rows each thread owns `unit` bytes at a time.
  template <int unit, class T>
  __device__ __forceinline__ void copy_rows(const ring_lane<T>& lane, const T* base, int first, int count, int hidden,
                                            unsigned char* stage, std::uint64_t* barrier) const {
    const T* const from = base + first * lane.tensor.ffn;
    unsigned char* const to = stage + lane.offset;
    const int row_bytes = hidden * static_cast<int>(sizeof(T));
    if constexpr (by == copier::engine) {
      if (lane.tensor.ffn == hidden) {
        if (group_.rank == 0) {
          copy_bulk(to, from, static_cast<unsigned>(row_bytes * count), barrier);
        }
      } else if (group_.rank < count) {
        copy_bulk(to + group_.rank * lane.pitch, from + group_.rank * lane.tensor.ffn,
                  static_cast<unsigned>(row_bytes), barrier);
      }
    } else {
      for (int g = 0; g < count; ++g) {
        const auto* const row = reinterpret_cast<const unsigned char*>(from + g * lane.tensor.ffn);
        for (int at = group_.rank * unit; at < row_bytes; at += group_.threads * unit) {
#pragma unroll
          for (int i = at; i < at + unit; i += 16) {
            if (i < row_bytes) {
              copy_async_16(to + g * lane.pitch + i, row + i);
            }
          }
        }
      }
    }
  }

 private:
  unsigned char* memory_;
  std::uint64_t* barriers_;
  int stages_;
  int stage_bytes_;
  thread_group group_;
  int head_ = 0;
  int tail_ = 0;
  unsigned parity_ = 0;
};

}  // namespace detail
MPIROUTER_CUDA_END
