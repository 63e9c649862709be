// What the plans ask of a context.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/types.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Whether there are clusters, and the TMA, whose bulk copies fill rings by themselves.
[[nodiscard]] inline bool has_tma(const context& ctx) { return ctx.capability >= 90; }

/// Clusters of `blocks` blocks (a power of two) that run at once.
[[nodiscard]] inline int resident_clusters(const context& ctx, int blocks) {
  int log = 0;
  while (1 << log < blocks) {
    ++log;
  }
  return blocks > most_cluster || (!has_tma(ctx) && blocks > 1) ? 0 : ctx.clusters[log];
}

MPIROUTER_CUDA_DETAIL_END
