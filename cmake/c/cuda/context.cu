// What is asked of the CUDA runtime: the facts of a device, and where memory is.
#include "call.hpp"

#include <mpi_router/cuda/context.cuh>

#include <algorithm>

namespace mpi_router_c {

using cuda::detail::check;

namespace {

/// With the page tables of the host, as on Grace Hopper.
bool reaches_all_of_the_host(int device) {
  int does = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&does, cudaDevAttrPageableMemoryAccess, device));
  return does != 0;
}

}  // namespace

void expect_reachable(const char* what, const cuda::context& ctx,
                      std::initializer_list<named_memory> memory) {
  int current = 0;
  if (cudaGetDevice(&current) != cudaSuccess) {
    return;  // what is asked for next says why, once it has found no mistake
  }
  core::expect(current == ctx.device, what, ": cuda is of device ", ctx.device, ", and device ", current,
               " is current: call cudaSetDevice before");
  for (const named_memory& m : memory) {
    if (m.data == nullptr) {
      continue;
    }
    cudaPointerAttributes is = {};
    check("cudaPointerGetAttributes", cudaPointerGetAttributes(&is, m.data));
    core::expect(
        is.type != cudaMemoryTypeUnregistered || reaches_all_of_the_host(ctx.device), what, ": ", m.name,
        " has the device MPIROUTER_CUDA, and its data is memory of the host that CUDA does not know");
    core::expect(is.type != cudaMemoryTypeDevice || is.device == ctx.device, what, ": ", m.name,
                 " is memory of device ", is.device, ", and the call runs on device ", ctx.device);
  }
}

}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" mpi_router_code mpi_router_cuda_of_current_device(mpi_router_cuda* cuda) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_cuda_of_current_device";
    static_cast<void>(given(what, "cuda", cuda));
    const cuda::context ctx = cuda::make_context();
    if (ctx.capability < 80) {
      unsupported(what, ": device ", ctx.device, " is of sm_", ctx.capability, ", and sm_80 is the oldest");
    }
    *cuda = {.stream = nullptr,
             .workspace = {nullptr, 0},
             .inputs_at_rest = 0,
             .device = ctx.device,
             .multiprocessors = ctx.multiprocessors,
             .capability = ctx.capability,
             .shared_memory = static_cast<std::int64_t>(ctx.shared_memory),
             .clusters = {}};
    std::copy_n(ctx.clusters, 4, cuda->clusters);
  });
}
