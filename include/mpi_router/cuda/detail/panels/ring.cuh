// The ring of a block that works on panels of stored columns: each thread copies, and works on, its own 16
// bytes of up to `passes` rows of a panel, so that it waits for its own copies only.
#pragma once

#include <mpi_router/cuda/detail/device/instructions.cuh>
#include <mpi_router/cuda/detail/device/pair.cuh>
#include <mpi_router/cuda/detail/plan/panel_tiles.hpp>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A thread's slots in the ring, 16 bytes each, and the copies to them: one pass of a panel after the other,
/// a group of copies each, be there anything to copy or not. With `tile_lanes` they lie as the warp reads
/// them in tiles (panel_tiles).
template <class T, panel_depth depth, int line, int tile_lanes = 0>
class panel_ring {
 public:
  static constexpr int most_passes = panel_passes(depth);
  static constexpr int doubled = panel_doubled(depth);
  static constexpr int every = most_passes / doubled;  // a copy during the dots of so many passes

  decoder<T> decode;  // of the present expert's weights

  __device__ __forceinline__ panel_ring(unsigned char* memory, int passes, long long step)
      : own_(reinterpret_cast<uint4*>(memory) + tiles::slot(static_cast<int>(threadIdx.x))),
        first_(own_),
        next_first_(own_ + most_passes * panel_threads),
        passes_(passes),
        step_(step) {}

  [[nodiscard]] __device__ __forceinline__ int passes() const { return passes_; }
  /// The slot of pass p of the present panel.
  [[nodiscard]] __device__ __forceinline__ uint4* slot(int p) const {
    return (p < doubled ? first_ : own_) + p * panel_threads + flip(p);
  }
  /// How far pass p of the present panel lies behind that of the first slots.
  [[nodiscard]] __device__ __forceinline__ int bytes_to(int p) const {
    return (p * panel_threads + (p < doubled ? static_cast<int>(first_ - own_) : 0)) * vector_bytes;
  }
  /// Zeros in the slots of the passes that there are not, which no copy takes.
  __device__ __forceinline__ void clear_rest() const {
    for (int p = passes_; p < most_passes; ++p) {
      *slot(p) = make_uint4(0, 0, 0, 0);
      if (p < doubled) {
        (next_first_ - first_)[slot(p)] = make_uint4(0, 0, 0, 0);
      }
    }
  }
  /// Where the panel to copy next lies: this thread's bytes in its rows of the first `rows` passes. The
  /// others become zeros.
  __device__ __forceinline__ void aim(const T* first, int rows) {
    from_ = first;
    rows_ = rows;
  }
  /// Starts the copy of pass p of the next panel, its place being free; one p after the other.
  __device__ __forceinline__ void push(int p) {
    if (p < passes_) {
      uint4* const to = (p < doubled ? next_first_ : own_) + p * panel_threads;
      copy_async_16<line>(to + flip(p), from_, p < rows_);
    }
    close_copy_group();
    from_ += step_;
  }
  /// Moves on to the next panel, all of whose copies have been started.
  __device__ __forceinline__ void advance() {
    uint4* const first = first_;
    first_ = next_first_;
    next_first_ = first;
  }

 private:
  using tiles = panel_tiles<tile_lanes>;
  [[nodiscard]] __device__ __forceinline__ static int flip(int p) {
    return tiles::flip(static_cast<int>(threadIdx.x), p);
  }
  uint4* own_;
  uint4* first_;       // the places of the doubled passes: of this panel,
  uint4* next_first_;  // and of the next
  int passes_;
  long long step_;  // elements from a pass to the next
  const T* from_ = nullptr;
  int rows_ = 0;
};

/// Starts the copies of passes `from` to `to` of the next panel.
template <int from, int to, class Ring>
__device__ __forceinline__ void push_passes(Ring& ring) {
#pragma unroll
  for (int p = from; p < to; ++p) {
    ring.push(p);
  }
}

/// The elements of one probe, or of two, in one stored row.
[[nodiscard]] __device__ __forceinline__ float of_probe(float only, int) { return only; }
[[nodiscard]] __device__ __forceinline__ float of_probe(const float2& both, int k) {
  return k == 0 ? both.x : both.y;
}

/// y += this thread's part of a panel times its rows(p) of each probe, as the passes arrive: the sums with
/// the first probe, then those with the second. Starts the copies of the next panel's doubled passes, with()
/// each of which others can start. A panel that is done `again`, with rows of another scale, has arrived
/// already.
template <bool again, int p, int probes, class T, panel_depth depth, int line, int values, class Rows,
          class With>
__device__ __forceinline__ void dot_passes(panel_ring<T, depth, line>& ring, float (&y)[values],
                                           const Rows& rows, const With& with) {
  constexpr int every = panel_ring<T, depth, line>::every;
  constexpr int width = values / probes;
  if constexpr (p < panel_passes(depth)) {
    if (p < ring.passes()) {
      if constexpr (!again) {
        // Has arrived when all copies but those closed after it have.
        wait_for_copy_groups<panel_passes(depth) - 1 - p + p / every>();
      }
      float x[width];
      ring.decode(*ring.slot(p), x);
      const auto row = rows(p);
#pragma unroll
      for (int i = 0; i < values; ++i) {
        y[i] = fmaf(x[i % width], of_probe(row, i / width), y[i]);
      }
    }
    if constexpr (!again && p % every == every - 1) {
      with(p / every);
      ring.push(p / every);
    }
    dot_passes<again, p + 1, probes>(ring, y, rows, with);
  }
}

/// u[p] += row p of this thread's part of a panel times y; sink(i, p, x) is given each row as it is in
/// registers, p the ith, and some beyond those that there are. Starts the copies of the next panel's other
/// passes: these come first, for each copy takes the place of what was read just before.
template <class T, panel_depth depth, int line, int width, class Sink>
__device__ __forceinline__ void lift_passes(panel_ring<T, depth, line>& ring, const float (&y)[width],
                                            float (&u)[panel_passes(depth)], const Sink& sink) {
  constexpr int passes = panel_passes(depth);
  constexpr int doubled = panel_doubled(depth);
  uint4 stored = *ring.slot(doubled);
#pragma unroll
  for (int i = 0; i < passes; ++i) {
    const int p = (i + doubled) % passes;
    float x[width];
    ring.decode(stored, x);
    if (i + 1 < passes) {
      stored = *ring.slot((p + 1) % passes);
    }
    if (p < ring.passes()) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        u[p] = fmaf(x[k], y[k], u[p]);
      }
    }
    sink(i, p, x);
    if (p >= doubled) {
      ring.push(p);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
