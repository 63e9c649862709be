// The launch shape of the panel kernel.
#pragma once

#include <mpi_router/cuda/detail/panel_step.cuh>
#include <mpi_router/cuda/detail/row_plan.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// `lanes` is 0 where the panel kernel does not reach.
struct panel_plan {
  int lanes = 0;       // that share a stored row's part of a panel: 8, 4, 2 or 1
  int row_blocks = 1;  // that share the rows of a panel
  int members = 0;     // that share the panels of an expert, where one cluster can have them all; else 0
  int passes = 0;
  bool large = false;  // a deep ring
  int pitch = 0;
  std::size_t shared_bytes = 0;
  partition part;
};

[[nodiscard]] inline panel_plan make_panel_plan(const context& ctx, const expert_shape& shape,
                                                int element_bytes) {
  panel_plan p;
  if (shape.hidden_dim > 32768 || shape.ffn_dim > 0x3fffffff || shape.num_experts > 0x3fffffff) {
    return p;
  }
  const int hidden = static_cast<int>(shape.hidden_dim);
  const int most_blocks = ctx.capability >= 90 ? most_cluster : 1;
  int lanes = 8;  // whole 128-byte lines if it may be
  const auto rows = [&] { return panel_threads / lanes * panel_passes; };  // that a block can hold
  while (lanes > 1 && hidden > rows() * most_blocks) {
    lanes /= 2;
  }
  while (hidden > rows() * p.row_blocks) {
    p.row_blocks *= 2;
    if (p.row_blocks > most_blocks) {
      return p;
    }
  }
  const int panel = lanes * 16 / element_bytes;
  const int pass_rows = panel_threads / lanes;
  p.passes = (hidden + pass_rows * p.row_blocks - 1) / (pass_rows * p.row_blocks);
  p.pitch = (hidden + 3) / 4 * 4;
  const int units = resident_clusters(ctx, p.row_blocks);
  if (units == 0) {
    return p;
  }
  const index_t tiles = (shape.ffn_dim + panel - 1) / panel;
  p.part = make_partition(shape.num_experts, tiles, units);
  const int each = p.part.whole != 0 ? p.part.blocks / p.part.experts : 0;
  if (each > 0 && p.part.experts <= resident_clusters(ctx, each * p.row_blocks)) {
    p.members = each;
    // Members take the panels of their expert in turn: what they read at a time lies side by side.
    p.part.blocks = p.part.experts;
    p.part.team = each;
  } else if (const int whole = most_divisor(p.part.experts, units); whole * 100 >= units * 93) {
    p.part.whole = 0;
    p.part.blocks = whole;
    p.members = 1;
  } else if (units > 1 && ctx.capability < 90) {
    // Two take panels of one run in turn, likewise.
    p.part = make_partition(shape.num_experts, tiles, units / 2);
    p.part.team = 2;
  }
  const auto bytes = [&](bool large, int members) {
    const int rest = panel == 64   ? panel_memory<64>::bytes()
                     : panel == 32 ? panel_memory<32>::bytes()
                     : panel == 16 ? panel_memory<16>::bytes()
                     : panel == 8  ? panel_memory<8>::bytes()
                                   : panel_memory<4>::bytes();
    const int inbox = members * p.row_blocks * p.passes * pass_rows * 4;
    return static_cast<std::size_t>(panel_slots(large) * panel_threads * 16 + rest + inbox);
  };
  p.large = bytes(true, 0) <= ctx.shared_memory && ctx.capability >= 90;
  if (bytes(p.large, p.members) > ctx.shared_memory) {
    p.members = 0;
  }
  p.shared_bytes = bytes(p.large, p.members);
  p.lanes = p.shared_bytes <= ctx.shared_memory ? lanes : 0;
  return p;
}

/// The forward over weights whose columns are contiguous: partial sums in `out`, or the finished rows if
/// `fused`.
template <class T>
void panel_step(const context& ctx, const panel_plan& plan, const batch<const T>& weights,
                const expert_shape& shape, const partial_sums& out, bool fused, bool at_rest,
                const finish_args& finish) {
  const panel_step_args<T> args{weights,
                                static_cast<int>(shape.ffn_dim),
                                static_cast<int>(shape.hidden_dim),
                                plan.passes,
                                plan.row_blocks,
                                plan.part,
                                out,
                                fused,
                                at_rest,
                                finish};
  const launch_shape grid{static_cast<unsigned>(plan.part.blocks * plan.part.team * plan.row_blocks),
                          panel_threads, plan.shared_bytes,
                          static_cast<unsigned>(plan.row_blocks * (fused ? plan.members : 1))};
  const auto run = [&](auto kernel) { launch("panel_step_kernel", ctx, grid, kernel, args); };
  if (plan.lanes == 8 && plan.large && plan.part.team > 1) {  // its neighbour reads what lies beside
    run(panel_step_kernel<T, 8, true, 256>);
    return;
  }
  switch (plan.lanes) {
    case 8: run(plan.large ? panel_step_kernel<T, 8, true, 128> : panel_step_kernel<T, 8, false, 128>); break;
    case 4: run(plan.large ? panel_step_kernel<T, 4, true, 128> : panel_step_kernel<T, 4, false, 128>); break;
    case 2: run(plan.large ? panel_step_kernel<T, 2, true, 128> : panel_step_kernel<T, 2, false, 128>); break;
    default: run(plan.large ? panel_step_kernel<T, 1, true, 128> : panel_step_kernel<T, 1, false, 128>);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
