// What the batched step, its halves and its backward refuse.
#pragma once

#include <mpi_router/core/apart.hpp>
#include <mpi_router/router/router_options.hpp>

#include <array>
#include <cstdio>
#include <span>

MPIROUTER_BEGIN
namespace detail {

template <class R>
void expect_rows(const char* what, const char* name, const expert_shape& shape, const matrix_view<R>& rows) {
  const auto [n, f, d] = shape;
  expect(rows.rows() == n && rows.cols() == d, what, ": the experts are [N = ", n, ", F = ", f, ", D = ", d,
         "], ", name, " is [", rows.rows(), ", ", rows.cols(), "]");
}

/// m is like `other`, N × D.
template <class R, class U>
void expect_like(const char* what, const char* of, const matrix_view<U>& other, const char* name,
                 const matrix_view<R>& m) {
  expect(m.rows() == other.rows() && m.cols() == other.cols(), what, ": ", of, " [", other.rows(), ", ",
         other.cols(), "], ", name, " is [", m.rows(), ", ", m.cols(), "]");
}

template <class S>
void expect_workspace(const char* what, const vector_view<S>& workspace, index_t size) {
  expect(workspace.size() >= size && workspace.is_contiguous(), what, ": the workspace has ",
         workspace.size(), " elements (stride ", workspace.stride(), "), not ", size, " contiguous ones");
}

/// No expert meets what is written, and every pointer of the batch is there. O(1) where the batch has one
/// base pointer, otherwise O(N).
template <class T>
void expect_experts_apart(const char* what, const expert_batch_view<T>& experts,
                          std::span<const named_range> written) {
  for_each_range(experts,
                 [&](const address_range& range) { expect_apart(what, {"a gate matrix", range}, written); });
}

/// The radius is checked as the type that steps are taken in, which may be too narrow for it.
template <Accumulator S>
[[nodiscard]] S expect_options(const char* what, const router_options& options, index_t num_experts) {
  expect(options.steps >= 1, what, ": steps is ", options.steps);
  static_cast<void>(keeps(options.degenerate));  // throws here, not in a task
  const double radius = options.radius.of(num_experts > 0 ? num_experts : 1);
  const S narrowed = static_cast<S>(radius);
  if (!is_finite(narrowed) || !(narrowed > S{0})) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%.9g", radius);
    core::usage_failure(concatenate(what, ": the radius must be positive and finite as ",
                                    sizeof(S) == sizeof(float) ? "float" : "double", ", not ",
                                    digits.data()));
  }
  return narrowed;
}

/// Elements of the tape that are used: all that it needs, or none where it is empty.
template <class S>
[[nodiscard]] index_t expect_tape(const char* what, const vector_view<S>& tape, const expert_shape& shape,
                                  const router_options& options) {
  const index_t needed = router_tape_size(shape, options);
  expect(tape.size() == 0 || (tape.size() >= needed && tape.is_contiguous()), what, ": the tape has ",
         tape.size(), " elements, not ", needed);
  return tape.size() == 0 ? 0 : needed;
}

/// By-products for n experts, or none, and the tape. Returns where they are.
template <Accumulator S>
[[nodiscard]] std::array<named_range, 8> expect_by_products(const char* what,
                                                            const router_by_products<S>& told,
                                                            const expert_shape& shape,
                                                            const router_options& options) {
  const index_t n = shape.num_experts;
  for_each_by_product(told, [&](const char* name, const auto& elements) {
    const auto size = static_cast<index_t>(elements.size());
    expect(size == 0 || size == n, what, ": by-products for ", size, " experts in ", name, ", not ", n);
  });
  const index_t tape = expect_tape(what, told.tape, shape, options);
  return joined(by_product_ranges(told, n), named_range{"the tape", first_elements(told.tape, tape)});
}

}  // namespace detail
MPIROUTER_END
