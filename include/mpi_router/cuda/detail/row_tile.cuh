// What the kernels over stored rows share: a block's memory, rows and tiles in registers, sums over a block.
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

/// Adds up a block's sums of one segment and puts them where `to` says: those of a single group from
/// registers, those of several groups through `group_sums` (`distance` floats apart; the first may be where
/// they go) in the order of the groups.
template <int vectors, int width, class Place>
__device__ __forceinline__ void gather_segment(const Place& to, float* group_sums, int distance,
                                               slot_header* group_headers, const thread_group& group,
                                               int groups, int vectors_in_row, const slot_header& own_header,
                                               const float (&u)[vectors * width]) {
  float* const own = group_sums + group.id * distance;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const int at = v * group.threads + group.rank;
    if (at < vectors_in_row) {
#pragma unroll
      for (int i = 0; i < width; i += 4) {
        const float* const from = u + v * width + i;
        const float4 four = make_float4(from[0], from[1], from[2], from[3]);
        if (groups == 1) {
          to.put(at * width + i, four);
        } else {
          *reinterpret_cast<float4*>(own + at * width + i) = four;
        }
      }
    }
  }
  if (groups == 1) {
    if (threadIdx.x == 0) {
      to.put(own_header);
    }
    return;
  }
  if (group.rank == 0) {
    group_headers[group.id] = own_header;
  }
  block_sync();
  slot_header total = group_headers[0];
  for (int g = 1; g < groups; ++g) {
    total.image_exponent = max(total.image_exponent, group_headers[g].image_exponent);
    total.energy_exponent = max(total.energy_exponent, group_headers[g].energy_exponent);
  }
  total.energy = 0.0F;
  for (int g = 0; g < groups; ++g) {
    total.energy +=
        group_headers[g].energy * power_of_two(group_headers[g].energy_exponent - total.energy_exponent);
  }
  for (int at = static_cast<int>(threadIdx.x) * 4; at < vectors_in_row * width;
       at += static_cast<int>(blockDim.x) * 4) {
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
    for (int g = 0; g < groups; ++g) {
      const float scale = power_of_two(group_headers[g].image_exponent - total.image_exponent);
      const float4 x = *reinterpret_cast<const float4*>(group_sums + g * distance + at);
      sum.x = fmaf(x.x, scale, sum.x);
      sum.y = fmaf(x.y, scale, sum.y);
      sum.z = fmaf(x.z, scale, sum.z);
      sum.w = fmaf(x.w, scale, sum.w);
    }
    to.put(at, sum);
  }
  if (threadIdx.x == 0) {
    to.put(total);
  }
  block_sync();
}

/// A segment's slot in memory, for the kernel after this one.
struct slot_place {
  float* row;
  slot_header* header;
  __device__ __forceinline__ void put(int column, const float4& four) const {
    *reinterpret_cast<float4*>(row + column) = four;
  }
  __device__ __forceinline__ void put(const slot_header& value) const { *header = value; }
};

/// A block's part of an image in its cluster's leader.
struct leader_place {
  const leader_inbox& inbox;
  int part;
  __device__ __forceinline__ void put(int column, const float4& four) const { inbox.put(part, column, four); }
  __device__ __forceinline__ void put(const slot_header& value) const { inbox.put(part, value); }
};

/// What becomes of a block's sums of one segment: they go to their slot, or, where the blocks of a cluster
/// have the segments of one expert, to the first of them, which calls finish(image).
template <int vectors, int width, class Finish>
__device__ __forceinline__ void end_segment(const block_memory& memory, unsigned char* rings,
                                            const ring_shape& ring, const partition& part,
                                            const partial_sums& out, bool fused, int expert, int hidden,
                                            const thread_group& group, const slot_header& header,
                                            const float (&u)[vectors * width], const Finish& finish) {
  const int block = static_cast<int>(blockIdx.x);
  const int in_row = (hidden + width - 1) / width;
  const bool only = part.whole != 0;  // then the rings are idle, and their memory takes the sums
  if (only) {
    group.sync();
  }
  float* const sums = only ? reinterpret_cast<float*>(rings) : memory.sums;
  const int distance = only ? ring.group_bytes() / 4 : group.threads * vectors * width;
  const auto gather = [&](const auto& to) {
    gather_segment<vectors, width>(to, sums, distance, memory.headers, group, ring.groups, in_row, header, u);
  };
  if (!fused) {
    const int slot = part.slot(block, expert);
    gather(slot_place{out.rows + static_cast<long long>(slot) * out.pitch, out.headers + slot});
    return;
  }
  const leader_inbox inbox{sums, memory.sums, memory.leader, cluster_size(), in_row * width, in_row * width};
  gather(leader_place{inbox, cluster_rank()});
  if (leader_inbox::leads()) {
    finish(inbox.collect(0));
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
