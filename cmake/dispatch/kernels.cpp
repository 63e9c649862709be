// Compiled once for each instruction set. Everything here is in a namespace or a template argument that names
// it, so no linker can hand one set's code to another: hence no Eigen, no containers and no algorithms of the
// standard library, whose inline functions bear the same name in all of them.
#include <mpi_router/backend/simd/table.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES
namespace core {

namespace {
template <storage_format Format>
constexpr const auto& table = detail::kernels::kernels_of<Format, xsimd::default_arch>::table;
}

const kernel_tables MPIROUTER_DISPATCH_TABLES = {.f64 = table<storage_format::f64>,
                                                 .f32 = table<storage_format::f32>,
                                                 .bf16 = table<storage_format::bf16>,
                                                 .f16 = table<storage_format::f16>};

}  // namespace core
MPIROUTER_END_TYPES
