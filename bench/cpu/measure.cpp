#include "measure.hpp"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

namespace bench {
namespace {

/// Keeps the seconds per iteration of every repetition.
class collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      times[run.run_name.function_name].push_back(run.real_accumulated_time /
                                                  static_cast<double>(run.iterations));
    }
  }
  std::map<std::string, std::vector<double>> times;
};

double once(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<double> medians(const std::vector<contender>& contenders, int repetitions, double seconds) {
  benchmark::ClearRegisteredBenchmarks();
  for (const contender& c : contenders) {
    c.run();  // pages, caches, the threads of a pool
    const double one = once(c.run);
    const auto iterations =
        static_cast<benchmark::IterationCount>(std::clamp(std::floor(seconds / one), 1.0, 1e6));
    benchmark::RegisterBenchmark(c.name.c_str(),
                                 [&c](benchmark::State& state) {
                                   for (auto _ : state) c.run();
                                 })
        ->Iterations(iterations)
        ->Repetitions(repetitions)
        ->UseRealTime();
  }
  collector results;
  benchmark::RunSpecifiedBenchmarks(&results);
  std::vector<double> out;
  for (const contender& c : contenders) {
    std::vector<double>& t = results.times[c.name];
    const auto middle = t.begin() + static_cast<std::ptrdiff_t>(t.size() / 2);
    std::nth_element(t.begin(), middle, t.end());
    out.push_back(*middle);
  }
  return out;
}

}  // namespace bench
