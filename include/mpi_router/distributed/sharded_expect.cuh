// What the sharded calls on GPUs refuse, for every layer before any has begun, and on ranks that have nothing
// too. What only the other ranks know is not compared: that would have to wait on the host.
#pragma once

#include <mpi_router/cuda/detail/plan/expect.hpp>
#include <mpi_router/distributed/held.cuh>

#include <array>
#include <initializer_list>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

template <class U>
void expect_like_experts(const char* name, const char* which, const expert_shape& s,
                         const matrix_view<U, device_space>& m) {
  expect(m.rows() == s.num_experts && m.cols() == s.hidden_dim, name, ": ", which, " of shape [", m.rows(),
         ", ", m.cols(), "] for experts [", s.num_experts, ", ", s.ffn_dim, ", ", s.hidden_dim, "]");
}

/// The extents, the radius, and room in the message for what this rank has.
template <class Layer>
void expect_held(const char* name, const Layer& layer, const step_options& options) {
  const expert_shape& s = layer.experts.shape();
  expect(s.num_experts <= most_extent && s.ffn_dim <= most_extent && s.hidden_dim <= most_hidden, name,
         ": experts [", s.num_experts, ", ", s.ffn_dim, ", ", s.hidden_dim,
         "], where D may be up to 32768 and N and F up to 2^30 - 1");
  static_cast<void>(expect_radius(name, options, total_experts(layer.experts)));
  using held_type = std::remove_cvref_t<decltype(layer.experts)>;
  if constexpr (has_place<held_type>) {
    expect(layer.most <= 0 || place_of(layer.experts).count <= layer.most, name, ": this rank has a part of ",
           place_of(layer.experts).count, is_columns<held_type> ? " columns" : " experts",
           ", where no rank has more than ", layer.most);
  }
  expect_like_experts(name, "the router", s, layer.router);
}

template <class Held>
void expect_held_apart(const char* name, const Held& experts, std::initializer_list<named_range> written,
                       std::span<const named_range> told = {}) {
  for_each_view(experts, [&](const auto& view) { expect_weights_apart(name, view, written, told); });
}

/// The steps and the shapes, of which the size of the workspace is made.
template <class Layers>
void expect_forward_shapes(const char* name, const Layers& layers, const step_options& options) {
  expect(options.steps == 1, name, ": ", options.steps, " steps; take them one call at a time");
  for (const auto& layer : layers) {
    expect_held(name, layer, options);
    expect_like_experts(name, "the output", layer.experts.shape(), layer.rows);
  }
}

/// What is written lies apart from all that any layer reads later.
template <class Layers>
void expect_sharded_forward(const char* name, const Layers& layers, const workspace& scratch,
                            std::size_t bytes) {
  expect_workspace(name, scratch, bytes);
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  for (const auto& layer : layers) {
    const named_range router{"the router", core::addresses(layer.router)};
    const named_range rows{"the output", core::addresses(layer.rows)};
    expect_in_place_or_apart(name, layer.router, layer.rows);
    expect_apart(name, work, {router, rows});
    expect_told_apart(name, layer.told, layer.saved, layer.rows.rows(), layer.rows.cols(),
                      {router, rows, work});
    const auto told = told_by_a_step(layer.told, layer.saved, layer.rows.rows(), layer.rows.cols());
    expect_held_apart(name, layer.experts, {work, rows}, told);
    for (const auto& other : layers) {
      if (&other == &layer) continue;
      const auto others = told_by_a_step(other.told, other.saved, other.rows.rows(), other.rows.cols());
      const named_range other_router{"the router of another layer", core::addresses(other.router)};
      const named_range other_rows{"the output of another layer", core::addresses(other.rows)};
      expect_apart(name, rows, {other_router, other_rows});
      expect_held_apart(name, other.experts, {rows}, told);
      for (const named_range& number : told) {
        expect_apart(name, number, {other_router, other_rows});
        expect_apart(name, number, others);
      }
    }
  }
}

/// The shapes of one layer's backward, and that the forward has left what it needs.
template <class Layer>
void expect_backward_of(const char* name, const Layer& layer, const step_options& options) {
  expect_held(name, layer, options);
  const expert_shape& a = layer.experts.shape();
  if constexpr (!is_decoded<std::remove_cvref_t<decltype(layer.experts)>>) {
    const expert_shape& b = layer.grad_experts.shape();
    expect(a == b, name, ": gradient of shape [", b.num_experts, ", ", b.ffn_dim, ", ", b.hidden_dim,
           "] for experts [", a.num_experts, ", ", a.ffn_dim, ", ", a.hidden_dim, "]");
    if constexpr (has_place<std::remove_cvref_t<decltype(layer.experts)>>) {
      expect(layer.experts.placement() == layer.grad_experts.placement(), name,
             ": the gradient is of another part of the experts");
    }
  }
  expect_like_experts(name, "the gradient of the rows", a, layer.grad_rows);
  expect_like_experts(name, "the gradient to the router", a, layer.grad_router);
  const index_t size = a.num_experts * a.hidden_dim;
  expect(size == 0 || (layer.saved.direction != nullptr && layer.saved.image_norm != nullptr), name,
         ": direction and image_norm of the forward are needed");
  expect(a.num_experts == 0 || layer.saved.statuses != nullptr, name,
         ": the statuses of the forward are needed");
}

/// The factors of the gradient to experts that are decoded as they are read: of what is here.
template <class Layer>
[[nodiscard]] std::array<named_range, 3> factors_of(const Layer& layer) {
  index_t neurons = 0, columns = 0;
  for_each_view(layer.experts, [&](const auto& experts) {
    neurons += experts.num_experts() * experts.ffn_dim();
    columns += experts.num_experts() * experts.hidden_dim();
  });
  return {{{"a projection", addresses_of(layer.grad_experts.projection, neurons)},
           {"a dual projection", addresses_of(layer.grad_experts.dual_projection, neurons)},
           {"the dual rows", addresses_of(layer.grad_experts.dual_row, columns)}}};
}

/// What a layer's backward writes meets nothing that it or another reads or writes.
template <class Layer>
void expect_backward_apart(const char* name, const Layer& layer, const Layer& other,
                           const named_range& work) {
  const named_range to_router{"the gradient to the router", core::addresses(layer.grad_router)};
  const index_t n = other.experts.shape().num_experts;
  const std::initializer_list<named_range> read{
      {"the router", core::addresses(other.router)},
      {"the gradient of the rows", core::addresses(other.grad_rows)},
      {"the saved direction", addresses_of(other.saved.direction, n * other.experts.shape().hidden_dim)},
      {"the saved norms", addresses_of(other.saved.image_norm, n)},
      {"the saved statuses", addresses_of(other.saved.statuses, n)}};
  expect_apart(name, to_router, read);
  expect_apart(name, work, read);
  expect_held_apart(name, other.experts, {to_router, work});
  if (&other != &layer) {
    expect_apart(name, to_router, {{"the gradient to another router", core::addresses(other.grad_router)}});
  }
  if constexpr (is_decoded<std::remove_cvref_t<decltype(layer.experts)>>) {
    const std::array<named_range, 3> ours = factors_of(layer), theirs = factors_of(other);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      expect_apart(name, ours[i], read);
      expect_apart(name, ours[i], {work, {"the gradient to a router", core::addresses(other.grad_router)}});
      expect_held_apart(name, other.experts, {ours[i]});
      for (std::size_t k = &other == &layer ? i + 1 : 0; k < theirs.size(); ++k) {
        expect_apart(name, ours[i], {theirs[k]});
      }
    }
  } else {
    expect_held_apart(name, layer.grad_experts, read);
    expect_held_apart(name, layer.grad_experts, {work});
    expect_held_apart(name, other.grad_experts, {to_router});
    for_each_view(layer.grad_experts, [&](const auto& view) {
      if (view.table() != nullptr) return;
      const named_range mine{"the gradient to the experts", core::addresses(view)};
      expect_held_apart(name, other.experts, {mine});
      if (&other != &layer) expect_held_apart(name, other.grad_experts, {mine});
    });
  }
}

/// The options and the shapes, of which the size of the workspace is made.
template <class Layers>
void expect_backward_shapes(const char* name, const Layers& layers, const step_options& options) {
  expect(options.steps == 1, name, ": the gradient of ", options.steps,
         " steps; take it of one step at a time");
  expect(options.through != differentiate::none, name,
         ": nothing is differentiated, as options.through says");
  for (const auto& layer : layers) expect_backward_of(name, layer, options);
}

template <class Layers>
void expect_sharded_backward(const char* name, const Layers& layers, const workspace& scratch,
                             std::size_t bytes) {
  expect_workspace(name, scratch, bytes);
  const named_range work{"the workspace", addresses_of(scratch, bytes)};
  for (const auto& layer : layers) {
    expect_apart(name, work, {{"the gradient to the router", core::addresses(layer.grad_router)}});
    for (const auto& other : layers) {
      expect_backward_apart(name, layer, other, work);
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
