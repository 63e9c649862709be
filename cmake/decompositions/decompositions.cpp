// Eigen's decompositions take half a minute to compile: once is enough for the project's own programs.
#undef MPIROUTER_EXTERN_DECOMPOSITIONS
#include <mpi_router/verify/decompositions.hpp>

#if !EIGEN_VERSION_AT_LEAST(3, 4, 90)
MPIROUTER_INSTANTIATE_DECOMPOSITIONS();
#endif
