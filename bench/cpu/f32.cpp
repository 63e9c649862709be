#include "run.hpp"

namespace bench {
timings run_f32(const bench_case& c, int repetitions, double seconds) {
  return run_case<float>(c, repetitions, seconds);
}
}  // namespace bench
