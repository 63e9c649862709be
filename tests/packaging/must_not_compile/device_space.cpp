// Memory of an accelerator given to a host algorithm.
#include <mpi_router/mpi_router.hpp>

#ifdef MISTAKE
using space = mpi_router::device_space;
#else
using space = mpi_router::host_space;
#endif

void use(const float* a, const float* row, float* out) {
  const mpi_router::vector_view<const float, space> start(row, 3);
  mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a, 2, 3)), start,
                         mpi_router::vector_view(out, 3), 1.0F);
}
