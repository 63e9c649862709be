// A matrix in an accelerator's memory given to a host backend.
#include <mpi_router/mpi_router.hpp>

#ifdef MISTAKE
using space = mpi_router::device_space;
#else
using space = mpi_router::host_space;
#endif

auto use(const float* a) { return mpi_router::gram(mpi_router::gate_fd<space>(a, 2, 3)).dimension(); }
