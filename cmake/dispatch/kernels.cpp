// Compiled once for each instruction set. Everything here is in a namespace or a template argument that names
// it, so no linker can hand one set's code to another: hence no Eigen, no containers and no algorithms of the
// standard library, whose inline functions bear the same name in all of them.
#include <mpi_router/backend/simd/table.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES
namespace core {

namespace {
template <storage_format... Formats>
constexpr kernel_tables compiled(storage_formats<Formats...>) {
  return {kernels_for<Formats>{detail::kernels::kernels_of<Formats, xsimd::default_arch>::table}...};
}
}  // namespace

constinit const kernel_tables MPIROUTER_DISPATCH_TABLES = compiled(compiled_formats{});

}  // namespace core
MPIROUTER_END_TYPES
