#include "call.hpp"

namespace mpi_router_c {

cuda::context context_of(const char* what, const mpi_router_cuda* cuda) {
  const mpi_router_cuda& c = given(what, "cuda", cuda);
  core::expect(c.multiprocessors > 0 && c.shared_memory > 0, what,
               ": cuda was not filled in: mpi_router_cuda_of_current_device does, once for a device");
  if (c.capability < 80) {
    unsupported(what, ": cuda is of a device of sm_", c.capability, ", and sm_80 is the oldest");
  }
  core::expect(c.inputs_at_rest == 0 || c.inputs_at_rest == 1, what, ": inputs_at_rest is ", c.inputs_at_rest,
               ", not 0 or 1");
  core::expect(c.workspace.bytes >= 0, what, ": workspace has ", c.workspace.bytes, " bytes");
  return {.stream = static_cast<cuda::stream_t>(c.stream),
          .multiprocessors = c.multiprocessors,
          .capability = c.capability,
          .shared_memory = static_cast<std::size_t>(c.shared_memory),
          .clusters = {c.clusters[0], c.clusters[1], c.clusters[2], c.clusters[3]},
          .inputs_at_rest = c.inputs_at_rest != 0,
          .device = c.device};
}

cuda::saved_step saved_of(const mpi_router_buffer& tape, const mpi_router_experts& experts) {
  const index_t n = experts.shape[0];
  auto* const norms = static_cast<double*>(tape.data);
  auto* const direction = reinterpret_cast<float*>(norms + n);
  return {.direction = direction,
          .image_norm = norms,
          .statuses = reinterpret_cast<status*>(direction + n * experts.shape[2])};
}

}  // namespace mpi_router_c
