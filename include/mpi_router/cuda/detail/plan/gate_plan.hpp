// The launch shape of a gate: which kernel, and how many tokens a block takes at a time.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/types.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What a gate is asked that its launch depends on.
struct gate_demand {
  index_t tokens = 0;
  int experts = 0;
  int top_k = 0;
  int groups = 1;
  int top_groups = 1;
  bool counts_loads = false;
};

struct gate_plan {
  int lanes = warp_threads;  ///< that share a token: 4 or 8 of the ranking kernel, or a warp
  /// Experts of a lane: of the ranking kernel 16 or 32; of the other in registers, or 0 where shared memory
  /// has them.
  int own = 0;
  int threads = 0;
  unsigned blocks = 0;
  int scratch_per_warp = 0;  ///< numbers in shared memory
  std::size_t shared_bytes = 0;

  [[nodiscard]] bool ranks() const { return lanes < warp_threads; }
};

/// Each block takes `at_once` tokens at a time. Counting loads, it takes many, for it adds its counts to
/// those of all at its end.
[[nodiscard]] inline unsigned gate_blocks(const context& ctx, const gate_demand& d, index_t at_once) {
  const index_t wanted = (d.tokens + at_once - 1) / at_once;
  const index_t most =
      d.counts_loads ? index_t{ctx.multiprocessors} * gate_blocks_per_multiprocessor : most_grid;
  return static_cast<unsigned>(wanted < most ? wanted : most);
}

[[nodiscard]] inline gate_plan make_gate_plan(const context& ctx, const gate_demand& d) {
  gate_plan p;
  int numbers = d.counts_loads ? d.experts : 0;  // in shared memory
  if (d.experts <= most_ranked_experts && d.top_k <= most_ranked && d.top_groups == d.groups) {
    p.lanes = d.experts <= 128 ? 4 : 8;
    p.own = d.experts <= 64 ? 16 : 32;
    p.threads = gate_ranks_threads;
    p.blocks = gate_blocks(ctx, d, gate_ranks_threads / p.lanes);
  } else {
    const bool in_registers = d.experts <= most_experts_in_registers;
    const int warps = in_registers ? gate_warps : 1;
    for (p.own = in_registers ? 2 : 0; p.own * warp_threads < d.experts && in_registers;) {
      p.own *= 2;
    }
    p.threads = warps * warp_threads;
    p.blocks = gate_blocks(ctx, d, warps);
    p.scratch_per_warp = (in_registers ? 0 : d.experts) + (d.top_groups < d.groups ? d.groups : 0);
    numbers += warps * p.scratch_per_warp;
  }
  p.shared_bytes = static_cast<std::size_t>(numbers) * 4;
  return p;
}

MPIROUTER_CUDA_DETAIL_END
