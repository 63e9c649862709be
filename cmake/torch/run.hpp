// How a call of the C interface runs under libtorch: its threads, and what a failure becomes.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace mpi_router_torch {

/// Throws what a TORCH_CHECK would, with the text of the library, which names shapes and types.
inline void must(mpi_router_code code) {
  TORCH_CHECK_NOT_IMPLEMENTED(code != MPIROUTER_UNSUPPORTED, mpi_router_last_error());
  TORCH_CHECK(code == MPIROUTER_OK, mpi_router_last_error());
}

/// at::parallel_for as the executor.
inline const mpi_router_threads* threads() {
  static const mpi_router_threads of_at{
      [](void*, std::int64_t tasks, void (*task)(void*, std::int64_t), void* data) {
        at::parallel_for(0, tasks, 1, [=](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            task(data, i);
          }
        });
      },
      nullptr};
  return &of_at;
}

}  // namespace mpi_router_torch
