// A block's sweep over its tiles, which forward and backward share: each of its groups takes every so many of
// them from its ring, and has the next ones copied ahead.
#pragma once

#include <mpi_router/cuda/detail/device/cluster.cuh>
#include <mpi_router/cuda/detail/plan/partition.hpp>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>
#include <mpi_router/cuda/detail/rows/ring.cuh>
#include <mpi_router/cuda/detail/rows/tile.cuh>

#include <cstdint>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What the kernels over stored rows are given alike.
template <class T>
struct row_sweep_args {
  ring_lane<T> weights;
  tile_shape tiles;
  partition part;
  partial_sums out;
  int group_threads;
  ring_shape ring;
  /// The blocks of an expert are a cluster, or a block has whole experts, and does what otherwise a second
  /// kernel does.
  bool fused;
};

/// `Lanes` returns use(lanes…) with the tensors that travel through the ring, the weights first.
/// `lean`: threads with a single vector of a row copy in a loop that keeps less. The backward, which has more
/// in its registers, is up to 8 % faster for it; the forward was timed with the other one.
template <copier by, class T, int vectors, class Lanes, bool lean>
class row_sweep {
 public:
  static constexpr bool threads_copy = by == copier::threads;
  row_memory memory;
  thread_group group;
  int end;         ///< of the block's tiles
  int tile;        ///< the first of the block's tiles in the present expert
  int mine;        ///< this group's next tile to work on
  float* scratch;  ///< of this group's sums
  int turn = 0;    ///< likewise

  __device__ __forceinline__ row_sweep(const row_sweep_args<T>& args, const Lanes& lanes,
                                       unsigned char* shared)
      : memory(placed_blocks(shared), args.ring, args.ring.groups * args.group_threads / 32),
        group(args.group_threads),
        end(args.part.first_tile(static_cast<int>(blockIdx.x) + 1)),
        tile(args.part.first_tile(static_cast<int>(blockIdx.x))),
        mine(tile + group.id),
        scratch(memory.scratch + group.id * group.warps() * 2 * sums_at_once),
        a_(args),
        lanes_(lanes),
        stages_(memory.rings + group.id * args.ring.group_bytes()),
        full_(memory.full + group.id * most_stages),
        ring_(stages_, full_, args.ring),
        hidden_(in_register(args.tiles.hidden)),
        next_(mine),
        cursor_(args.tiles, mine) {
    start();
  }

  /// Bulk copies: the group's first warp asks for the group's next tile. No thread may still read the stage
  /// that it goes to, that of the tile before the last.
  __device__ __forceinline__ void feed() const {
    if (by == copier::tma && group.rank < 32) {
      lanes_([&](const auto&... lanes) {
        feed_ring(stages_, full_, memory.feed + group.id, a_.ring, a_.tiles, end, lanes...);
      });
    }
  }
  /// Where threads do not copy, a tile feeds once, unless there is no stage yet that is not read any more.
  __device__ __forceinline__ void begin_tile(bool is_free) { fed_ = by == copier::threads || !is_free; }
  __device__ __forceinline__ void feed_once() {
    if (!fed_) {
      feed();
      fed_ = true;
    }
  }
  /// Where there is nothing to ask for before all of a tile is done with.
  struct copies_later {
    __device__ __forceinline__ void operator()(bool) const {}
  };
  /// Threads: copies(false) asks for this thread's part of the next row of the group's next tile, as soon as
  /// it is done with what is there, and copies(true) for what is left of it. end_rows(copies) follows, all
  /// rows asked for.
  template <bool by_row>
  [[nodiscard]] __device__ __forceinline__ auto begin_rows() const {
    if constexpr (by_row) {
      return lanes_([this](const auto&... lanes) {
        return [... copies = ring_.template copies<vectors>(lanes, a_.tiles, cursor_, group, next_ < end)](
                   bool all) mutable { ((all ? copies.rest() : copies.next()), ...); };
      });
    } else {
      return copies_later{};
    }
  }
  template <class Copies>
  __device__ __forceinline__ void end_rows(Copies& copies) {
    if constexpr (std::is_same_v<Copies, copies_later>) {
      copy();
    } else {
      if (next_ < end) {
        next_ += a_.ring.groups;
        cursor_.advance(a_.tiles, a_.ring.groups);
      }
      ring_.close();
    }
  }
  /// Threads: each asks for its part of the group's next tile.
  __device__ __forceinline__ void copy() {
    if constexpr (threads_copy && lean && vectors == 1) {
      if (next_ < end) {
        lanes_([&](const auto&... lanes) {
          (ring_.template copy<vectors>(lanes, a_.tiles, cursor_, group), ...);
        });
        next_ += a_.ring.groups;
        cursor_.advance(a_.tiles, a_.ring.groups);
      }
      ring_.close();
    } else if constexpr (threads_copy) {
      auto copies = begin_rows<true>();
      copies(true);
      end_rows(copies);
    }
  }
  /// The block's first `count` copies, as far as they have not been asked for: one behind the loads of the
  /// first rows, which would queue behind it, and the others behind what comes before the first tile, be it
  /// code.
  __device__ __forceinline__ void begin_copies(int count) {
    for (; begun_ < count; ++begun_) {
      feed();
      copy();
    }
  }
  /// Waits for the group's next tile, of an expert whose weights are at `base`, from row `first` on. Those of
  /// an expert that is not `in_ring` are fetched here.
  template <int rows>
  [[nodiscard]] __device__ __forceinline__ tile_share<T, vectors> take(const T* base, bool in_ring,
                                                                       int first) {
    const tile_share<T, vectors> share(a_.weights, ring_.pop(), a_.tiles.ffn - first, hidden_, group);
    if (!in_ring) [[unlikely]] {
      share.template fetch<rows>(base + first * a_.weights.tensor.ffn, a_.weights.tensor.ffn, group);
    }
    share.template complete<rows>();
    return share;
  }
  __device__ __forceinline__ void advance() { mine += a_.ring.groups; }

 private:
  /// All threads of the block: the barriers, and where the copies of each group begin. A warp sets up
  /// barriers one after the other, so each group's first warp does its own.
  __device__ __forceinline__ void start() const {
    static_assert(most_stages <= warp_threads);
    if (threadIdx.x == 0) {
      barrier_init(&memory.leader->arrived, 1);
    }
    if (by == copier::tma && group.rank < a_.ring.stages) {
      barrier_init(full_ + group.rank, 1);
    }
    if (by == copier::tma && group.rank == 0) {
      memory.feed[group.id] = {mine, cursor_.expert(), cursor_.first(), 0};
    }
    publish_barriers();
    __syncthreads();
    cluster_arrive();
    cluster_wait();
  }

  const row_sweep_args<T>& a_;
  const Lanes& lanes_;
  unsigned char* stages_;
  std::uint64_t* full_;
  ring_view<by> ring_;
  int hidden_;
  int next_;  // to copy, where the threads do
  tile_cursor cursor_;
  int begun_ = 0;
  bool fed_ = false;
};

MPIROUTER_CUDA_DETAIL_END
