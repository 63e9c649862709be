// The launch shape of the panel kernel.
#pragma once

#include <mpi_router/cuda/detail/panel_step.cuh>

MPIROUTER_CUDA_BEGIN
namespace detail {

/// `lanes` is 0 where the panel kernel does not reach.
struct panel_plan {
  int lanes = 0;  // that share a stored row's part of a panel: 8, 4, 2 or 1
  int cluster = 1;
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
  // Rows that a block can hold, with whole 128-byte lines if it may: on sm_90 a cluster holds 8 times as
  // many.
  const int hidden = static_cast<int>(shape.hidden_dim);
  const int largest_cluster = ctx.capability >= 90 ? most_cluster : 1;
  int lanes = 8;
  const auto rows = [&] { return panel_threads / lanes * panel_passes; };
  while (lanes > 1 && hidden > rows() * largest_cluster) {
    lanes /= 2;
  }
  while (hidden > rows() * p.cluster) {
    p.cluster *= 2;
    if (p.cluster > largest_cluster) {
      return p;
    }
  }
  const int panel = lanes * 16 / element_bytes;
  const int pass_rows = panel_threads / lanes * p.cluster;
  p.passes = (hidden + pass_rows - 1) / pass_rows;
  p.pitch = (hidden + 3) / 4 * 4;
  const auto bytes = [panel](bool large) {
    return static_cast<std::size_t>(panel_slots(large) * panel_threads * 16 + 2 * 8) +
           sizeof(float) * static_cast<std::size_t>((panel_threads / 32 + 2 * most_cluster) * panel +
                                                    panel_threads / 32 * 2 * sums_at_once);
  };
  p.large = bytes(true) + 2048 <= ctx.shared_memory && ctx.capability >= 90;
  p.shared_bytes = bytes(p.large);
  if (p.shared_bytes > ctx.shared_memory) {
    return p;
  }
  p.lanes = lanes;
  // Clusters do not span the processing clusters of the chip, which have 16 or 18 multiprocessors.
  const int limit = p.cluster == 1 ? ctx.multiprocessors : ctx.multiprocessors / 16 * 16 / p.cluster;
  p.part = make_partition(shape.num_experts, (shape.ffn_dim + panel - 1) / panel, limit > 0 ? limit : 1);
  return p;
}

/// The forward's partial sums over weights whose columns are contiguous.
template <class T>
void panel_step(const context& ctx, const panel_plan& plan, const batch<const T>& weights,
                const expert_shape& shape, const any_matrix& rows, const partial_sums& out) {
  const panel_step_args<T> args{
      weights,   rows, static_cast<int>(shape.ffn_dim), static_cast<int>(shape.hidden_dim), plan.passes,
      plan.part, out};
  const launch_shape grid{static_cast<unsigned>(plan.part.blocks * plan.cluster), panel_threads,
                          plan.shared_bytes, static_cast<unsigned>(plan.cluster)};
  const auto run = [&](auto kernel) { launch("panel_step_kernel", ctx, grid, kernel, args); };
  switch (plan.lanes) {
    case 8: run(plan.large ? panel_step_kernel<T, 8, true> : panel_step_kernel<T, 8, false>); break;
    case 4: run(plan.large ? panel_step_kernel<T, 4, true> : panel_step_kernel<T, 4, false>); break;
    case 2: run(plan.large ? panel_step_kernel<T, 2, true> : panel_step_kernel<T, 2, false>); break;
    default: run(plan.large ? panel_step_kernel<T, 1, true> : panel_step_kernel<T, 1, false>);
  }
}

}  // namespace detail
MPIROUTER_CUDA_END
