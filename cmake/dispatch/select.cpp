// Which table this processor can run. Compiled without special instructions.
#include <mpi_router/backend/runtime_dispatch.hpp>

#include "tables.hpp"

MPIROUTER_BEGIN_TYPES

namespace core {

const kernel_tables* tables_of(instruction_set s) noexcept {
  switch (s) {
    case instruction_set::baseline: return &baseline_tables;
#if defined(__x86_64__)
    case instruction_set::x86_64_v3:
      return __builtin_cpu_supports("x86-64-v3") != 0 ? &x86_64_v3_tables : nullptr;
    case instruction_set::x86_64_v4:
      return __builtin_cpu_supports("x86-64-v4") != 0 ? &x86_64_v4_tables : nullptr;
#else
    case instruction_set::x86_64_v3:
    case instruction_set::x86_64_v4: break;
#endif
  }
  return nullptr;
}

}  // namespace core

instruction_set best_instruction_set() noexcept {
  for (const instruction_set s : {instruction_set::x86_64_v4, instruction_set::x86_64_v3}) {
    if (core::tables_of(s) != nullptr) return s;
  }
  return instruction_set::baseline;
}

MPIROUTER_END_TYPES
