// Matrices whose name does not tell, or not for all models, whether they hold gates, gate and up in one, or
// up alone.
#pragma once

#include <mpi_router/io/moe/hints.hpp>
#include <mpi_router/io/moe/up_and_down.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Whether there are down projections of so many neurons; `neurons` of those that a layer's gates have.
template <class Neurons>
[[nodiscard]] bool has_down(const checkpoint& model, const moe_layer& layer, Neurons neurons) {
  moe_layer other = layer;
  for (auto& gate : other.gates) {
    gate.ffn_dim = neurons(gate.ffn_dim);
  }
  const auto fits = [&](const std::string& name) {
    const auto tensors = find_gates(model, name);
    return !tensors.tensors.empty() && tensors.first().rank() >= 2 &&
           wrong_tensors(layer, name, tensors).empty() &&
           (!blocks_in(other, tensors, gate_layout::ndf, layer.gate_dim()).empty() ||
            !blocks_in(other, tensors, gate_layout::nfd, layer.gate_dim()).empty());
  };
  return std::ranges::any_of(names_of_part(layer, expert_part::down), fits);
}

/// What the matrices of a layer hold that is taken to have gate and up in one: the neurons of the down
/// projections tell, or else config.json, and of names that say both, that of an architecture without gates
/// alone. (Megatron's linear_fc1 is either.)
[[nodiscard]] inline held_parts parts_held(const checkpoint& model, const moe_layer& layer,
                                           const std::optional<model_config>& config) {
  if (has_down(model, layer, [](index_t f) { return f; })) {
    return held_parts::both;
  }
  if (has_down(model, layer, [](index_t f) { return 2 * f; })) {
    return held_parts::up_alone;
  }
  const bool says_both = kind_of(layer.gate_name) == matrix_kind::gate_and_up;
  const bool may_lack_gates = !says_both || (config && is_ungated_architecture(*config));
  return may_lack_gates ? parts_by_config(layer.ffn_dim, config) : held_parts::both;
}

/// Whether gates, or up projections alone, have twice the neurons of the down projections: they hold gate and
/// up, though other models have their name for one of them.
[[nodiscard]] inline bool holds_both(const checkpoint& model, const moe_layer& layer) {
  const auto same = [](index_t f) { return f; };
  const auto half = [](index_t f) { return f % 2 == 0 ? f / 2 : -1; };
  return !is_fused(layer.layout) && !has_down(model, layer, same) && has_down(model, layer, half);
}

/// Whether the down projections of stacks of gate and up lie the other way than these do, [N, F, D] beside
/// [N, 2F, D]: 2F is D, and config.json is of a release that has the axes otherwise.
[[nodiscard]] inline bool is_turned_beside_down(const checkpoint& model, const moe_layer& layer) {
  using enum gate_layout;
  if (!is_fused(layer.layout) || layer.has_one_tensor_each() || layer.layout_known_by != "config.json") {
    return false;
  }
  const auto lies = [&](gate_layout how) {
    return std::ranges::any_of(names_of_part(layer, expert_part::down), [&](const std::string& name) {
      const auto tensors = find_gates(model, name);
      return !tensors.tensors.empty() && wrong_tensors(layer, name, tensors).empty() &&
             !blocks_in(layer, tensors, how, layer.gate_dim()).empty();
    });
  };
  return ffn_comes_first(layer.layout) ? lies(nfd) && !lies(ndf) : lies(ndf) && !lies(nfd);
}

/// Says of layers whose matrices are taken to hold gate and up that nothing but their name does, and that not
/// for all models.
inline void note_assumed_gates(const checkpoint& model, const std::optional<model_config>& config,
                               found_parts& found) {
  for (const auto& layer : found.result.layers) {
    if (is_fused(layer.layout) && layer.part == expert_part::gate &&
        parts_held(model, layer, config) == held_parts::unknown) {
      const auto plain = ffn_comes_first(layer.layout) ? gate_layout::nfd : gate_layout::ndf;
      found.result.omissions.push_back(
          {layer.gates.front().tensor->name(),
           core::concatenate("of shape ", to_string(layer.gates.front().tensor->shape()),
                             ", is taken to hold gate and up, and would hold up alone of experts without "
                             "gates: there is no ",
                             list_of_names(layer, names_of_part(layer, expert_part::down)),
                             " beside it, whose F would tell"),
           omission_kind::set_aside,
           0,
           0,
           {{patterns_of(layer.router->name(), layer.gate_name), plain, layer.layout_of_router}}});
    }
  }
}

/// A layer as a family has it, if its matrices hold as much as the family's: up alone of experts without
/// gates, which have twice the neurons, is said to be that; what may be either is a question; and what holds
/// gate and up where the family has gates is not the family's.
[[nodiscard]] inline attempt checked_by_width(const checkpoint& model, const weight& router,
                                              gate_search search, attempt made,
                                              const std::optional<model_config>& config) {
  const auto& layer = *made.layer;
  if (!is_fused(layer.layout)) {
    return holds_both(model, layer) ? attempt{} : made;
  }
  if (is_turned_beside_down(model, layer)) {
    search.of_architecture.clear();
    made = assemble(model, router, search);
    made.reason += "; config.json tells one, and the down projections lie as beside the other";
    return made;
  }
  const auto held = parts_held(model, layer, config);
  if (held == held_parts::up_alone) {
    search.family += ", without gates";
    search.layouts = {gate_layout::nfd, gate_layout::ndf};
    search.of_architecture.clear();
    search.in_mxfp4 = std::nullopt;
    search.unnamed.clear();
    search.part = expert_part::up;
    return assemble(model, router, search);
  }
  // One tensor for all, [N, 2F, D]: Megatron's. Experts with a tensor each, and Aria's, which is turned, are
  // taken to have gates, see note_assumed_gates.
  const bool is_question =
      held == held_parts::unknown && !layer.has_one_tensor_each() && ffn_comes_first(layer.layout);
  if (!is_question) {
    return made;
  }
  const auto missing = list_of_names(layer, names_of_part(layer, expert_part::down));
  search.layouts.push_back(gate_layout::nfd);
  made = assemble(model, router, search);
  made.reason += core::concatenate("; there is no ", missing, " beside it, whose F would tell");
  return made;
}

}  // namespace detail::moe

MPIROUTER_END
