// The launch shape of the panel kernel.
#pragma once

#include <mpi_router/cuda/detail/panel_step.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// `lanes` is 0 where the panel kernel does not reach.
struct panel_plan {
  int lanes = 0;  // that share a stored row's part of a panel: 8, 4, 2 or 1
  int cluster = 1;
  bool large = false;  // a deep ring
  int passes = 0;
  int pitch = 0;
  std::size_t shared_bytes = 0;
  partition part;
};

[[nodiscard]] inline panel_plan make_panel_plan(const context& ctx, const expert_shape& shape, int element_bytes) {
  panel_plan p;
  constexpr index_t most_rows = panel_threads * panel_passes;  // with one lane for each row
  if (shape.hidden_dim > most_rows || shape.ffn_dim > 0x3fffffff || shape.num_experts > 0x3fffffff) {
    return p;
  }
  const int hidden = static_cast<int>(shape.hidden_dim);
  int lanes = 8;
  if (ctx.capability >= 90) {
    // Whole 128-byte lines, and more blocks where a block cannot hold the rows.
    while (hidden * lanes > most_rows * p.cluster) {
      p.cluster *= 2;
    }
  } else {
    while (hidden * lanes > most_rows) {
      lanes /= 2;
    }
  }
  const int panel = lanes * 16 / element_bytes;
  const auto bytes = [panel](bool large) {
    return static_cast<std::size_t>(
        panel_stages(large) * panel_threads * 16 +
        (panel_threads / 32 * panel + 2 * 8 * panel + panel_threads / 32 * 2 * sums_at_once) * 4);
  };
  p.large = ctx.capability >= 90 && bytes(true) <= ctx.shared_memory;
  p.shared_bytes = bytes(p.large);
  if (p.shared_bytes > ctx.shared_memory) {
    return p;
  }
  const int pass_rows = panel_threads / lanes * p.cluster;
  p.lanes = lanes;
  p.passes = (hidden + pass_rows - 1) / pass_rows;
  p.pitch = (hidden + 3) / 4 * 4;
  // Clusters do not span the processing clusters of the chip, which have 16 or 18 multiprocessors.
  const int limit = p.cluster == 1 ? ctx.multiprocessors : ctx.multiprocessors / 16 * 16 / p.cluster;
  p.part = make_partition(shape.num_experts, (shape.ffn_dim + panel - 1) / panel, limit > 0 ? limit : 1);
  return p;
}

/// The forward's partial sums over weights whose columns are contiguous.
template <class T>
void panel_step(const context& ctx, const panel_plan& plan, const batch<const T>& weights, const expert_shape& shape,
                const any_matrix& rows, const partial_sums& out) {
  const panel_step_args<T> args{weights,     rows,      static_cast<int>(shape.ffn_dim), static_cast<int>(shape.hidden_dim),
                                plan.passes, plan.part, out};
  const launch_shape grid{static_cast<unsigned>(plan.part.blocks * plan.cluster), panel_threads, plan.shared_bytes,
                          static_cast<unsigned>(plan.cluster)};
  if (plan.large) {
    launch("panel_step_kernel", ctx, grid, panel_step_kernel<T, 8, true>, args);
    return;
  }
  switch (plan.lanes) {
    case 8: launch("panel_step_kernel", ctx, grid, panel_step_kernel<T, 8, false>, args); break;
    case 4: launch("panel_step_kernel", ctx, grid, panel_step_kernel<T, 4, false>, args); break;
    case 2: launch("panel_step_kernel", ctx, grid, panel_step_kernel<T, 2, false>, args); break;
    default: launch("panel_step_kernel", ctx, grid, panel_step_kernel<T, 1, false>, args);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
