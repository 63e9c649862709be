// Where nvcc did not build the program.
#include "gpu.hpp"

#include <stdexcept>

namespace verify {

struct gpu::implementation {
  std::string name;
};
struct gpu_expert::implementation {};

gpu::gpu(int /*rank*/) : cores_(1) {
  throw std::runtime_error(
      "--gpu: this program was built without CUDA (CMake option MPIROUTER_CUDA, with nvcc)");
}
gpu::~gpu() = default;
const std::string& gpu::name() const noexcept { return implementation_->name; }
int gpu::make_room(index_t /*ffn_dim*/, index_t /*hidden_dim*/) { return 0; }

gpu_expert::gpu_expert(gpu& /*device*/, const stored_bytes& /*a*/) {
  throw std::logic_error("there is no GPU");
}
gpu_expert::~gpu_expert() = default;
double gpu_expert::apply(mpi_router::vector_view<const double> /*x*/, mpi_router::vector_view<double> /*u*/) {
  return 0;
}
double* gpu_expert::take_vectors(index_t /*count*/) { return nullptr; }
void gpu_expert::give_back(double* /*vectors*/) noexcept {}
void gpu_expert::store(double* /*vectors*/, index_t /*k*/, mpi_router::vector_view<const double> /*x*/) {}
void gpu_expert::combine(double* /*vectors*/, index_t /*from*/, mpi_router::vector_view<const double> /*y*/,
                         mpi_router::vector_view<double> /*out*/) {}
index_t gpu_expert::lanczos(double* /*vectors*/, index_t /*newest*/, bool /*is_first*/, double /*scale*/,
                            double /*before*/, std::span<mpi_router::lanczos_step> /*found*/) {
  return 0;
}

}  // namespace verify
