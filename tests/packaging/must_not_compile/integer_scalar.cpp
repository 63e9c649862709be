// Integers are no weights.
#include <mpi_router/mpi_router.hpp>

#ifdef MISTAKE
using element = int;
#else
using element = float;
#endif

auto use(const element* a) { return mpi_router::gate_fd(a, 2, 3).rows(); }
