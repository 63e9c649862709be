#include "run.hpp"

namespace bench {
timings run_f64(const bench_case& c, int repetitions, double seconds) {
  return run_case<double>(c, repetitions, seconds);
}
}  // namespace bench
