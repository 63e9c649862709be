// A row of doubles for an operator that computes in float.
#include <mpi_router/mpi_router.hpp>

#include <vector>

#ifdef MISTAKE
using element = double;
#else
using element = float;
#endif

void use(const float* a, const std::vector<element>& row, std::vector<float>& out) {
  mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a, 2, 3)), row, out, 1.0F);
}
