// Contenders are timed in turn, in random order, in one process: what another program on the machine takes
// away, it takes from all of them. The figure of each is its median.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace bench {

struct contender {
  std::string name;
  std::function<void()> run;
};

/// Median seconds per call of each contender, over `repetitions` rounds of at least `seconds` each.
[[nodiscard]] std::vector<double> medians(const std::vector<contender>& contenders, int repetitions,
                                          double seconds);

}  // namespace bench
