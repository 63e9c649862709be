// The launch shape of the panel kernel.
#pragma once

#include <mpi_router/cuda/detail/plan/device_facts.hpp>
#include <mpi_router/cuda/detail/plan/partition.hpp>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

#include <algorithm>
#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// `lanes` is 0 where the panel kernel does not reach.
struct panel_plan {
  int lanes = 0;       // that share a stored row's part of a panel: 8, 4, 2 or 1
  int row_blocks = 1;  // that share the rows of a panel
  int members = 0;     // that share the panels of an expert, where one cluster can have them all; else 0
  int passes = 0;
  panel_depth depth = panel_depth::deep;
  int pitch = 0;
  std::size_t shared_bytes = 0;
  partition part;

  [[nodiscard]] int pass_rows() const { return panel_threads / lanes; }
  [[nodiscard]] int panel(int element_bytes) const { return lanes * vector_bytes / element_bytes; }
};

/// The lanes and blocks that share D stored rows, at least so many lanes, and up to `few_blocks` blocks where
/// less lanes will do; no lanes where the largest cluster cannot hold the rows.
[[nodiscard]] inline panel_plan share_rows(int hidden, int largest_cluster, int few_blocks, panel_depth depth,
                                           int least_lanes) {
  panel_plan p;
  p.depth = depth;
  const int most_passes = panel_passes(depth);
  p.lanes = panel_most_lanes;  // whole lines if it may be
  while (p.lanes > least_lanes && hidden > p.pass_rows() * most_passes * few_blocks) {
    p.lanes /= 2;
  }
  while (hidden > p.pass_rows() * most_passes * p.row_blocks) {
    p.row_blocks *= 2;
    if (p.row_blocks > largest_cluster) {
      return {};
    }
  }
  p.passes = (hidden + p.pass_rows() * p.row_blocks - 1) / (p.pass_rows() * p.row_blocks);
  p.pitch = (hidden + 3) / 4 * 4;
  return p;
}

/// Deals the panels of all experts to `units` blocks, or clusters of row_blocks.
inline void deal_panels(const context& ctx, const expert_shape& shape, index_t tiles, int units,
                        panel_plan& p) {
  p.part = make_partition(shape, tiles, units);
  const int each = p.part.whole != 0 ? p.part.blocks / p.part.experts : 0;
  if (each > 0 && p.part.experts <= resident_clusters(ctx, each * p.row_blocks)) {
    p.members = each;
    // Members take the panels of their expert in turn: what they read at a time lies side by side.
    p.part.blocks = p.part.experts;
    p.part.team = each;
  } else if (deal_whole_experts(p.part, units)) {
    p.members = 1;
  } else if (units > 1 && !has_tma(ctx)) {
    // Two take panels of one run in turn, likewise.
    p.part = make_partition(shape, tiles, units / 2);
    p.part.team = 2;
  }
  expect_countable(shape, tiles, p.part.slots());
}

/// What a kernel over panels asks of its plan.
struct panel_demand {
  int element_bytes;      // of a column: of a pair, where columns lie two apart
  bool in_pairs = false;  // they do
  int probes = 1;         // of a backward two, r and z̄
  bool factored = false;
  bool in_tiles = false;  // tensor cores multiply, and registers hold the probes' rows
  int old_slots = 0;      // of the ring of what its gradient is added to

  /// Blocks that share rows before lanes are halved. The factors of 16-bit weights take as long to compute as
  /// to read: there swapping among more blocks costs more than reading in pieces of 64 bytes.
  [[nodiscard]] int few_blocks() const {
    return factored && element_bytes == 2 ? panel_factored_blocks : most_cluster;
  }
  /// Kernels for these are compiled for sm_90, and with less lanes.
  [[nodiscard]] bool is_special() const { return in_pairs || probes > 1; }
  [[nodiscard]] panel_depth special_depth() const {
    return probes == 1 || in_tiles ? panel_depth::deep : panel_vjp_depth(factored, old_slots > 0);
  }
  /// Of a panel's columns, with rings of `depth` and so many lanes.
  [[nodiscard]] panel_needs needs(panel_depth depth, int lanes, int columns, int inbox) const {
    const int of_probes = in_tiles ? panel_tile_floats(lanes) : panel_probe_floats(depth, lanes, probes);
    return {probes * columns, of_probes, old_slots, inbox, panel_exchanges(in_tiles)};
  }
};

/// With rings of `depth`, if they fit.
[[nodiscard]] inline panel_plan make_panel_plan(const context& ctx, const expert_shape& shape,
                                                const panel_demand& demand, panel_depth depth) {
  const int largest = has_tma(ctx) ? most_cluster : 1;
  panel_plan p =
      share_rows(static_cast<int>(shape.hidden_dim), largest, std::min(largest, demand.few_blocks()), depth,
                 demand.is_special() ? panel_less_lanes : panel_least_lanes(depth));
  const int units = resident_clusters(ctx, p.row_blocks);
  if (p.lanes == 0 || units == 0) {
    return {};
  }
  const int panel = p.panel(demand.element_bytes);
  deal_panels(ctx, shape, (shape.ffn_dim + panel - 1) / panel, units, p);
  const auto bytes = [&](int members) {
    const int inbox = members * p.row_blocks * p.passes * p.pass_rows();
    return static_cast<std::size_t>(panel_memory::bytes(depth, demand.needs(depth, p.lanes, panel, inbox)));
  };
  if (bytes(p.members) > ctx.shared_memory) {
    p.members = 0;
  }
  p.shared_bytes = bytes(p.members);
  return p.shared_bytes <= ctx.shared_memory ? p : panel_plan{};
}

/// The deepest rings that fit.
[[nodiscard]] inline panel_plan make_panel_plan(const context& ctx, const expert_shape& shape,
                                                const panel_demand& demand) {
  if (shape.hidden_dim > most_hidden) {
    return {};
  }
  if (demand.is_special()) {
    return has_tma(ctx) ? make_panel_plan(ctx, shape, demand, demand.special_depth()) : panel_plan{};
  }
  for (const panel_depth depth : {panel_depth::deep, panel_depth::even, panel_depth::low}) {
    const bool has_code = depth != panel_depth::deep || has_tma(ctx);
    if (const panel_plan p = has_code ? make_panel_plan(ctx, shape, demand, depth) : panel_plan{};
        p.lanes > 0) {
      return p;
    }
  }
  return {};
}

MPIROUTER_CUDA_DETAIL_END
