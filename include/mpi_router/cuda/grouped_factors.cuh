// The gradient of the gate matrices through the router without a pass over the weights' gradient: as two more
// rows of the product that makes the weight gradient of experts whose tokens are sorted.
#pragma once

#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/grouped/launch.cuh>
#include <mpi_router/cuda/types.hpp>

#include <cstddef>
#include <cstdint>

MPIROUTER_CUDA_BEGIN

/// The operands of the weight gradients G_e = Σ_t g_t x_tᵀ over the rows t of expert e: grads [T, F], tokens
/// [T, D], both of one storage type. Expert e ends before row offsets[e] ([N], in device memory), the last at
/// T; its last two rows are padding.
template <class T>
struct grouped_operands {
  matrix_view<T, device_space> grads;
  matrix_view<T, device_space> tokens;
  const std::int32_t* offsets = nullptr;
  index_t num_experts = 0;

  [[nodiscard]] detail::given_operands given() const { return {grads, tokens, offsets, num_experts}; }
};

/// Bytes in which put_factors keeps what was in the padding: 2 N (F + D) elements.
template <class T>
[[nodiscard]] std::size_t kept_padding(const grouped_operands<T>& operands) {
  return operands.given().kept_bytes();
}

/// Puts the factors of the router's gradient, Ā_e = y z̄ᵀ + w rᵀ (see router_rows_vjp_factored), into the
/// padding of each expert: y and w into the last two rows of its gradients, z̄ and r, the router's row, into
/// those of its tokens, rounded to their type. The next product then makes G_e + Ā_e. f16 lacks the range of
/// y and w. What was there is kept for restore_padding, in kept_padding(operands) bytes aligned to 256; until
/// then nobody else may use the operands.
///
/// factors [N, F] and [N, D], contiguous; router [N, D] of any storage type. An element of it that is not
/// finite becomes 0: such a row has no step, and w = 0. The offsets are looked at on the GPU: where an expert
/// has no two rows, or the last does not end at T, NaN goes into the last row of every expert that has one,
/// and so into its gradient. Stream-ordered, one launch of O(N (N + F + D)); no synchronisation, no
/// allocation; may be captured in a graph. Throws usage_error for shapes and memory.
template <class T, class R>
void put_factors(const context& ctx, const grouped_operands<T>& operands, const gradient_factors& factors,
                 const matrix_view<R, device_space>& router, const workspace& kept) {
  detail::put_factors("cuda::put_factors", ctx, operands.given(), factors, router, kept);
}

/// Puts back what put_factors kept, with the same offsets: the operands are as before, bit for bit, but that
/// a NaN may be another. Cost and errors likewise.
template <class T>
void restore_padding(const context& ctx, const grouped_operands<T>& operands, const workspace& kept) {
  detail::restore_padding("cuda::restore_padding", ctx, operands.given(), kept);
}

MPIROUTER_CUDA_END
