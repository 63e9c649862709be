// Tasks on oneTBB. A header of its own: including it means linking the library (mpi_router::tbb).
#pragma once

#include <mpi_router/core/concepts.hpp>

#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/task_arena.h>

MPIROUTER_BEGIN

/// Spreads tasks over the threads of the arena that the caller is in, or of `arena`.
struct tbb_executor {
  tbb::task_arena* arena = nullptr;

  template <class Task>
  void operator()(index_t count, Task&& task) const {
    const auto run = [&] {
      tbb::parallel_for(index_t{0}, count, [&](index_t i) { task(i); }, tbb::simple_partitioner{});
    };
    if (arena != nullptr) {
      arena->execute(run);
    } else {
      run();
    }
  }
};

MPIROUTER_END
