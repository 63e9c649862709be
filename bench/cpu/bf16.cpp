#include "run.hpp"

namespace bench {
timings run_bf16(const bench_case& c, int repetitions, double seconds) {
  return run_case<mpi_router::bf16>(c, repetitions, seconds);
}
}  // namespace bench
