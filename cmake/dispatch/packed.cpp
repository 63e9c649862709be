// Compiled once for each instruction set, as kernels.cpp is: what is said there holds here.
#include <mpi_router/backend/packed.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES
namespace core {

namespace {
template <class... Views>
constexpr packed_tables_for<Views...> compiled(packed_tables_for<Views...>) {
  return {detail::kernels::packed_kernels<Views, xsimd::default_arch>::table...};
}
}  // namespace

constinit const packed_tables MPIROUTER_DISPATCH_PACKED_TABLES = compiled(packed_tables{});

}  // namespace core
MPIROUTER_END_TYPES
