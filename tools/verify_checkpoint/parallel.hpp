// Spreads independent tasks over the cores.
#pragma once

#include <mpi_router/core/config.hpp>

#include <atomic>
#include <exception>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace verify {

/// How many threads the loops below use; 0 for as many as the machine has.
inline void use_threads([[maybe_unused]] int count) {
#ifdef _OPENMP
  if (count > 0) {
    omp_set_num_threads(count);
  }
#endif
}

/// Calls task(i) for every i in [0, count), and progress(done, count) from the calling thread alone. What a
/// task throws is thrown here, and tasks that have not begun by then are left out.
template <class Task, class Progress>
void for_each_parallel(mpi_router::index_t count, const Task& task, const Progress& progress) {
  std::atomic<mpi_router::index_t> done = 0;
  std::atomic<bool> failed = false;
  std::exception_ptr failure;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic)
#endif
  for (mpi_router::index_t i = 0; i < count; ++i) {
    if (failed) {
      continue;
    }
    try {
      task(i);
    } catch (...) {
      if (!failed.exchange(true)) {
        failure = std::current_exception();
      }
    }
    const mpi_router::index_t so_far = ++done;
#ifdef _OPENMP
    const bool may_print = omp_get_thread_num() == 0;
#else
    const bool may_print = true;
#endif
    if (may_print) {
      progress(so_far, count);
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace verify
