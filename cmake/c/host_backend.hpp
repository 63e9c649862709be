// Which kernels the calls on the host run.
#pragma once

#if defined(MPIROUTER_C_PLAIN)  // needs neither xsimd nor Eigen: for a library whose use is on GPUs, built by
                                // hand
#include <mpi_router/backend/reference.hpp>
#else
#include <mpi_router/backend/runtime_dispatch.hpp>
#endif

namespace mpi_router_c {

#if defined(MPIROUTER_C_PLAIN)
using host_backend = mpi_router::reference;
[[nodiscard]] inline const char* name_of_kernels() { return "plain"; }
#else
using host_backend = mpi_router::dispatch;
[[nodiscard]] inline const char* name_of_kernels() {
  return mpi_router::to_string(mpi_router::best_instruction_set()).data();
}
#endif

}  // namespace mpi_router_c
