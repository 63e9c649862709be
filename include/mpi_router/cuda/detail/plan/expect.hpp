// What the calls refuse: shapes that do not fit, and memory that overlaps.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/core/error.hpp>
#include <mpi_router/core/experts.hpp>
#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/detail/plan/tuning.hpp>
#include <mpi_router/cuda/types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>

MPIROUTER_CUDA_DETAIL_BEGIN

using core::concatenate;
using core::expect;

inline void expect_context(const char* what, const context& ctx) {
  expect(ctx.multiprocessors > 0 && ctx.capability >= 80, what, ": a context of capability ", ctx.capability,
         " with ", ctx.multiprocessors, " multiprocessors: use make_context(), on sm_80 or newer");
}

inline void expect_workspace(const char* what, const workspace& scratch, std::size_t bytes) {
  expect(scratch.bytes >= bytes, what, ": a workspace of ", scratch.bytes, " bytes where ", bytes,
         " are needed");
  expect(bytes == 0 || scratch.data != nullptr, what, ": null workspace");
  expect(reinterpret_cast<std::uintptr_t>(scratch.data) % workspace_alignment == 0, what,
         ": the workspace is not aligned to ", workspace_alignment);
}

/// Experts: a view, or others that have a shape.
template <class Experts, class Matrix>
void expect_rows(const char* what, const char* name, const Experts& experts, const Matrix& m) {
  const auto [n, f, d] = experts.shape();
  expect(m.rows() == n && m.cols() == d, what, ": ", name, " of shape [", m.rows(), ", ", m.cols(),
         "] for experts [", n, ", ", f, ", ", d, "]");
}

template <class Experts>
void expect_experts(const char* what, const Experts& experts) {
  const auto [n, f, d] = experts.shape();
  expect(n <= most_extent && f <= most_extent && d <= most_hidden, what, ": experts [", n, ", ", f, ", ", d,
         "], where D may be up to 32768 and N and F up to 2^30 - 1");
}

/// C for a call that knows of `num_experts` experts in all.
[[nodiscard]] inline double expect_radius(const char* what, const step_options& options,
                                          index_t num_experts) {
  const double radius = options.radius.of(num_experts > 0 ? num_experts : 1);
  expect(radius > 0 && is_finite(radius), what, ": the radius must be positive and finite, not ", radius);
  return radius;
}

using core::is_in_place;

/// The rows are written where the router is read, each element where it was, or apart from it.
template <class Router, class Rows>
void expect_in_place_or_apart(const char* what, const Router& router, const Rows& rows) {
  expect(is_in_place(router, rows) || !core::overlap(router, rows), what,
         ": the router and the output overlap");
}

using mpi_router::detail::addresses_of;
using mpi_router::detail::expect_apart;
using mpi_router::detail::named_range;
/// The bytes of a workspace that a call uses: there may be more.
[[nodiscard]] inline core::address_range addresses_of(const workspace& scratch, std::size_t bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(scratch.data);
  return {first, first + bytes};
}

/// All that a step of [N, D] tells besides the rows.
[[nodiscard]] inline std::array<named_range, 10> told_by_a_step(const step_by_products& told,
                                                                const saved_step& saved, index_t n,
                                                                index_t d) {
  return mpi_router::detail::joined(mpi_router::detail::by_product_ranges(told, n),
                                    named_range{"the saved direction", addresses_of(saved.direction, n * d)},
                                    named_range{"the saved norms", addresses_of(saved.image_norm, n)},
                                    named_range{"the saved statuses", addresses_of(saved.statuses, n)});
}
/// They meet neither each other nor what else the call reads and writes; but one array may take the norms of
/// the images, or the statuses, both times: the same numbers are written.
inline void expect_told_apart(const char* what, const step_by_products& told, const saved_step& saved,
                              index_t n, index_t d, std::initializer_list<named_range> others) {
  saved_step besides = saved;
  besides.image_norm = saved.image_norm == told.image_norm ? nullptr : saved.image_norm;
  besides.statuses = saved.statuses == told.statuses ? nullptr : saved.statuses;
  expect_apart(what, told_by_a_step(told, besides, n, d), others);
}

/// use(range) for memory that weights are known to lie in: of a view all of it, unless that is a table in
/// device memory, which the host does not read; of others what they say.
template <class Experts, class Use>
void for_each_weight_range(const Experts& weights, const Use& use) {
  if constexpr (requires { weights.table(); }) {
    if (weights.table() == nullptr) use(core::addresses(weights));
  } else if constexpr (requires { weights.ranges(); }) {
    for (const core::address_range& range : weights.ranges()) use(range);
  }
}

/// The weights meet nothing that is written.
template <class Experts>
void expect_weights_apart(const char* what, const Experts& weights,
                          std::initializer_list<named_range> written,
                          std::span<const named_range> told = {}) {
  for_each_weight_range(weights, [&](const core::address_range& range) {
    const named_range all{"a gate matrix", range};
    expect_apart(what, all, written);
    expect_apart(what, all, told);
  });
}

/// What every backward asks of its options.
inline void expect_one_step_back(const char* what, const step_options& options) {
  expect(options.steps == 1, what, ": the gradient of ", options.steps,
         " steps; take it of one step at a time");
  expect(options.through != differentiate::none, what,
         ": nothing is differentiated, as options.through says");
}

MPIROUTER_CUDA_DETAIL_END
