// The launches over the operands of a grouped product.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/device/launch.cuh>
#include <mpi_router/cuda/detail/grouped/kernel.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Of one storage type, whichever it is.
struct given_operands {
  given_matrix grads;   // [T, F]
  given_matrix tokens;  // [T, D]
  const std::int32_t* offsets;
  index_t experts;

  [[nodiscard]] std::size_t kept_bytes() const {
    return static_cast<std::size_t>(2 * experts * (grads.cols() + tokens.cols()) *
                                    bytes_of(grads.elements().format));
  }
  /// What put_factors writes.
  [[nodiscard]] std::array<named_range, 3> written(const workspace& kept) const {
    return {{{"the gradients", grads.range()},
             {"the tokens", tokens.range()},
             {"the kept padding", addresses_of(kept, kept_bytes())}}};
  }
};

inline void expect_operands(const char* name, const context& ctx, const given_operands& of,
                            const workspace& kept) {
  const auto [most, t, f, d] = std::array{most_extent, of.tokens.rows(), of.grads.cols(), of.tokens.cols()};
  expect_context(name, ctx);
  expect(of.experts >= 0 && of.experts <= most && t <= most && f <= most && d <= most, name, ": ", of.experts,
         " experts, gradients [", of.grads.rows(), ", ", f, "], tokens [", t, ", ", d,
         "], where 2^30 - 1 are the most of each");
  expect(of.grads.rows() == t, name, ": gradients [", of.grads.rows(), ", ", f, "], tokens [", t, ", ", d,
         "]");
  expect(of.experts == 0 || of.offsets != nullptr, name, ": null offsets");
  expect_workspace(name, kept, of.kept_bytes());
  expect_apart(name, of.written(kept), {{"the offsets", addresses_of(of.offsets, of.experts)}});
}

/// Rows of an operand, which are kept at `kept`, one behind the other.
[[nodiscard]] inline swapped_rows rows_of(const given_matrix& operand, void* kept) {
  any_matrix there = operand.elements();
  there.data = kept;
  there.row_stride = operand.cols();
  there.col_stride = 1;
  return {operand.elements(), {}, {}, there, static_cast<int>(operand.cols())};
}

/// The swap, except for what goes in: it puts back.
[[nodiscard]] inline grouped_args swap_of(const given_operands& of, const workspace& kept) {
  auto* const first = static_cast<unsigned char*>(kept.data);
  const auto of_grads =
      static_cast<std::size_t>(2 * of.experts * of.grads.cols() * bytes_of(of.grads.elements().format));
  return {{rows_of(of.grads, first), rows_of(of.tokens, first + of_grads)},
          of.offsets,
          static_cast<int>(of.experts),
          static_cast<int>(of.tokens.rows())};
}

inline void swap_padding(const context& ctx, const grouped_args& args) {
  if (args.experts == 0 || args.tokens == 0) {
    return;
  }
  launch("swap_padding_kernel", ctx, {static_cast<unsigned>(2 * args.experts), most_threads, 0, 1, 2},
         swap_padding_kernel<>, args);
}

/// put_factors, which says what it does.
inline void put_factors(const char* name, const context& ctx, const given_operands& of,
                        const gradient_factors& factors, const given_matrix& router, const workspace& kept) {
  const auto [n, f, d] = std::array{of.experts, of.grads.cols(), of.tokens.cols()};
  expect_operands(name, ctx, of, kept);
  expect(router.rows() == n && router.cols() == d, name, ": the router is [", router.rows(), ", ",
         router.cols(), "], ", n, " experts and tokens [", of.tokens.rows(), ", ", d, "] ask for [", n, ", ",
         d, "]");
  const bool has_sums = factors.projection != nullptr && factors.dual_projection != nullptr;
  expect((n * f == 0 || has_sums) && (n * d == 0 || factors.dual_row != nullptr), name, ": null factors");
  expect_apart(name, of.written(kept),
               {{"the router", router.range()},
                {"y", addresses_of(factors.projection, n * f)},
                {"w", addresses_of(factors.dual_projection, n * f)},
                {"z", addresses_of(factors.dual_row, n * d)}});
  grouped_args args = swap_of(of, kept);
  args.sides[0].first = any_matrix(factors.projection, f);
  args.sides[0].second = any_matrix(factors.dual_projection, f);
  args.sides[1].first = any_matrix(factors.dual_row, d);
  args.sides[1].second = router.elements();
  args.sides[1].finite = true;
  swap_padding(ctx, args);
}

inline void restore_padding(const char* name, const context& ctx, const given_operands& of,
                            const workspace& kept) {
  expect_operands(name, ctx, of, kept);
  swap_padding(ctx, swap_of(of, kept));
}

MPIROUTER_CUDA_DETAIL_END
