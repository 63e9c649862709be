// Which table of kernels over packed weights this processor can run. Compiled without special instructions,
// and alone: programs that have no packed weights are linked without them.
#include <mpi_router/backend/packed_dispatch.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES
namespace core {

const packed_tables* packed_tables_of(instruction_set s) noexcept {
  if (tables_of(s) == nullptr) return nullptr;
  switch (s) {
    case instruction_set::baseline: return &baseline_packed_tables;
#if defined(__x86_64__)
    case instruction_set::x86_64_v3: return &x86_64_v3_packed_tables;
    case instruction_set::x86_64_v4: return &x86_64_v4_packed_tables;
#else
    case instruction_set::x86_64_v3:
    case instruction_set::x86_64_v4: break;
#endif
  }
  return nullptr;
}

}  // namespace core
MPIROUTER_END_TYPES
