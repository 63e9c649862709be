// Executors, which run tasks on threads: OpenMP here, oneTBB in tbb.hpp, which needs that library.
#pragma once

#include <mpi_router/core/concepts.hpp>

MPIROUTER_BEGIN

#if defined(_OPENMP)
/// Spreads tasks over OpenMP threads: as many as the runtime gives, or `threads`. Needs the compiler's OpenMP
/// flag (mpi_router::openmp).
struct openmp_executor {
  int threads = 0;

  template <class Task>
  void operator()(index_t count, Task&& task) const {
    if (threads > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
      for (index_t i = 0; i < count; ++i) {
        task(i);
      }
    } else {
#pragma omp parallel for schedule(dynamic, 1)
      for (index_t i = 0; i < count; ++i) {
        task(i);
      }
    }
  }
};
#endif

MPIROUTER_END
