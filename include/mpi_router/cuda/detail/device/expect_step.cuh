// What a forward and a backward refuse: shapes that do not fit, and memory that overlaps. Experts: a view, or
// others that have a shape.
#pragma once

#include <mpi_router/cuda/detail/device/given_matrix.cuh>
#include <mpi_router/cuda/detail/plan/expect.hpp>

MPIROUTER_CUDA_DETAIL_BEGIN

/// The shapes and the memory of a forward; what is written lies apart from all else, except rows that
/// are the router's.
template <class Experts>
void expect_forward(const char* name, const Experts& experts, const given_matrix& router,
                    const given_matrix& rows, const step_by_products& told, const saved_step& saved,
                    const workspace& scratch, std::size_t bytes) {
  expect_rows(name, "the router", experts, router);
  expect_rows(name, "the output", experts, rows);
  expect_in_place_or_apart(name, router, rows);
  expect_workspace(name, scratch, bytes);
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  const named_range output{"the output", rows.range()};
  const named_range input{"the router", router.range()};
  expect_apart(name, work, {output, input});
  expect_told_apart(name, told, saved, rows.rows(), rows.cols(), {output, input, work});
  expect_weights_apart(name, experts, {work, output}, told_by_a_step(told, saved, rows.rows(), rows.cols()));
}

/// Likewise of the partial form.
template <class Experts>
void expect_images(const char* name, const Experts& experts, const given_matrix& router,
                   const given_matrix& images, const double* energies, const workspace& scratch,
                   std::size_t bytes) {
  expect_rows(name, "the router", experts, router);
  expect_rows(name, "the images", experts, images);
  expect_workspace(name, scratch, bytes);
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  const named_range output{"the images", images.range()};
  const named_range energy{"the energies", addresses_of(energies, experts.num_experts())};
  const named_range input{"the router", router.range()};
  expect_apart(name, output, {input, work, energy});
  expect_apart(name, work, {input, energy});
  expect_apart(name, energy, {input});
  expect_weights_apart(name, experts, {work, output, energy});
}

/// The shapes and the memory of a backward, except for the gradient to the experts; what is written lies
/// apart from all else.
template <class Experts>
void expect_backward(const char* name, const Experts& experts, const given_matrix& router,
                     const saved_step& saved, const given_matrix& grad_rows, const given_matrix& grad_router,
                     const gradient_factors& factors, const workspace& scratch, std::size_t bytes) {
  expect_rows(name, "the router", experts, router);
  expect_rows(name, "the gradient of the rows", experts, grad_rows);
  if (grad_router.is_given()) {
    expect_rows(name, "the gradient to the router", experts, grad_router);
  }
  expect_workspace(name, scratch, bytes);
  const auto [n, f, d] = experts.shape();
  expect(n * d == 0 || (saved.direction != nullptr && saved.image_norm != nullptr), name,
         ": direction and image_norm of the forward are needed");
  expect(n == 0 || saved.statuses != nullptr, name, ": the statuses of the forward are needed");
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  const named_range to_router{"the gradient to the router", grad_router.range()};
  const named_range input{"the router", router.range()};
  const named_range upstream{"the gradient of the rows", grad_rows.range()};
  const named_range direction{"the saved direction", addresses_of(saved.direction, n * d)};
  for (const named_range& factor :
       {named_range{"a projection", addresses_of(factors.projection, n * f)},
        named_range{"a dual projection", addresses_of(factors.dual_projection, n * f)},
        named_range{"the dual rows", addresses_of(factors.dual_row, n * d)}}) {
    expect_apart(name, factor, {input, upstream, direction, to_router, work});
    expect_weights_apart(name, experts, {factor});
  }
  expect_apart(name, to_router, {input, upstream, direction, work});
  expect_apart(name, work, {input, upstream, direction});
  expect_weights_apart(name, experts, {to_router, work});
}

/// The gradient to the experts lies apart from all that is read, and from what else is written.
template <class Experts, class Gradient>
void expect_gradient_apart(const char* name, const Experts& experts, const Gradient& grad_experts,
                           const given_matrix& router, const saved_step& saved, const given_matrix& grad_rows,
                           const given_matrix& grad_router, const core::address_range& work) {
  const index_t size = experts.num_experts() * experts.hidden_dim();
  expect_weights_apart(name, grad_experts,
                       {{"the router", router.range()},
                        {"the gradient of the rows", grad_rows.range()},
                        {"the saved direction", addresses_of(saved.direction, size)},
                        {"the gradient to the router", grad_router.range()},
                        {"the workspace", work}});
  for_each_weight_range(grad_experts, [&](const core::address_range& gradient) {
    for_each_weight_range(experts, [&](const core::address_range& weights) {
      expect_apart(name, {"the gradient to the experts", gradient}, {{"a gate matrix", weights}});
    });
  });
}

MPIROUTER_CUDA_DETAIL_END
