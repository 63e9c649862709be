// What the dual rows of the backward are made of.
#pragma once

#include <mpi_router/cuda/detail/device/any_matrix.cuh>
#include <mpi_router/cuda/types.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// What the dual rows z̄ are made of: ḡ, the saved forward and C.
struct dual_source {
  any_matrix grad_rows;  // ḡ, to the rows that the forward gave
  any_matrix direction;  // ẑ
  saved_step saved;
  double radius;
  degenerate_row degenerate;
  bool of_all;  // false: other ranks have more neurons of the same experts, of which ẑ was made too

  /// Whether a row that had no step passes its gradient on, as it passed through itself.
  [[nodiscard]] __host__ __device__ bool passes_on() const { return degenerate == degenerate_row::keep; }
};

MPIROUTER_CUDA_DETAIL_END
