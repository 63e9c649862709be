// The launch shape of the row kernels: how many threads share a row, how deep the ring is.
#pragma once

#include <mpi_router/cuda/detail/row_step.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// `vectors` is 0 where the row kernels do not reach (too many columns, or too little shared memory).
struct row_plan {
  int vectors = 0;  // of 16 bytes, in each stored row, that a thread owns: 1, 2, 4 or 8
  int rows = 0;     // stored rows in a tile
  int group_threads = 0;
  ring_shape ring{};
  int pitch = 0;    // of a slot, in floats
  int cluster = 0;  // blocks of a cluster that can finish their expert; 0 where a second kernel is needed
  std::size_t shared_bytes = 0;
  partition part;
};

struct row_demand {
  int element_bytes = 0;      // of the weights
  int extra_bytes = 0;        // of a second tensor that travels with them
  int most_columns = 0;       // that a thread can own
  int vectors_in_flight = 0;  // rows × vectors: the registers that a tile takes
};

/// Clusters of `blocks` blocks (a power of two) that run at once.
[[nodiscard]] inline int resident_clusters(const context& ctx, int blocks) {
  int log = 0;
  while (1 << log < blocks) {
    ++log;
  }
  return blocks > most_cluster || (ctx.capability < 90 && blocks > 1) ? 0 : ctx.clusters[log];
}

[[nodiscard]] inline row_plan make_row_plan(const context& ctx, const expert_shape& shape,
                                            const row_demand& demand) {
  row_plan p;
  const int width = 16 / demand.element_bytes;
  if (shape.hidden_dim > 32768 || shape.ffn_dim > 0x3fffffff || shape.num_experts > 0x3fffffff) {
    return p;
  }
  const int in_row = static_cast<int>((shape.hidden_dim + width - 1) / width);
  int vectors = 1;
  while (in_row > (vectors == 1 ? 256 : 512 * vectors)) {
    vectors *= 2;
  }
  if (vectors * width > demand.most_columns) {  // at most 8 vectors: then only a thread's last can lie beyond
    return p;
  }
  p.rows = demand.vectors_in_flight > vectors ? demand.vectors_in_flight / vectors : 1;
  p.group_threads = ((in_row + vectors - 1) / vectors + 31) / 32 * 32;
  p.pitch = in_row * width;
  p.ring.stage_bytes = (p.rows * in_row * width * (demand.element_bytes + demand.extra_bytes) + 15) / 16 * 16;
  const int deepest = ctx.capability >= 90 ? most_stages : 4;
  p.part = make_partition(shape.num_experts, (shape.ffn_dim + p.rows - 1) / p.rows, ctx.multiprocessors);
  // All clusters must run at once: a last one that waits for its turn would double the time. And what the
  // leader is sent must leave room for the rings.
  const int each = p.part.whole != 0 ? p.part.blocks / p.part.experts : 0;
  const int inbox = each > 1 ? (each - 1) * p.pitch * 4 : 0;
  p.cluster =
      p.part.experts <= resident_clusters(ctx, each) && inbox <= static_cast<int>(ctx.shared_memory / 4)
          ? each
          : 0;
  for (p.ring.groups = most_threads / p.group_threads; p.ring.groups >= 1; --p.ring.groups) {
    const int warps = p.ring.groups * p.group_threads / 32;
    const int sums =
        p.ring.groups > 1 && p.part.whole == 0 ? p.ring.groups * p.group_threads * vectors * width * 4 : 0;
    const int fixed = block_memory::fixed_bytes(p.ring.groups, warps) + (p.cluster > 1 ? inbox : sums);
    p.ring.stages =
        (static_cast<int>(ctx.shared_memory) - 2048 - fixed) / (p.ring.groups * p.ring.stage_bytes);
    p.ring.stages = p.ring.stages < deepest ? p.ring.stages : deepest;
    if (p.ring.stages >= 2) {
      p.vectors = vectors;
      p.shared_bytes = static_cast<std::size_t>(fixed) +
                       static_cast<std::size_t>(p.ring.groups * p.ring.stages * p.ring.stage_bytes);
      return p;
    }
  }
  return p;
}

/// Memory for the partial sums of a plan.
[[nodiscard]] inline partial_sums take_partial_sums(arena& memory, const partition& part, int pitch) {
  partial_sums s;
  s.pitch = pitch;
  s.rows = memory.take<float>(static_cast<index_t>(part.slots()) * pitch);
  s.headers = memory.take<slot_header>(part.slots());
  return s;
}

template <class T, int vectors, copier by>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  launch(
      "row_step_kernel", ctx,
      {static_cast<unsigned>(plan.part.blocks), static_cast<unsigned>(plan.ring.groups * plan.group_threads),
       plan.shared_bytes, static_cast<unsigned>(args.fused ? plan.cluster : 1)},
      row_step_kernel<T, vectors, (vectors < 8 ? 8 / vectors : 1), by>, args);
}
template <class T, int vectors>
void launch_row_step(const context& ctx, const row_plan& plan, const row_step_args<T>& args) {
  if (ctx.capability >= 90) {
    launch_row_step<T, vectors, copier::engine>(ctx, plan, args);
  } else {
    launch_row_step<T, vectors, copier::threads>(ctx, plan, args);
  }
}

/// The forward over weights whose rows are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void row_step(const context& ctx, const row_plan& plan, const batch<const T>& weights,
              const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
              const finish_args& finish) {
  const row_step_args<T> args{{weights, 0, plan.pitch * static_cast<int>(sizeof(T))},
                              {static_cast<int>(shape.ffn_dim), static_cast<int>(shape.hidden_dim), plan.rows,
                               plan.part.tiles_per_expert},
                              plan.part,
                              out,
                              plan.group_threads,
                              plan.ring,
                              fused,
                              at_rest,
                              finish};
  switch (plan.vectors) {
    case 1: launch_row_step<T, 1>(ctx, plan, args); break;
    case 2: launch_row_step<T, 2>(ctx, plan, args); break;
    case 4: launch_row_step<T, 4>(ctx, plan, args); break;
    default:
      if constexpr (sizeof(T) == 4) {
        launch_row_step<T, 8>(ctx, plan, args);
      }
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
