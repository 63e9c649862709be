// Puts an MoE layer together from its router and the gates of its experts, or says why it cannot be.
#pragma once

#include <mpi_router/io/moe/choose_layout.hpp>
#include <mpi_router/io/moe/layer.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// A layer, or why there is none; neither where there are no such gates.
struct attempt {
  std::optional<moe_layer> layer;
  std::string reason;
  index_t rows = 0;  ///< of a layer that cannot be used
};

/// N and D of a router with two axes.
[[nodiscard]] inline index_t rows_of(const stored_tensor& router, router_layout layout) {
  return router.shape()[layout == router_layout::nd ? 0 : 1];
}
[[nodiscard]] inline index_t hidden_dim_of(const stored_tensor& router, router_layout layout) {
  return router.shape()[layout == router_layout::nd ? 1 : 0];
}

/// A tensor beside `t` that scales it: then its numbers are not the weights, whatever its type.
[[nodiscard]] inline const stored_tensor* scale_of(const checkpoint& model, const stored_tensor& t) {
  std::string_view stem = t.name();
  if (stem.ends_with(".weight")) {
    stem.remove_suffix(std::string_view("weight").size());
  }
  for (const auto* other : tensors_with(model, stem)) {
    std::string_view rest = std::string_view(other->name()).substr(stem.size());
    rest.remove_prefix(std::min(rest.find_first_not_of("._"), rest.size()));
    const bool of_activations = rest.starts_with("input") || rest.starts_with("output") ||
                                rest.starts_with("act") || rest.starts_with("k_") || rest.starts_with("v_");
    const bool scale = rest.find("scale") != rest.npos || rest.find("absmax") != rest.npos;
    if (scale && !of_activations && other != &t) {
      return other;
    }
  }
  return nullptr;
}

/// Why the numbers of this tensor are not to be read as they are; empty if they are.
[[nodiscard]] inline std::string unreadable(const checkpoint& model, const stored_tensor& t) {
  if (!is_floating(t.type())) {
    return core::concatenate("'", t.name(), "' is stored as ", to_string(t.type()),
                             ", packed weights, which are not supported: write the model out in bf16 first, "
                             "with the scales multiplied in");
  }
  if (const auto* scale = scale_of(model, t)) {
    return core::concatenate("'", t.name(), "' is ", to_string(t.type()), ", but '", scale->name(),
                             "' is beside it: it was cast without its scales, and its numbers are not the "
                             "weights; write the model out again with the scales multiplied in");
  }
  return "";
}

/// Experts that the gates hold, of a layer whose router has `rows`.
[[nodiscard]] inline index_t count_experts(const gate_tensors& gates, index_t rows) {
  if (gates.one_each) {
    return static_cast<index_t>(gates.tensors.size());
  }
  const auto shape = gates.first().shape();
  return shape.size() == 3 ? std::min(shape[0], rows) : rows;
}

/// What is wrong with the numbers of the experts, where each has a tensor of its own.
[[nodiscard]] inline std::string wrong_numbers(const gate_tensors& gates, const std::string& pattern,
                                               index_t rows) {
  if (!gates.one_each) {
    return "";
  }
  const auto name = [&](index_t e) { return substituted(pattern, expert_mark, std::to_string(e)); };
  if (const auto beyond = gates.tensors.lower_bound(rows); beyond != gates.tensors.end()) {
    return core::concatenate("the router has ", rows, " rows, but there is a '", name(beyond->first),
                             "' too");
  }
  const auto count = static_cast<index_t>(gates.tensors.size());
  for (index_t e = 0; e < count; ++e) {
    if (!gates.tensors.contains(e)) {
      return core::concatenate(rows - count, " of its ", rows, " experts are not here, the first is '",
                               name(e), "'; is this one shard of several?");
    }
  }
  return "";
}

/// The router's own faults, seen beside its gates.
[[nodiscard]] inline std::string wrong_router(const stored_tensor& router, const gate_search& wanted,
                                              const gate_tensors& gates) {
  const auto shape = router.shape();
  if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
    return core::concatenate("the router has shape ", to_string(shape), ", not [N, D]");
  }
  const auto asked = wanted.layout_of_router;
  const auto other = asked == router_layout::nd ? router_layout::dn : router_layout::nd;
  const auto held = gates.one_each ? static_cast<index_t>(gates.tensors.size()) : gates.first().shape()[0];
  const bool turned = rows_of(router, other) == held &&
                      fits_any(wanted.layouts, gates, held, hidden_dim_of(router, other)) &&
                      !fits_any(wanted.layouts, gates, held, hidden_dim_of(router, asked));
  if (turned) {
    return core::concatenate("the router has shape ", to_string(shape), " and there are ", held,
                             " experts: it seems stored ", other == router_layout::dn ? "[D, N]" : "[N, D]",
                             " (", wanted.words.layout_of_router, " ", to_string(other), ")");
  }
  return "";
}

[[nodiscard]] inline moe_layer build(const stored_tensor& router, const gate_search& wanted,
                                     const gate_tensors& gates, const layout_choice& chosen,
                                     index_t experts) {
  moe_layer layer;
  layer.name = shared_prefix(router.name(), gates.first().name());
  layer.family = wanted.family;
  layer.router = &router;
  layer.layout_of_router = wanted.layout_of_router;
  layer.gate_name = wanted.pattern;
  layer.layout = *chosen.layout;
  layer.layout_known_by = chosen.known_by;
  layer.num_experts = experts;
  layer.router_rows = rows_of(router, wanted.layout_of_router);
  layer.hidden_dim = hidden_dim_of(router, wanted.layout_of_router);
  for (index_t e = 0; e < experts; ++e) {
    const auto* tensor = gates.one_each ? gates.tensors.at(e) : &gates.first();
    const auto ffn_dim =
        ffn_dim_of(layer.layout, tensor->shape(), gates.held_by_one(experts), layer.hidden_dim);
    layer.gates.push_back({.tensor = tensor,
                           .index = gates.one_each ? 0 : e,
                           .layout = layer.layout,
                           .ffn_dim = *ffn_dim,
                           .hidden_dim = layer.hidden_dim});
    layer.ffn_dim = std::max(layer.ffn_dim, *ffn_dim);
  }
  return layer;
}

[[nodiscard]] inline attempt assemble(const checkpoint& model, const stored_tensor& router,
                                      const gate_search& wanted) {
  const auto gates = find_gates(model, wanted.pattern);
  if (gates.tensors.empty() || gates.first().rank() == 0) {
    return {};
  }
  const auto held = static_cast<index_t>(gates.tensors.size());
  const auto refuse = [&](std::string reason, index_t rows) { return attempt{{}, std::move(reason), rows}; };
  if (auto reason = wrong_router(router, wanted, gates); !reason.empty()) {
    return refuse(std::move(reason), gates.one_each ? held : gates.first().shape()[0]);
  }
  const index_t rows = rows_of(router, wanted.layout_of_router);
  const index_t experts = count_experts(gates, rows);
  if (auto reason = wrong_numbers(gates, wanted.pattern, rows); !reason.empty()) {
    return refuse(std::move(reason), std::max(rows, held));
  }
  if (auto reason = unreadable(model, router); !reason.empty()) {
    return refuse(std::move(reason), rows);
  }
  for (const auto& [number, tensor] : gates.tensors) {
    if (auto reason = unreadable(model, *tensor); !reason.empty()) {
      return refuse(std::move(reason), rows);
    }
  }
  const auto chosen = choose_layout(wanted, gates, experts, hidden_dim_of(router, wanted.layout_of_router));
  if (!chosen.layout) {
    return refuse(chosen.reason, rows);
  }
  return {build(router, wanted, gates, chosen, experts), "", rows};
}

}  // namespace detail::moe

MPIROUTER_END
