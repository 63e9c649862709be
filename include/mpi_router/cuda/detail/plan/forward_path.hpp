// Which way a forward takes, and its scratch.
#pragma once

#include <mpi_router/cuda/detail/plan/panel_plan.hpp>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// How a batch of weights is walked (by rows, by panels, or else by the generic kernels), and the scratch of
/// one forward.
struct forward_path {
  row_plan rows;
  panel_plan panels;
  partial_sums sums;
  double* y = nullptr;         // [N, F], of the generic path
  double* u = nullptr;         // [N, D], likewise
  double* energies = nullptr;  // [N]
  float* between[2] = {};      // rows between steps, [N, D] each
  status* statuses = nullptr;  // [N]
  std::size_t bytes = 0;

  /// Without data it only counts.
  forward_path(const context& ctx, const expert_shape& shape, const expert_strides& strides,
               int element_bytes, index_t steps, void* data) {
    arena memory(data);
    if (shape.num_experts > 0 && shape.ffn_dim > 0 && shape.hidden_dim > 0) {  // else every image is zero
      choose(ctx, shape, strides, element_bytes);
      take_images(memory, shape);
    }
    if (steps > 1) {
      between[0] = memory.take<float>(shape.num_experts * shape.hidden_dim);
      between[1] = steps > 2 ? memory.take<float>(shape.num_experts * shape.hidden_dim) : nullptr;
      statuses = memory.take<status>(shape.num_experts);
    }
    bytes = memory.used();
  }

 private:
  void choose(const context& ctx, const expert_shape& shape, const expert_strides& strides,
              int element_bytes) {
    if (element_bytes > 4) {
      return;
    }
    if (strides.hidden == 1) {
      rows = make_row_plan(ctx, shape, element_bytes);
    } else if (strides.ffn == 1) {
      panels = make_panel_plan(ctx, shape, element_bytes);
    }
  }
  void take_images(arena& memory, const expert_shape& shape) {
    if (rows.vectors > 0) {
      sums = take_partial_sums(memory, rows.part, rows.pitch);  // images_of_rows needs them in any case
    } else if (panels.lanes > 0) {
      sums = take_partial_sums(memory, panels.part, panels.pitch);
    } else {
      y = memory.take<double>(shape.num_experts * shape.ffn_dim);
      u = memory.take<double>(shape.num_experts * shape.hidden_dim);
      energies = memory.take<double>(shape.num_experts);
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
