// The launch shape of the row kernels: how many threads share a row, how deep the ring is.
#pragma once

#include <mpi_router/core/scalar.hpp>
#include <mpi_router/cuda/detail/plan/device_facts.hpp>
#include <mpi_router/cuda/detail/plan/partition.hpp>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Whether rows and panels of T are read in vectors: weights of every other type go the generic way.
template <class T>
constexpr bool has_vectors =
    storage_traits<T>::format == storage_format::f32 || storage_traits<T>::format == storage_format::bf16 ||
    storage_traits<T>::format == storage_format::f16;

/// `vectors` is 0 where the row kernels do not reach (too many columns, or too little shared memory).
struct row_plan {
  int vectors = 0;  // of 16 bytes, in each stored row, that a thread owns: 1, 2, 4 or 8
  int rows = 0;     // stored rows in a tile
  int group_threads = 0;
  ring_shape ring{};
  int pitch = 0;  // of a slot, in floats
  /// Blocks of a cluster that can finish their expert, or, where this is 1 and the partition is not `whole`,
  /// several experts one after the other; 0 where a second kernel is needed.
  int cluster = 0;
  std::size_t shared_bytes = 0;
  partition part;
};

struct row_demand {
  int element_bytes = 0;  // of the weights
  int extra_bytes = 0;    // of a second tensor that travels with them
  int most_columns = 0;   // that a thread can own
  tile_limits tile{};     // what a tile may take
  bool in_turn = false;   // a block may finish one expert and go on to the next
};

/// Stored rows in a tile of which a thread owns `vectors` each.
[[nodiscard]] constexpr int tile_rows(const tile_limits& limits, int vectors) {
  const int rows = limits.vectors > vectors ? limits.vectors / vectors : 1;
  return rows < limits.rows ? rows : limits.rows;
}
/// In half a tile.
[[nodiscard]] constexpr int half_of(int rows) { return rows > 1 ? rows / 2 : 1; }
/// Whether there is code for half tiles where a thread owns so many vectors, of at most `most`.
[[nodiscard]] constexpr bool has_halves(const tile_limits& limits, int vectors, int most) {
  return vectors == most || vectors == limits.halves;
}

/// 16-byte vectors of a row of `in_row` that a thread owns: so few that no group has more than most_threads.
[[nodiscard]] inline int vectors_of_thread(int in_row) {
  int vectors = 1;
  while (in_row > (vectors == 1 ? most_vectors_alone : most_threads * vectors)) {
    vectors *= 2;
  }
  return vectors;
}

/// Floats that the leader of a cluster of `each` blocks is sent.
[[nodiscard]] inline int inbox_floats(int each, int pitch) { return each > 1 ? (each - 1) * pitch : 0; }

/// Blocks of a cluster that has all tiles of an expert, or 0. All clusters must run at once: a last one that
/// waits for its turn would double the time. And what the leader is sent must leave room for the rings.
[[nodiscard]] inline int finishing_cluster(const context& ctx, const partition& part, int pitch) {
  const int each = part.whole != 0 ? part.blocks / part.experts : 0;
  const bool resident = part.experts <= resident_clusters(ctx, each);
  const auto room = static_cast<index_t>(ctx.shared_memory / inbox_share / sizeof(float));
  return resident && inbox_floats(each, pitch) <= room ? each : 0;
}

/// Whether a block finishes several experts, one after the other: its rings are full of the next one then.
[[nodiscard]] inline bool finishes_in_turn(const row_plan& p) { return p.cluster == 1 && p.part.whole == 0; }

/// As many groups as the shared memory has rings for, as deep as may be; none where there is no room for one.
[[nodiscard]] inline row_plan with_rings(const context& ctx, row_plan p, int vectors, int width) {
  const int deepest = has_tma(ctx) ? most_stages : most_stages_of_threads;
  for (p.ring.groups = most_threads / p.group_threads; p.ring.groups >= 1; --p.ring.groups) {
    const int threads = p.ring.groups * p.group_threads;
    const bool sums_apart = p.ring.groups > 1 && p.part.whole == 0;  // else they go where the rings were
    const int sums = sums_apart ? threads * vectors * width : finishes_in_turn(p) ? p.pitch : 0;
    const int floats = p.cluster > 1 ? inbox_floats(p.cluster, p.pitch) : sums;
    const auto bytes = [&] { return row_memory::bytes(p.ring, threads / warp_threads, floats); };
    p.ring.stages = 0;
    const index_t room = static_cast<index_t>(ctx.shared_memory) - spare_shared_memory - bytes();
    const int stage_of_each = p.ring.groups * p.ring.stage_bytes;
    const index_t stages = room / stage_of_each;
    p.ring.stages = static_cast<int>(stages < deepest ? stages : deepest);
    if (p.ring.stages >= least_stages) {
      p.vectors = vectors;
      p.shared_bytes = static_cast<std::size_t>(bytes());
      return p;
    }
  }
  return {};
}

/// With tiles of `rows`, of which a thread owns `vectors` each.
[[nodiscard]] inline row_plan with_tiles(const context& ctx, const expert_shape& shape,
                                         const row_demand& demand, int vectors, int rows) {
  const int width = vector_bytes / demand.element_bytes;
  const int in_row = (static_cast<int>(shape.hidden_dim) + width - 1) / width;
  row_plan p;
  p.rows = rows;
  p.group_threads = ((in_row + vectors - 1) / vectors + warp_threads - 1) / warp_threads * warp_threads;
  if ((vectors - 1) * p.group_threads > in_row) {
    return {};  // more than the last of a thread's vectors would lie beyond the row
  }
  p.pitch = in_row * width;
  p.ring.stage_bytes = p.rows * p.pitch * (demand.element_bytes + demand.extra_bytes);
  p.part = make_partition(shape, (shape.ffn_dim + p.rows - 1) / p.rows, ctx.multiprocessors);
  p.cluster = finishing_cluster(ctx, p.part, p.pitch);
  if (const row_plan finishing = with_rings(ctx, p, vectors, width); finishing.vectors > 0 && p.cluster > 0) {
    return finishing;
  }
  p.cluster = 0;  // then its leader needs no room for what it is sent
  const row_plan plain = with_rings(ctx, p, vectors, width);
  if (demand.in_turn && p.part.whole == 0 && deal_whole_experts(p.part, ctx.multiprocessors)) {
    p.cluster = 1;
    const row_plan turns = with_rings(ctx, p, vectors, width);
    return turns.ring.groups == plain.ring.groups && turns.ring.stages == plain.ring.stages ? turns : plain;
  }
  return plain;
}

/// Where there is no room for a ring of whole tiles, threads own twice as many vectors, and tiles have half
/// as many rows; or the latter alone, where there is code for it, also if whole ones leave room for fewer
/// groups.
[[nodiscard]] inline row_plan make_row_plan(const context& ctx, const expert_shape& shape,
                                            const row_demand& demand) {
  if (shape.hidden_dim > most_hidden) {
    return {};
  }
  const int width = vector_bytes / demand.element_bytes;
  const int most = demand.most_columns / width;
  int vectors = vectors_of_thread((static_cast<int>(shape.hidden_dim) + width - 1) / width);
  row_plan p;
  for (; vectors <= most && p.vectors == 0; vectors *= 2) {
    const int rows = tile_rows(demand.tile, vectors);
    p = with_tiles(ctx, shape, demand, vectors, rows);
    if (rows > 1 && has_halves(demand.tile, vectors, most)) {
      const row_plan halves = with_tiles(ctx, shape, demand, vectors, half_of(rows));
      p = p.vectors == 0 || (demand.tile.halves > 0 && halves.ring.groups > p.ring.groups) ? halves : p;
    }
  }
  return p;
}

/// What the forward asks of a plan, and its plan.
[[nodiscard]] constexpr row_demand forward_demand(int element_bytes) {
  return {element_bytes, 0, forward_most_columns, forward_tile, true};
}
[[nodiscard]] inline row_plan make_row_plan(const context& ctx, const expert_shape& shape,
                                            int element_bytes) {
  return make_row_plan(ctx, shape, forward_demand(element_bytes));
}

MPIROUTER_CUDA_DETAIL_END
