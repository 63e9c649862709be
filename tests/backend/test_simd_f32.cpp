#include "simd_laws.hpp"

#include <mpi_router/backend/simd.hpp>

TEST_CASE("one-read kernels, f32") { simd_laws::all<float>(mpi_router::simd{}); }
