#include "simd_laws.hpp"

#include <mpi_router/backend/simd.hpp>

TEST_CASE("one-read kernels, f64") { simd_laws::all<double>(mpi_router::simd{}); }
