// Which way a forward takes, and its scratch.
#pragma once

#include <mpi_router/cuda/detail/plan/panel_plan.hpp>
#include <mpi_router/cuda/detail/plan/row_plan.hpp>
#include <mpi_router/cuda/detail/plan/two_reads.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// How a batch of weights is walked (by rows or by panels, in one read; by vectors in two; or else by the
/// generic kernels), and the scratch of one forward.
struct forward_path {
  row_plan rows;
  panel_plan panels;
  partial_sums sums;
  bool in_pairs = false;       // panels of columns that lie two apart
  bool in_vectors = false;     // two reads, along the contiguous axis
  scaled_operands scaled;      // of those
  double* y = nullptr;         // [N, F], of two reads, and of the generic path, which rows of f64 take
  double* u = nullptr;         // [N, D], likewise
  double* energies = nullptr;  // [N]
  step_exponents exponents;    // of the generic path
  float* between[2] = {};      // rows between steps, [N, D] each
  status* statuses = nullptr;  // [N]
  std::size_t bytes = 0;

  /// Without data it only counts.
  forward_path(const context& ctx, const expert_shape& shape, const expert_strides& strides,
               int element_bytes, index_t steps, void* data) {
    arena memory(data);
    if (shape.num_experts > 0 && shape.ffn_dim > 0 && shape.hidden_dim > 0) {  // else every image is zero
      if (has_contiguous_axis(strides, element_bytes)) {
        choose(ctx, shape, strides, element_bytes);
      } else if (has_pairs(strides, element_bytes)) {
        panels = make_panel_plan(ctx, shape, {2 * element_bytes, true});
        in_pairs = panels.lanes > 0;
      }
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
    if (strides.hidden == 1) {
      rows = make_row_plan(ctx, shape, element_bytes);
    } else {
      panels = make_panel_plan(ctx, shape, {element_bytes});
    }
    in_vectors = rows.vectors == 0 && panels.lanes == 0;
  }
  void take_images(arena& memory, const expert_shape& shape) {
    arena products = memory;
    y = products.take<double>(shape.num_experts * shape.ffn_dim);
    u = products.take<double>(shape.num_experts * shape.hidden_dim);
    energies = products.take<double>(shape.num_experts);
    exponents.take(products, shape.num_experts);
    if (in_vectors) {
      scaled.take(products, shape, false);
    }
    if (rows.vectors > 0) {
      sums = take_partial_sums(memory, rows.part, rows.pitch);  // images_of_rows needs them in any case
    } else if (panels.lanes > 0) {
      sums = take_partial_sums(memory, panels.part, panels.pitch);
    }
    memory.reach(products);
  }
};

MPIROUTER_CUDA_DETAIL_END
