// How a call of the C interface runs under libtorch: its threads, and what a failure becomes.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace mpi_router_torch {

/// Throws what a TORCH_CHECK would, with the text of the library, which names shapes and types.
inline void must(mpi_router_code code) {
  TORCH_CHECK_NOT_IMPLEMENTED(code != MPIROUTER_UNSUPPORTED, mpi_router_last_error());
  TORCH_CHECK(code == MPIROUTER_OK, mpi_router_last_error());
}

/// Forward-mode derivatives would be lost without a word.
inline void expect_no_tangent(const char* what, const at::Tensor& t) {
  TORCH_CHECK_NOT_IMPLEMENTED(!t._fw_grad(0).defined(), what, ": there is no forward-mode derivative");
}

/// at::parallel_for as the executor of work on so many numbers; none where waking threads would take longer.
inline const mpi_router_threads* threads(std::int64_t numbers) {
  constexpr std::int64_t alone = 1 << 18;
  static const mpi_router_threads of_at{
      [](void*, std::int64_t tasks, void (*task)(void*, std::int64_t), void* data) {
        at::parallel_for(0, tasks, 1, [=](std::int64_t begin, std::int64_t end) {
          for (std::int64_t i = begin; i < end; ++i) {
            task(data, i);
          }
        });
      },
      nullptr};
  return numbers > alone ? &of_at : nullptr;
}

}  // namespace mpi_router_torch
