// Compiled for another instruction set than exchange_main.cpp.
#include "exchange.hpp"

#define DEFINE_PASS_ON(type) \
  type pass_on(const type& value) { return value; }
EXCHANGED(DEFINE_PASS_ON)

mpi_router::step_result<float> step_elsewhere(mpi_router::matrix_view<const float> a,
                                              mpi_router::vector_view<const float> row,
                                              mpi_router::vector_view<float> out,
                                              const mpi_router::router_radius& radius) {
  return mpi_router::power_step(mpi_router::gram(a), row, out, static_cast<float>(radius.of(4)));
}

void track_elsewhere(mpi_router::load_tracker& tracker, std::span<const mpi_router::index_t> load) {
  tracker.add(load);
}
