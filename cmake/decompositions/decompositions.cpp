// Eigen's decompositions take half a minute to compile: once is enough for the project's own programs.
#define MPIROUTER_INSTANTIATE_DECOMPOSITIONS
#include <mpi_router/verify/decompositions.hpp>
