// Everything that a host program can include.
#pragma once

#include <mpi_router/mpi_router.hpp>

#if __has_include(<Eigen/Core>)
#include <mpi_router/backend/eigen.hpp>
#endif
