// The calls on GPUs where the library is built without CUDA: the same symbols, which say so.
#if !defined(MPIROUTER_C_CUDA)
#include "boundary.hpp"

namespace {

mpi_router_code refuse(const char* what) noexcept {
  return mpi_router_c::guarded([&] {
    mpi_router_c::unsupported(what, ": this library was built without CUDA (-DMPIROUTER_CUDA=ON builds it)");
  });
}

}  // namespace

extern "C" {

mpi_router_code mpi_router_cuda_of_current_device(mpi_router_cuda*) { return refuse(__func__); }
mpi_router_code mpi_router_cuda_rows_workspace_size(const mpi_router_cuda*, const mpi_router_experts*,
                                                    const mpi_router_options*, std::int64_t*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_rows(const mpi_router_cuda*, const mpi_router_experts*,
                                     const mpi_router_matrix*, const mpi_router_options*,
                                     const mpi_router_matrix*, const mpi_router_by_products*,
                                     const mpi_router_buffer*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_stateful_rows(const mpi_router_cuda*, const mpi_router_experts*,
                                              const mpi_router_matrix*, const mpi_router_options*,
                                              const mpi_router_by_products*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_rows_vjp_workspace_size(const mpi_router_cuda*, const mpi_router_experts*,
                                                        const mpi_router_experts*, std::int32_t,
                                                        std::int64_t*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_rows_vjp(const mpi_router_cuda*, const mpi_router_experts*,
                                         const mpi_router_matrix*, const mpi_router_options*,
                                         const mpi_router_buffer*, const mpi_router_matrix*,
                                         const mpi_router_matrix*, const mpi_router_experts*, std::int32_t) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_rows_vjp_detached(const mpi_router_cuda*, const mpi_router_experts*,
                                                  const mpi_router_matrix*, const mpi_router_options*,
                                                  const mpi_router_buffer*, const mpi_router_matrix*,
                                                  const mpi_router_matrix*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_rows_vjp_factored(const mpi_router_cuda*, const mpi_router_experts*,
                                                  const mpi_router_matrix*, const mpi_router_options*,
                                                  const mpi_router_buffer*, const mpi_router_matrix*,
                                                  const mpi_router_matrix*, const mpi_router_buffer*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_put_factors(const mpi_router_cuda*, const mpi_router_matrix*,
                                            const mpi_router_matrix*, const std::int32_t*,
                                            const mpi_router_matrix*, const mpi_router_buffer*) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_restore_padding(const mpi_router_cuda*, const mpi_router_matrix*,
                                                const mpi_router_matrix*, const std::int32_t*, std::int64_t) {
  return refuse(__func__);
}
mpi_router_code mpi_router_cuda_gate(const mpi_router_cuda*, const mpi_router_matrix*,
                                     const mpi_router_gating_options*, const mpi_router_vector*,
                                     const std::uint8_t*, const mpi_router_matrix*, std::int32_t*,
                                     std::uint8_t*, std::int32_t*) {
  return refuse(__func__);
}

}  // extern "C"
#endif
