// What a person who waits is told on the standard error: a bar on a terminal, elsewhere a line a minute.
#pragma once

#include "analyse.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace verify {

/// "40 s", "25 min", "3.5 h".
[[nodiscard]] inline std::string about(double seconds) {
  return seconds < 90     ? fmt::format("{:.0f} s", seconds)
         : seconds < 5400 ? fmt::format("{:.0f} min", seconds / 60)
                          : fmt::format("{:.1f} h", seconds / 3600);
}

class progress_bar {
 public:
  /// `before`: how many were done before this run.
  explicit progress_bar(const char* what, index_t before = 0)
      : what_(what), before_(before), on_terminal_(::isatty(STDERR_FILENO) != 0) {}
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() {
    if (drawn_) {
      fmt::print(stderr, "\r\033[K");
    }
  }

  void operator()(index_t done, index_t all) {
    const auto now = clock::now();
    const std::chrono::duration<double> spent = now - start_;
    const auto pause = on_terminal_ ? std::chrono::milliseconds(100) : std::chrono::minutes(1);
    const double quiet = on_terminal_ ? 0.7 : 10;  // what is over by then needs no words
    if (spent.count() < quiet || done == all || (told_ && now - last_ < pause)) {
      return;
    }
    told_ = true;
    last_ = now;
    // The first experts measure what the others take; they are of one size, mostly.
    const auto left =
        about(spent.count() / static_cast<double>(done - before_) * static_cast<double>(all - done));
    if (on_terminal_) {
      draw(done, all, left);
    } else {
      fmt::print(stderr, "{}: {} of {} experts in {}, about {} left\n", what_, done, all,
                 about(spent.count()), left);
    }
    std::fflush(stderr);
  }

 private:
  using clock = std::chrono::steady_clock;

  void draw(index_t done, index_t all, const std::string& left) {
    drawn_ = true;
    constexpr index_t width = 40;
    const auto filled = static_cast<std::size_t>(width * done / all);
    fmt::print(stderr, "\r\033[K{} [{:<{}}] {}/{}, about {} left ", what_, std::string(filled, '#'), width,
               done, all, left);
  }

  const char* what_;
  index_t before_;
  bool on_terminal_;
  bool drawn_ = false;
  bool told_ = false;
  clock::time_point start_ = clock::now();
  clock::time_point last_ = start_;
};

}  // namespace verify
