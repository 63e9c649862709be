#include "simd_laws.hpp"

#include <mpi_router/backend/simd.hpp>

TEST_CASE("one-read kernels, bf16") { simd_laws::all<mpi_router::bf16>(mpi_router::simd{}); }
