// analyse(): the experts of a run spread over ranks and threads.
#include "analyse.hpp"
#include "parallel.hpp"

#include <Eigen/Core>

#include <chrono>
#include <mutex>
#include <stdexcept>
#include <thread>

namespace verify {

namespace {

/// A thread of the first rank that takes what the others send, until it has the results that are expected of
/// them. Not the main thread, which may be busy with one expert for minutes.
class listener {
 public:
  template <class Take>
  listener(const ranks& all, std::size_t expected, Take take)
      : thread_([&all, expected, take](const std::stop_token& stop) {
          try {
            for (auto left = expected; left > 0 && !stop.stop_requested();) {
              if (const auto line = all.receive()) {
                take(*line);
                --left;
              } else {
                std::this_thread::sleep_for(std::chrono::milliseconds(2));
              }
            }
          } catch (const std::exception& e) {
            std::exit(all.fail(e.what()));  // fail() ends the program here
          }
        }) {}
  void wait() { thread_.join(); }

 private:
  std::jthread thread_;
};

}  // namespace

void analyse(task_list& tasks, const analysis_options& options, ranks& all,
             const std::function<void(const placed_result&)>& finished) {
  const auto mine = tasks.open(all.rank(), all.size());
  std::mutex one_at_a_time;
  const auto keep = [&](const placed_result& one) {
    const std::scoped_lock lock(one_at_a_time);
    if (!all.is_first()) {
      all.send(to_line(one));
      return;
    }
    finished(one);
    if (!tasks.put(one)) {
      throw std::logic_error("a result that no expert waits for");
    }
  };
  std::optional<listener> others;
  if (all.is_first() && all.size() > 1) {
    others.emplace(all, tasks.open().size() - mine.size(),
                   [&keep](const std::string& line) { keep(from_line(line).value()); });
  }
  Eigen::setNbThreads(1);  // the experts are what is spread
  for_each_parallel(
      static_cast<index_t>(mine.size()),
      [&](index_t i) {
        const auto& task = mine[static_cast<std::size_t>(i)];
        keep({task.layer, analyse_expert(tasks.layer(task), task.expert, options)});
      },
      [](index_t, index_t) {});
  if (others) {
    others->wait();
  }
}

}  // namespace verify
