// What the calls on GPUs have in common: context, scratch and tape, from the structs of the C interface.
// Needs no CUDA toolkit, except for what context.cu defines.
#pragma once

#include "../rows_call.hpp"

#include <mpi_router/cuda/types.hpp>

#include <cstdint>
#include <initializer_list>

namespace mpi_router_c {

inline constexpr place on_gpu{MPIROUTER_CUDA, true};
/// Sizes follow from types, shapes and strides.
inline constexpr place on_gpu_unseen{MPIROUTER_CUDA, false};

/// The experts with an address, if they have none: views want one, on which sizes do not depend.
[[nodiscard]] inline mpi_router_experts somewhere(mpi_router_experts experts) {
  if (experts.data == nullptr) {
    experts.data = reinterpret_cast<void*>(std::uintptr_t{256});
  }
  return experts;
}

/// Throws usage_error where mpi_router_cuda_of_current_device did not fill it in.
[[nodiscard]] cuda::context context_of(const char* what, const mpi_router_cuda* cuda);

[[nodiscard]] inline cuda::workspace scratch_of(const mpi_router_cuda& cuda) {
  return {cuda.workspace.data, cuda.workspace.bytes < 0 ? 0 : static_cast<std::size_t>(cuda.workspace.bytes)};
}

/// The parts of a tape: norms [N] in double, the direction [N, D] in float, statuses [N].
[[nodiscard]] cuda::saved_step saved_of(const mpi_router_buffer& tape, const mpi_router_experts& experts);

struct named_memory {
  const char* name;
  const void* data;
};
/// Throws usage_error where another device than the context's is current, or where some of the memory (null
/// is none) is not the device's to reach: memory of the host that CUDA does not know, or of another device.
/// What a table points to is not looked at. Defined in context.cu, the one here that asks CUDA.
void expect_reachable(const char* what, const cuda::context& ctx, std::initializer_list<named_memory> memory);

[[nodiscard]] inline const void* memory_of(const mpi_router_experts& experts) {
  const bool is_empty = experts.shape[0] == 0 || experts.shape[1] == 0 || experts.shape[2] == 0;
  return is_empty ? nullptr : experts.pointers != nullptr ? experts.pointers : experts.data;
}
[[nodiscard]] inline const void* memory_of(const mpi_router_matrix& matrix) {
  return matrix.shape[0] == 0 || matrix.shape[1] == 0 ? nullptr : matrix.data;
}

}  // namespace mpi_router_c
