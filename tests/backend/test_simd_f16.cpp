#include "simd_laws.hpp"

#include <mpi_router/backend/simd.hpp>

TEST_CASE("one-read kernels, f16") { simd_laws::all<mpi_router::f16>(mpi_router::simd{}); }
