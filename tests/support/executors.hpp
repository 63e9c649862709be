// Executors of every kind.
#pragma once

#include <mpi_router/core/config.hpp>

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

namespace test_support {

using mpi_router::index_t;

/// Runs tasks on some threads, in whatever order they come.
struct thread_executor {
  int threads = 2;
  template <class Task>
  void operator()(index_t count, Task&& task) const {
    std::atomic<index_t> next{0};
    const auto work = [&] {
      for (index_t i = next++; i < count; i = next++) {
        task(i);
      }
    };
    std::vector<std::thread> pool;
    pool.reserve(static_cast<std::size_t>(threads));
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back(work);
    }
    for (auto& t : pool) {
      t.join();
    }
  }
};

/// Runs tasks last to first.
struct reverse_executor {
  template <class Task>
  void operator()(index_t count, Task&& task) const {
    while (count > 0) {
      task(--count);
    }
  }
};

/// Any executor as one type, so that what takes it is compiled once.
class any_executor {
 public:
  template <class E>
  any_executor(const E& executor) : run_([executor](index_t count, const task& t) { executor(count, t); }) {}
  template <class Task>
  void operator()(index_t count, Task&& t) const {
    run_(count, [&t](index_t i) { t(i); });
  }

 private:
  using task = std::function<void(index_t)>;
  std::function<void(index_t, const task&)> run_;
};

}  // namespace test_support
