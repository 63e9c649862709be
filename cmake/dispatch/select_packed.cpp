// Which table of kernels over packed weights this processor can run. Compiled without special instructions,
// and alone: programs that have no packed weights are linked without them.
#include <mpi_router/backend/packed_dispatch.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES
namespace core {

const packed_tables* packed_tables_of(instruction_set s) noexcept {
  constexpr const packed_tables* in_order[] = {&baseline_packed_tables,
#if defined(__x86_64__)
                                               &x86_64_v3_packed_tables, &x86_64_v4_packed_tables
#endif
  };
  return tables_of(s) != nullptr ? in_order[static_cast<std::size_t>(s)] : nullptr;
}

}  // namespace core
MPIROUTER_END_TYPES
