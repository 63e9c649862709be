// The gradient of the gate matrices through the router, at no cost: as two more rows of the product that
// makes the weight gradient of experts whose tokens are sorted.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/context.cuh>
#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/grouped/kernel.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/cuda/types.hpp>

#include <cstddef>
#include <cstdint>

MPIROUTER_CUDA_BEGIN

/// The operands of Ā_e = Σ_t g_t x_tᵀ over the rows t of expert e: grads [T, F], tokens [T, D], both of one
/// storage type. Expert e ends before row offsets[e] ([N], in device memory), the last at T; its last two
/// rows are padding.
template <class T>
struct grouped_operands {
  matrix_view<T, device_space> grads;
  matrix_view<T, device_space> tokens;
  const std::int32_t* offsets = nullptr;
  index_t num_experts = 0;
};

/// Bytes in which put_factors keeps what was in the padding: 2 N (F + D) elements.
template <class T>
[[nodiscard]] std::size_t kept_padding(const grouped_operands<T>& of) {
  return static_cast<std::size_t>(2 * of.num_experts * (of.grads.cols() + of.tokens.cols())) * sizeof(T);
}

MPIROUTER_CUDA_END

MPIROUTER_CUDA_DETAIL_BEGIN

/// Shapes and memory of the operands, and the swap but for what goes in.
template <class T>
[[nodiscard]] grouped_args expect_grouped(const char* name, const context& ctx, const grouped_operands<T>& of,
                                          const workspace& kept) {
  const index_t n = of.num_experts;
  const index_t tokens = of.tokens.rows();
  expect_context(name, ctx);
  expect(n >= 0 && n <= most_extent && tokens <= most_extent && of.grads.cols() <= most_extent &&
             of.tokens.cols() <= most_extent,
         name, ": ", n, " experts, gradients [", of.grads.rows(), ", ", of.grads.cols(), "], tokens [",
         tokens, ", ", of.tokens.cols(), "], where 2^30 - 1 are the most of each");
  expect(of.grads.rows() == tokens, name, ": gradients [", of.grads.rows(), ", ", of.grads.cols(),
         "], tokens [", tokens, ", ", of.tokens.cols(), "]");
  expect(n == 0 || of.offsets != nullptr, name, ": null offsets");
  expect_workspace(name, kept, kept_padding(of));
  const named_range grads{"the gradients", core::addresses(of.grads)};
  const named_range inputs{"the tokens", core::addresses(of.tokens)};
  const named_range ends{"the offsets", addresses_of(of.offsets, n)};
  expect_apart(name, {"the kept padding", addresses_of(kept, kept_padding(of))}, {grads, inputs, ends});
  expect_apart(name, grads, {inputs, ends});
  expect_apart(name, inputs, {ends});
  T* const first = static_cast<T*>(kept.data);
  const index_t f = of.grads.cols();
  const index_t d = of.tokens.cols();
  return {{{any_matrix(of.grads), {}, {}, any_matrix(first, f), static_cast<int>(f)},
           {any_matrix(of.tokens), {}, {}, any_matrix(first + 2 * n * f, d), static_cast<int>(d), true}},
          of.offsets,
          static_cast<int>(n),
          static_cast<int>(tokens)};
}

inline void swap_padding(const context& ctx, const grouped_args& args) {
  if (args.experts == 0 || args.tokens == 0) {
    return;
  }
  launch("swap_padding_kernel", ctx, {static_cast<unsigned>(2 * args.experts), generic_threads, 0, 1, 2},
         swap_padding_kernel<>, args);
}

MPIROUTER_CUDA_DETAIL_END

MPIROUTER_CUDA_BEGIN

/// Puts the factors of the router's gradient, Ā_e = y z̄ᵀ + w rᵀ (§ router_rows_vjp_factored), into the
/// padding of each expert: y and w into the last two rows of its gradients, z̄ and r, the router's row, into
/// those of its tokens, rounded to their type. The product that comes then makes both gradients. f16 lacks
/// the range of y and w. What was there is kept for restore_padding, in kept_padding(operands) bytes aligned
/// to 256; until that nobody else may use the operands.
///
/// factors [N, F] and [N, D], contiguous; router [N, D] of any storage type. An element of it that is not
/// finite becomes 0: such a row has no step, and w = 0. The offsets are looked at on the GPU: where an expert
/// has no two rows, or the last does not end at T, NaN goes into the last row of every expert that has one,
/// and so into its gradient. Stream-ordered, one launch of O(N (F + D)); no synchronisation, no allocation;
/// may be captured in a graph. Throws usage_error for shapes and memory.
template <class T, class R>
void put_factors(const context& ctx, const grouped_operands<T>& operands, const gradient_factors& factors,
                 const matrix_view<R, device_space>& router, const workspace& kept) {
  constexpr const char* name = "cuda::put_factors";
  detail::grouped_args args = detail::expect_grouped(name, ctx, operands, kept);
  const index_t n = operands.num_experts;
  const index_t f = operands.grads.cols();
  const index_t d = operands.tokens.cols();
  detail::expect(router.rows() == n && router.cols() == d, name, ": the router is [", router.rows(), ", ",
                 router.cols(), "], ", n, " experts and tokens [", operands.tokens.rows(), ", ", d,
                 "] ask for [", n, ", ", d, "]");
  const bool has_sums = factors.projection != nullptr && factors.dual_projection != nullptr;
  detail::expect((n * f == 0 || has_sums) && (n * d == 0 || factors.dual_row != nullptr), name,
                 ": null factors");
  const detail::named_range written[] = {
      {"the gradients", core::addresses(operands.grads)},
      {"the tokens", core::addresses(operands.tokens)},
      {"the kept padding", detail::addresses_of(kept, kept_padding(operands))}};
  detail::expect_apart(name, {"the router", core::addresses(router)}, written);
  detail::expect_apart(name, {"y", detail::addresses_of(factors.projection, n * f)}, written);
  detail::expect_apart(name, {"w", detail::addresses_of(factors.dual_projection, n * f)}, written);
  detail::expect_apart(name, {"z", detail::addresses_of(factors.dual_row, n * d)}, written);
  args.sides[0].first = detail::any_matrix(factors.projection, f);
  args.sides[0].second = detail::any_matrix(factors.dual_projection, f);
  args.sides[1].first = detail::any_matrix(factors.dual_row, d);
  args.sides[1].second = detail::any_matrix(router);
  detail::swap_padding(ctx, args);
}

/// Puts back what put_factors kept, with the same offsets: the operands are as before, bit for bit. Cost and
/// errors likewise.
template <class T>
void restore_padding(const context& ctx, const grouped_operands<T>& operands, const workspace& kept) {
  detail::swap_padding(ctx, detail::expect_grouped("cuda::restore_padding", ctx, operands, kept));
}

MPIROUTER_CUDA_END
