// A progress bar on the standard error, where a person watches and waits.
#pragma once

#include "analyse.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace verify {

class progress_bar {
 public:
  explicit progress_bar(const char* what) : what_(what), shown_(::isatty(STDERR_FILENO) != 0) {}
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;
  ~progress_bar() {
    if (drawn_) {
      fmt::print(stderr, "\r\033[K");
    }
  }

  void operator()(index_t done, index_t all) {
    const auto now = clock::now();
    if (!shown_ || now - start_ < std::chrono::milliseconds(700) ||
        now - last_ < std::chrono::milliseconds(100)) {
      return;
    }
    last_ = now;
    drawn_ = true;
    constexpr index_t width = 40;
    const auto filled = static_cast<std::size_t>(width * done / all);
    fmt::print(stderr, "\r{} [{:<{}}] {}/{} ", what_, std::string(filled, '#'), width, done, all);
    std::fflush(stderr);
  }

 private:
  using clock = std::chrono::steady_clock;
  const char* what_;
  bool shown_;
  bool drawn_ = false;
  clock::time_point start_ = clock::now();
  clock::time_point last_ = start_;
};

}  // namespace verify
