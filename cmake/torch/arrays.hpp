// From tensors to the structs of the C interface, and what tensors must be.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <sstream>
#include <string>

namespace mpi_router_torch {

using at::Tensor;

/// "Float [8, 256] on cpu"
inline std::string words(const Tensor& t) {
  std::ostringstream out;
  out << c10::toString(t.scalar_type()) << ' ' << t.sym_sizes() << " on " << t.device();
  return out.str();
}

/// One extent; of a tensor without data, whose extents may be symbols, the number that it is from now on.
inline std::int64_t extent(const Tensor& t, std::int64_t axis) {
  return t.sym_size(axis).guard_int(__FILE__, __LINE__);
}

inline mpi_router_dtype dtype_of(const char* what, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return MPIROUTER_F64;
    case at::kFloat: return MPIROUTER_F32;
    case at::kBFloat16: return MPIROUTER_BF16;
    case at::kHalf: return MPIROUTER_F16;
    default:
      TORCH_CHECK_TYPE(false, what, ": ", name, " is ", words(t), ", not Double, Float, BFloat16 or Half");
  }
}

inline mpi_router_device device_of(const Tensor& t) { return t.is_cuda() ? MPIROUTER_CUDA : MPIROUTER_HOST; }

inline void expect_axes(const char* what, const char* name, const Tensor& t, std::int64_t axes,
                        const char* shape) {
  TORCH_CHECK(t.dim() == axes, what, ": ", name, " is ", words(t), ", not ", shape);
}

inline void expect_device(const char* what, const char* name, const Tensor& t, const Tensor& other) {
  TORCH_CHECK(t.device() == other.device(), what, ": ", name, " is ", words(t), ", and not on ",
              other.device(), " with the rest");
}

/// A matrix [N, D] of experts, on their device.
inline void expect_rows(const char* what, const char* name, const Tensor& t, const Tensor& experts) {
  const std::int64_t n = extent(experts, 0);
  const std::int64_t d = extent(experts, 2);
  TORCH_CHECK(t.dim() == 2 && extent(t, 0) == n && extent(t, 1) == d, what, ": ", name, " is ", words(t),
              ", not [", n, ", ", d, "], as the experts, ", words(experts), ", ask");
  expect_device(what, name, t, experts);
}

/// Experts [N, F, D] and a router [N, D] of types that the step takes, on one device.
inline void expect_router(const char* what, const Tensor& experts, const Tensor& router) {
  expect_axes(what, "experts", experts, 3, "[N, F, D]");
  const mpi_router_dtype sums = mpi_router_sums_dtype(dtype_of(what, "experts", experts));
  expect_rows(what, "router", router, experts);
  TORCH_CHECK_TYPE(dtype_of(what, "router", router) != MPIROUTER_F64 || sums == MPIROUTER_F64, what,
                   ": router is ", words(router), " and experts is ", words(experts),
                   ": Double goes with experts of Double alone");
}

inline mpi_router_experts experts_of(const char* what, const char* name, const Tensor& t) {
  return {t.data_ptr(),
          nullptr,
          dtype_of(what, name, t),
          device_of(t),
          {t.size(0), t.size(1), t.size(2)},
          {t.stride(0), t.stride(1), t.stride(2)}};
}

inline mpi_router_matrix matrix_of(const char* what, const char* name, const Tensor& t) {
  return {t.data_ptr(),
          dtype_of(what, name, t),
          device_of(t),
          {t.size(0), t.size(1)},
          {t.stride(0), t.stride(1)}};
}

inline mpi_router_vector vector_of(const char* what, const char* name, const Tensor& t) {
  return {t.data_ptr(), dtype_of(what, name, t), device_of(t), t.size(0), t.stride(0)};
}

inline mpi_router_buffer buffer_of(const Tensor& bytes) { return {bytes.data_ptr(), bytes.numel()}; }

}  // namespace mpi_router_torch
