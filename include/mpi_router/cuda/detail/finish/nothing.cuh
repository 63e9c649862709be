// The backward where there is nothing to read: no row had a step.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/cuda/detail/device/dual_source.cuh>
#include <mpi_router/cuda/detail/finish/launch.cuh>

MPIROUTER_CUDA_DETAIL_BEGIN

inline void set_zero(const char* name, const context& ctx, float* to, index_t count) {
  if (to != nullptr && count > 0) {
    expect_device(name, ctx);
    check("cudaMemsetAsync",
          cudaMemsetAsync(to, 0, static_cast<std::size_t>(count) * sizeof(float), ctx.stream));
  }
}

/// Where F or D is 0, no row had a step.
inline void backward_of_nothing(const char* name, const context& ctx, const expert_shape& shape,
                                const dual_source& dual, const any_matrix& grad_router,
                                const gradient_factors& factors) {
  const auto [n, f, d] = shape;
  set_zero(name, ctx, factors.projection, n * f);
  set_zero(name, ctx, factors.dual_projection, n * f);
  set_zero(name, ctx, factors.dual_row, n * d);
  if (grad_router.data != nullptr) {
    const matrix_images gradient{dual.passes_on() ? dual.grad_rows : any_matrix()};
    collect(ctx, n,
            collect_args<matrix_images>{gradient, grad_router, nullptr, nullptr, {}, static_cast<int>(d)});
  }
}

MPIROUTER_CUDA_DETAIL_END
