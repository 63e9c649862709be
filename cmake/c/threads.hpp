// The caller's parallel_for as an executor.
#pragma once

#include "boundary.hpp"

#include <mpi_router/core/concepts.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace mpi_router_c {

/// Tasks by the caller's threads, or on this one where there are none. Throws usage_error where the caller
/// did not run each task once, for results would be wrong in silence; what was written by then stays.
class callback_executor {
 public:
  explicit callback_executor(const mpi_router_threads* threads)
      : threads_(threads == nullptr ? mpi_router_threads{} : *threads) {}

  template <class Task>
  void operator()(index_t count, Task&& task) const {
    if (threads_.parallel_for == nullptr) {
      serial_executor{}(count, task);
      return;
    }
    if (count == 0) {
      return;
    }
    call<std::remove_reference_t<Task>> all{
        &task, count, std::make_unique<std::atomic<bool>[]>(static_cast<std::size_t>(count)), {}, {}};
    threads_.parallel_for(threads_.context, count, &call<std::remove_reference_t<Task>>::run, &all);
    const index_t ran = all.ran.load();
    core::expect(ran == count && !all.strayed.load(), "threads: parallel_for was asked for the tasks 0 … ",
                 count - 1, " and ran ", ran, " of them",
                 all.strayed.load() ? ", and others or some twice" : "");
  }

 private:
  template <class Task>
  struct call {
    Task* task;
    index_t count;
    std::unique_ptr<std::atomic<bool>[]> begun;
    std::atomic<index_t> ran;
    std::atomic<bool> strayed;

    static void run(void* data, std::int64_t index) {
      auto& self = *static_cast<call*>(data);
      if (index < 0 || index >= self.count || self.begun[static_cast<std::size_t>(index)].exchange(true)) {
        self.strayed = true;
        return;
      }
      (*self.task)(static_cast<index_t>(index));
      ++self.ran;
    }
  };

  mpi_router_threads threads_;
};

}  // namespace mpi_router_c
