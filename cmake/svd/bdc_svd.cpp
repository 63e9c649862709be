// Eigen's decomposition takes half a minute to compile: once is enough for the project's own programs.
#include <mpi_router/verify/singular.hpp>

template class MPIROUTER_BDC_SVD;
