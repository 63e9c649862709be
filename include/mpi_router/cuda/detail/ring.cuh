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

/// The stored rows of a tile: `count` rows of expert `expert` from row `first`.
struct tile_rows {
  int expert;
  int first;
  int count;
};

struct tile_shape {
  int ffn;      // F
  int hidden;   // D
  int rows;     // of a full tile
  int per_expert;  // tiles
  [[nodiscard]] __device__ __forceinline__ tile_rows at(int tile) const {
    const int e = tile / per_expert;
    const int first = (tile - e * per_expert) * rows;
    return {e, first, min(rows, ffn - first)};
  }
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
  __device__ __forceinline__ void copy_rows(const ring_lane<T>& lane, const T* base, const tile_rows& tile, int hidden,
                                            unsigned char* stage, std::uint64_t* barrier) const {
    const T* const from = base + tile.first * lane.tensor.ffn;
    unsigned char* const to = stage + lane.offset;
    const int row_bytes = hidden * static_cast<int>(sizeof(T));
    if constexpr (by == copier::engine) {
      if (lane.tensor.ffn == hidden) {
        if (group_.rank == 0) {
          copy_bulk(to, from, static_cast<unsigned>(row_bytes * tile.count), barrier);
        }
      } else if (group_.rank < tile.count) {
        copy_bulk(to + group_.rank * lane.pitch, from + group_.rank * lane.tensor.ffn,
                  static_cast<unsigned>(row_bytes), barrier);
      }
    } else {
      for (int g = 0; g < tile.count; ++g) {
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
