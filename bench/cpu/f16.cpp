#include "run.hpp"

namespace bench {
timings run_f16(const bench_case& c, int repetitions, double seconds) {
  return run_case<mpi_router::f16>(c, repetitions, seconds);
}
}  // namespace bench
