// Matrices whose name does not tell, or not for all models, whether they hold gates, gate and up in one, or
// up alone.
#pragma once

#include <mpi_router/io/moe/order_of_halves.hpp>
#include <mpi_router/io/moe/up_and_down.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Whether the down projections among these tensors, one for each expert that has one here, have so many
/// neurons.
template <class Neurons>
[[nodiscard]] bool fit_each(const moe_layer& layer, const gate_tensors& tensors, Neurons neurons) {
  using enum gate_layout;
  bool any = false;
  for (index_t e = 0; e < layer.num_experts; ++e) {
    const auto one = tensors.tensors.find(layer.first_expert + e);
    if (one == tensors.tensors.end()) {
      continue;
    }
    const auto& w = *one->second;
    const auto ffn_dim = neurons(layer.gates[static_cast<std::size_t>(e)].ffn_dim);
    const bool fits = w.problem().empty() && (ffn_dim_of(ndf, w.shape(), 1, layer.gate_dim()) == ffn_dim ||
                                              ffn_dim_of(nfd, w.shape(), 1, layer.gate_dim()) == ffn_dim);
    if (!fits) {
      return false;
    }
    any = true;
  }
  return any;
}

/// Whether there are down projections of so many neurons, be it of some experts alone; `neurons` of those
/// that a layer's gates have.
template <class Neurons>
[[nodiscard]] bool has_down(const checkpoint& model, const moe_layer& layer, Neurons neurons) {
  moe_layer other = layer;
  for (auto& gate : other.gates) {
    gate.ffn_dim = neurons(gate.ffn_dim);
  }
  const auto fits = [&](const std::string& name) {
    const auto tensors = find_gates(model, name);
    if (tensors.tensors.empty() || tensors.first().rank() < 2) {
      return false;
    }
    return tensors.one_each ? fit_each(layer, tensors, neurons)
                            : wrong_tensors(layer, name, tensors).empty() &&
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
  if (held != held_parts::unknown) {
    return with_order_of_halves(model, router, std::move(search), std::move(made));
  }
  const auto missing = list_of_names(layer, names_of_part(layer, expert_part::down));
  search.layouts.push_back(ffn_comes_first(layer.layout) ? gate_layout::nfd : gate_layout::ndf);
  made = assemble(model, router, search);
  made.reason += core::concatenate("; there is no ", missing, " beside it, whose F would tell");
  return made;
}

}  // namespace detail::moe

MPIROUTER_END
