// The same calls on a GPU: the current stream of the tensors' device, and scratch from libtorch's allocator.
// What asks the CUDA runtime lies here; built without it (MPIROUTER_TORCH_CUDA), tensors on a GPU are
// refused.
#pragma once

#include "arrays.hpp"
#include "run.hpp"

#if defined(MPIROUTER_TORCH_CUDA)

#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <mutex>
#include <unordered_map>

namespace mpi_router_torch::gpu {

/// What the driver was asked about a device, once.
inline mpi_router_cuda facts_of(const c10::Device& device) {
  static std::mutex mutex;
  static std::unordered_map<c10::DeviceIndex, mpi_router_cuda> known;
  const std::lock_guard lock(mutex);
  const auto [at, is_new] = known.try_emplace(device.index());
  if (is_new) {
    const mpi_router_code code = mpi_router_cuda_of_current_device(&at->second);
    if (code != MPIROUTER_OK) {
      known.erase(at);
      must(code);
    }
  }
  return at->second;
}

/// One call on the device of a tensor and its current stream. The scratch may be given back to the allocator
/// while the call is under way: what gets it next is ordered behind on the same stream.
class call {
 public:
  explicit call(const Tensor& on) : guard_(on.device()), cuda_(facts_of(on.device())), on_(on) {
    cuda_.stream = c10::cuda::getCurrentCUDAStream(on.device().index()).stream();
  }
  /// size(cuda, &bytes) asks how much scratch the call needs.
  template <class Size>
  const mpi_router_cuda* with_scratch(const Size& size) {
    std::int64_t bytes = 0;
    must(size(&cuda_, &bytes));
    scratch_ = at::empty({bytes}, on_.options().dtype(at::kByte));
    cuda_.workspace = buffer_of(scratch_);
    return &cuda_;
  }
  const mpi_router_cuda* without_scratch() { return &cuda_; }

 private:
  c10::DeviceGuard guard_;
  mpi_router_cuda cuda_;
  const Tensor& on_;
  Tensor scratch_;
};

inline void rows(const Tensor& on, const mpi_router_experts& experts, const mpi_router_matrix& router,
                 const mpi_router_options& options, const mpi_router_matrix& rows,
                 const mpi_router_by_products& told, const mpi_router_buffer* tape) {
  call here(on);
  const auto* cuda = here.with_scratch([&](const mpi_router_cuda* c, std::int64_t* bytes) {
    return mpi_router_cuda_rows_workspace_size(c, &experts, &options, bytes);
  });
  must(mpi_router_cuda_rows(cuda, &experts, &router, &options, &rows, &told, tape));
}

/// grad_router is written; grad_experts, where it is not null, as the mode says.
inline void rows_vjp(const Tensor& on, const mpi_router_experts& experts, const mpi_router_matrix& router,
                     const mpi_router_options& options, const mpi_router_buffer& tape,
                     const mpi_router_matrix& grad_rows, const mpi_router_matrix& grad_router,
                     const mpi_router_experts* grad_experts, std::int32_t mode) {
  call here(on);
  const auto* cuda = here.with_scratch([&](const mpi_router_cuda* c, std::int64_t* bytes) {
    return mpi_router_cuda_rows_vjp_workspace_size(c, &experts, grad_experts, mode, bytes);
  });
  must(grad_experts != nullptr ? mpi_router_cuda_rows_vjp(cuda, &experts, &router, &options, &tape,
                                                          &grad_rows, &grad_router, grad_experts, mode)
                               : mpi_router_cuda_rows_vjp_detached(cuda, &experts, &router, &options, &tape,
                                                                   &grad_rows, &grad_router));
}

inline void gate(const Tensor& on, const mpi_router_matrix& logits, const mpi_router_gating_options& options,
                 const mpi_router_vector* selection_bias, const std::uint8_t* mask,
                 const mpi_router_matrix& weights, std::int32_t* experts, std::uint8_t* statuses) {
  call here(on);
  must(mpi_router_cuda_gate(here.without_scratch(), &logits, &options, selection_bias, mask, &weights,
                            experts, statuses, nullptr));
}

}  // namespace mpi_router_torch::gpu

#else

namespace mpi_router_torch::gpu {

template <class... Arguments>
[[noreturn]] void refuse(const Tensor& on, const Arguments&...) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "mpi_router: a tensor is ", words(on),
                              ", and mpi_router::torch was built without CUDA");
}
template <class... Arguments>
[[noreturn]] void rows(const Arguments&... arguments) {
  refuse(arguments...);
}
template <class... Arguments>
[[noreturn]] void rows_vjp(const Arguments&... arguments) {
  refuse(arguments...);
}
template <class... Arguments>
[[noreturn]] void gate(const Arguments&... arguments) {
  refuse(arguments...);
}

}  // namespace mpi_router_torch::gpu

#endif
