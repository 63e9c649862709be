// Certificates where the library is built without Eigen: the same symbols, which say so.
#if defined(MPIROUTER_C_PLAIN)
#include "boundary.hpp"

namespace {

mpi_router_code refuse(const char* what) noexcept {
  return mpi_router_c::guarded([&] {
    mpi_router_c::unsupported(what, ": this library was built without Eigen, which certificates need");
  });
}

}  // namespace

extern "C" {

mpi_router_certify_options mpi_router_default_certify_options() { return {}; }
mpi_router_code mpi_router_find_directions(const mpi_router_experts*, const mpi_router_matrix*,
                                           const mpi_router_certify_options*, mpi_router_direction*,
                                           const mpi_router_matrix*, const mpi_router_threads*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_certify_rows(const mpi_router_experts*, const mpi_router_matrix*,
                                        const mpi_router_direction*, const mpi_router_matrix*,
                                        mpi_router_row_certificate*, const mpi_router_threads*) {
  return refuse(__func__);
}

}  // extern "C"
#endif
