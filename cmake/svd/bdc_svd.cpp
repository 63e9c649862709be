// Eigen's decomposition takes half a minute to compile: once is enough for the project's own programs.
#include <mpi_router/verify/singular.hpp>

#if !EIGEN_VERSION_AT_LEAST(3, 4, 90)
template class MPIROUTER_BDC_SVD;
#endif
