// A run of packed rows that begins and ends anywhere, as a rank's part of experts that a GPU decodes.
#pragma once

#include <mpi_router/cuda/decoded_experts.cuh>
#include <mpi_router/cuda/detail/plan/packed_run.hpp>
#include <mpi_router/distributed/decoded_shard.hpp>

#include <algorithm>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class View>
struct packed_run_part {
  packed_run<View> run;

  [[nodiscard]] decoded_experts<packed_batch<View>> operator()(index_t k, const expert_shape& shape) const {
    return packed_experts(run.of(k, shape.ffn_dim), shape.num_experts, run.expert_bytes(),
                          run.scale_expert_bytes());
  }
};

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// decoded_row_run of packed rows as they are in a checkpoint: `rows` (a view of core/packed_views.hpp, in
/// device memory, with as many rows as are here) are those of [N·F, D] = whole from `first` on. Scales that
/// lie apart begin with those of the first row; each expert has its own, FP8 of [128, 128] blocks ⌈F / 128⌉
/// rows of them, and those of the next follow. None is allowed. Throws usage_error on what lies outside, on
/// rows that cannot be, and where a run begins within rows that share scales and goes beyond them.
template <class View>
[[nodiscard]] decoded_run_shard<detail::packed_run_part<View>> packed_row_run(const View& rows, index_t first,
                                                                              const expert_shape& whole) {
  constexpr const char* name = "cuda::packed_row_run";
  core::expect(rows.rows == 0 || rows.cols == whole.hidden_dim, name, ": rows of ", rows.cols,
               " elements, of a whole with D = ", whole.hidden_dim);
  mpi_router::detail::kernels::packed_format<View>::check(rows, name);
  const shard_placement where = shard_placement::rows_of(whole, first, rows.rows);
  const detail::packed_run_part<View> part{{rows, where.first_neuron, whole.ffn_dim}};
  const index_t of_first = std::min(whole.ffn_dim - where.first_neuron, rows.rows);
  detail::expect_whole_blocks(name, "neurons", where.first_neuron, of_first, part.run.block_rows());
  auto shard = decoded_row_run(part, first, rows.rows, whole);
  for (index_t k = 0; k < where.num_experts; k += where.alike(whole, k)) static_cast<void>(shard.from(k));
  return shard;
}

MPIROUTER_CUDA_END
