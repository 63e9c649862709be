// The batched step and its backward over experts of one type on a GPU: compiled in one translation unit for
// each. The types of router, rows and their gradients are known to the kernels when they run, and multiply
// nothing.
#pragma once

#include "call.hpp"

namespace mpi_router_c {

struct gpu_forward {
  const char* what;
  const cuda::context& ctx;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  const mpi_router_matrix& rows;
  const router_options& options;
  const cuda::step_by_products& told;
  const cuda::saved_step& saved;
  const cuda::workspace& scratch;
};

struct gpu_backward {
  const char* what;
  const cuda::context& ctx;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  const router_options& options;
  const cuda::saved_step& saved;
  const mpi_router_matrix& grad_rows;
  const mpi_router_matrix* grad_router;  // null: not wanted
  const cuda::workspace& scratch;
};

/// What there is for experts of one type.
struct gpu_rows_functions {
  std::size_t (*forward_bytes)(const cuda::context&, const mpi_router_experts&, index_t steps);
  std::size_t (*written_bytes)(const cuda::context&, const mpi_router_experts&,
                               const mpi_router_experts& grad_experts, gradient_mode);
  std::size_t (*factored_bytes)(const cuda::context&, const mpi_router_experts&);
  void (*forward)(const gpu_forward&);
  void (*written)(const gpu_backward&, const mpi_router_experts& grad_experts, gradient_mode);
  void (*factored)(const gpu_backward&, const cuda::gradient_factors&);
};

extern const gpu_rows_functions gpu_rows_of_f64;
extern const gpu_rows_functions gpu_rows_of_f32;
extern const gpu_rows_functions gpu_rows_of_bf16;
extern const gpu_rows_functions gpu_rows_of_f16;

[[nodiscard]] inline const gpu_rows_functions& gpu_rows_of(mpi_router_dtype experts) {
  switch (experts) {
    case MPIROUTER_F64: return gpu_rows_of_f64;
    case MPIROUTER_F32: return gpu_rows_of_f32;
    case MPIROUTER_BF16: return gpu_rows_of_bf16;
    default: return gpu_rows_of_f16;
  }
}

}  // namespace mpi_router_c
