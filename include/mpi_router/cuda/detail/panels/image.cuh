// What becomes of a block's part of an image: it stays in memory for a second kernel, or is sent to the first
// block of a cluster, which finishes.
#pragma once

#include <mpi_router/cuda/detail/finish/image_parts.cuh>
#include <mpi_router/cuda/detail/panels/place.cuh>
#include <mpi_router/cuda/detail/plan/shared_memory.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// put(row, x) for the rows whose sums this thread ends with, the first of `u`; some lie beyond the block's.
template <int passes, int width, int lanes, class Put>
__device__ __forceinline__ void for_rows_of_image(const panel_place<width, lanes>& at,
                                                  const float (&u)[passes], const Put& put) {
  constexpr int left = passes / lanes;
#pragma unroll
  for (int i = 0; i < left; ++i) {
    put(at.rank * at.block_rows + at.thread / lanes + (at.thread % lanes * left + i) * at.pass_rows, u[i]);
  }
}

/// rows(put) calls put(row, x) for the rows that this thread has.
template <int width, int lanes, class Rows>
__device__ __forceinline__ void leave_image(const panel_place<width, lanes>& at, const partial_sums& out,
                                            int slot, const slot_header& header, const Rows& rows) {
  float* const image = out.rows + static_cast<long long>(slot) * out.pitch;
  rows([&](int row, float x) {
    if (row < min((at.rank + 1) * at.block_rows, out.pitch)) {
      image[row] = x;
    }
  });
  if (at.thread == 0 && at.rank == 0) {
    out.headers[slot] = header;
  }
}

template <int width, int lanes, class Rows>
__device__ __forceinline__ leader_inbox send_image(const panel_place<width, lanes>& at,
                                                   const panel_memory& memory, int team,
                                                   const slot_header& header, const Rows& rows) {
  const int pitch = at.blocks * at.block_rows;
  const int member = at.member(team);
  const leader_inbox inbox{memory.image, memory.image + pitch, memory.leader, team, pitch, at.block_rows};
  rows([&](int row, float x) {
    if (row < (at.rank + 1) * at.block_rows) {
      inbox.put(member, row, x);
    }
  });
  if (at.thread == 0 && at.rank == 0) {
    inbox.put(member, header);
  }
  return inbox;
}

MPIROUTER_CUDA_DETAIL_END
