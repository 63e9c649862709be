// The tables that exist, one for each time that kernels.cpp and packed.cpp were compiled.
#pragma once

#include <mpi_router/backend/kernel_table.hpp>
#include <mpi_router/backend/packed_table.hpp>

MPIROUTER_BEGIN_TYPES
namespace core {

extern const kernel_tables baseline_tables;
extern const packed_tables baseline_packed_tables;
#if defined(__x86_64__)
extern const kernel_tables x86_64_v3_tables;
extern const packed_tables x86_64_v3_packed_tables;
extern const kernel_tables x86_64_v4_tables;
extern const packed_tables x86_64_v4_packed_tables;
#endif

}  // namespace core
MPIROUTER_END_TYPES
