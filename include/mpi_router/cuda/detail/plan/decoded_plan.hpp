// How rows that are decoded as they are read are walked, and the scratch of that.
#pragma once

#include <mpi_router/cuda/detail/plan/two_reads.hpp>
#include <mpi_router/cuda/detail/plan/workspace.hpp>
#include <mpi_router/cuda/types.hpp>

#include <cstddef>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A block has all columns of its rows, each thread `pieces` times decoded_columns of them; it takes `rows`
/// at once, a tile. What several blocks have of an expert a second kernel adds up.
struct decoded_plan {
  int pieces = 0;  // 0: there is nothing to read
  int threads = 0;
  int rows = 0;
  partition part;
  partial_sums sums;
  scaled_vectors row;           // r
  scaled_vectors dual;          // z̄, of a backward
  double* dual_rows = nullptr;  // the same in f64, [N, D]
  double* projections[2] = {};  // y and w of a backward, [N, F]
  float* between[2] = {};       // rows between steps, [N, D] each
  status* statuses = nullptr;   // [N]
  std::size_t bytes = 0;

  /// Without data it only counts. probes: 1, or 2 of a backward.
  decoded_plan(const context& ctx, const expert_shape& shape, int probes, index_t steps, void* data) {
    arena memory(data);
    if (shape.num_experts > 0 && shape.ffn_dim > 0 && shape.hidden_dim > 0) {  // else every image is zero
      walk(ctx, shape);
      sums = take_partial_sums(memory, part, pitch_of(shape));
      row.take(memory, shape.num_experts, shape.hidden_dim);
      if (probes == 2) take_backward(memory, shape);
    }
    if (steps > 1) {
      between[0] = memory.take<float>(shape.num_experts * shape.hidden_dim);
      between[1] = steps > 2 ? memory.take<float>(shape.num_experts * shape.hidden_dim) : nullptr;
      statuses = memory.take<status>(shape.num_experts);
    }
    bytes = memory.used();
  }

 private:
  [[nodiscard]] static int pitch_of(const expert_shape& shape) {
    return static_cast<int>((shape.hidden_dim + decoded_columns - 1) / decoded_columns * decoded_columns);
  }
  void walk(const context& ctx, const expert_shape& shape) {
    pieces = decoded_pieces(shape.hidden_dim);
    const int each = pieces * decoded_columns * warp_threads;
    threads = (pitch_of(shape) + each - 1) / each * warp_threads;
    rows = decoded_rows(pieces);
    const int resident = decoded_threads > threads ? decoded_threads / threads : 1;
    const index_t limit = index_t{ctx.multiprocessors} * resident;
    part = make_partition(shape, (shape.ffn_dim + rows - 1) / rows,
                          static_cast<int>(limit < most_blocks ? limit : most_blocks));
  }
  void take_backward(arena& memory, const expert_shape& shape) {
    dual.take(memory, shape.num_experts, shape.hidden_dim);
    dual_rows = memory.take<double>(shape.num_experts * shape.hidden_dim);
    projections[0] = memory.take<double>(shape.num_experts * shape.ffn_dim);
    projections[1] = memory.take<double>(shape.num_experts * shape.ffn_dim);
  }
};

MPIROUTER_CUDA_DETAIL_END
