// Reading an element of an accelerator's memory on the host.
#include <mpi_router/mpi_router.hpp>

#ifdef MISTAKE
using space = mpi_router::device_space;
#else
using space = mpi_router::host_space;
#endif

float use(const float* a) { return mpi_router::gate_fd<space>(a, 2, 3)(1, 1); }
