// Which kernels the laws of packed weights are held to: those that are compiled in, or, for
// MPIROUTER_TEST_DISPATCH, those of the run-time choice for the instruction set that the environment names in
// MPIROUTER_TEST_SET.
#pragma once

#if defined(MPIROUTER_TEST_DISPATCH)
#include <mpi_router/backend/packed_dispatch.hpp>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#else
#include <mpi_router/backend/packed.hpp>
#endif

namespace packed_problems {

#if defined(MPIROUTER_TEST_DISPATCH)

/// Leaves where the processor lacks the set, before anything else runs.
inline mpi_router::instruction_set forced_set() {
  using enum mpi_router::instruction_set;
  const char* const asked = std::getenv("MPIROUTER_TEST_SET");
  if (asked == nullptr) return mpi_router::best_instruction_set();
  for (const auto set : {baseline, x86_64_v3, x86_64_v4}) {
    if (to_string(set) != std::string_view(asked)) continue;
    if (mpi_router::core::packed_tables_of(set) != nullptr) return set;
    std::puts("this processor or build lacks the instruction set");
    std::_Exit(77);  // skipped
  }
  std::puts("MPIROUTER_TEST_SET names no instruction set");
  std::_Exit(1);
}
inline const mpi_router::dispatch backend{mpi_router::dispatched_kernels{forced_set()}};

template <mpi_router::PackedView View>
[[nodiscard]] auto operator_of(const View& v) {
  return gram(v, backend);
}

#else

template <mpi_router::PackedView View>
[[nodiscard]] auto operator_of(const View& v) {
  return mpi_router::gram(v);
}

#endif

}  // namespace packed_problems
