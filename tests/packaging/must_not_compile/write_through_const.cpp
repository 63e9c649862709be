// An output that may not be written.
#include <mpi_router/mpi_router.hpp>

#include <vector>

#ifdef MISTAKE
using output = const std::vector<float>;
#else
using output = std::vector<float>;
#endif

void use(const float* a, const std::vector<float>& row, output& out) {
  mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a, 2, 3)), row, out, 1.0F);
}
