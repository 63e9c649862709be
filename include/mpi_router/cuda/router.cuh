// The MPI router on a GPU, in one include. For nvcc, -std=c++20, sm_80 or newer; fastest on sm_90.
#pragma once

#include <mpi_router/cuda/router_rows.cuh>
#include <mpi_router/cuda/router_rows_vjp.cuh>
