// Puts an MoE layer together from its router and the gates of its experts, or says why it cannot be.
#pragma once

#include <mpi_router/io/moe/groups.hpp>
#include <mpi_router/io/moe/hints.hpp>
#include <mpi_router/io/moe/model_config.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Gates of this name, or pattern, in the caller's layout or else in one of these.
[[nodiscard]] inline gate_search search_for(std::string family, std::string pattern,
                                            const std::vector<gate_layout>& layouts, const moe_search& wanted,
                                            const std::optional<model_config>& config) {
  return {.family = std::move(family),
          .pattern = std::move(pattern),
          .layouts = wanted.layout ? std::vector{*wanted.layout} : layouts,
          .asked = wanted.layout.has_value(),
          .of_architecture = {},
          .unnamed = {},
          .in_mxfp4 = {},
          .layout_of_router = wanted.layout_of_router.value_or(router_layout::nd),
          .router_asked = wanted.layout_of_router.has_value(),
          .num_experts = config ? config->num_experts : std::nullopt,
          .groups_in_order = config && config->is_called("ernie45"),
          .words = wanted.words};
}

/// A layer, or why there is none; neither where there are no such gates.
struct attempt {
  std::optional<moe_layer> layer;
  std::string reason;
  index_t rows = 0;  ///< of a layer that cannot be used
  std::vector<naming_hint> hints = {};
};

/// N and D of a router.
struct router_shape {
  index_t rows = 0;
  index_t dim = 0;
};

/// [N, D], [D, N], [1, N, D], or flat, [N · D], where the number of experts is known; nothing otherwise.
[[nodiscard]] inline std::optional<router_shape> shape_of_router(const weight& router, router_layout layout,
                                                                 index_t experts) {
  auto shape = router.shape();
  while (shape.size() > 2 && shape[0] == 1) {
    shape = shape.subspan(1);
  }
  router_shape out;
  if (shape.size() == 2) {
    const bool turned = layout == router_layout::dn;
    out = {shape[turned ? 1 : 0], shape[turned ? 0 : 1]};
  } else if (shape.size() == 1 && experts > 1 && shape[0] % experts == 0 && layout == router_layout::nd) {
    out = {experts, shape[0] / experts};
  }
  return out.rows > 0 && out.dim > 0 ? std::optional(out) : std::nullopt;
}

/// A router, as it is taken to lie; or why not.
struct router_choice {
  router_layout layout = router_layout::nd;
  router_shape shape;
  std::string reason;
};

/// As asked; otherwise as the family has it, or turned round where only that goes with the gates' shapes.
[[nodiscard]] inline router_choice choose_router(const weight& router, const gate_search& wanted,
                                                 const gate_tensors& gates) {
  const index_t held = gates.held() > 0 ? gates.held() : wanted.num_experts.value_or(0);
  const auto asked = shape_of_router(router, wanted.layout_of_router, held);
  const auto other = wanted.layout_of_router == router_layout::nd ? router_layout::dn : router_layout::nd;
  const auto turned = shape_of_router(router, other, held);
  if (!asked) {
    return {wanted.layout_of_router,
            {},
            core::concatenate("the router has shape ", to_string(router.shape()), ", not [N, D]")};
  }
  const bool only_turned = turned && turned->rows == held &&
                           fits_any(wanted.layouts, gates, held, turned->dim) &&
                           !fits_any(wanted.layouts, gates, held, asked->dim);
  if (!only_turned) {
    return {wanted.layout_of_router, *asked, ""};
  }
  if (!wanted.router_asked) {
    return {other, *turned, ""};
  }
  return {wanted.layout_of_router, *asked,
          core::concatenate("the router has shape ", to_string(router.shape()), " and there are ", held,
                            " experts: it seems stored ", other == router_layout::dn ? "[D, N]" : "[N, D]",
                            " (", wanted.words.layout_of_router, " ", to_string(other), ")")};
}

/// The projection P [L, D] that the experts of a block share and see tokens through; null where there is
/// none. A name is needed: other projections of a layer have such shapes too.
[[nodiscard]] inline const weight* latent_of(const checkpoint& model, std::string_view block, index_t dim) {
  constexpr std::array<std::string_view, 5> names{"routed_expert_down_proj.weight", "fc1_latent_proj.weight",
                                                  "latent_down_proj.weight", "ffn_latent_down.weight",
                                                  "latent_proj.weight"};
  for (const auto name : names) {
    const auto* p = model.find_weight(std::string(block) + std::string(name));
    if (p != nullptr && p->rank() == 2 && p->shape()[1] == dim) {
      return p;
    }
  }
  return nullptr;
}

/// Experts that the gates hold, of a layer whose router has `rows`.
[[nodiscard]] inline index_t count_experts(const gate_tensors& gates, index_t rows) {
  return gates.one_each ? gates.held() : gates.held() > 0 ? std::min(gates.held(), rows) : rows;
}

/// What is wrong with the numbers of the experts, where each has a tensor of its own.
[[nodiscard]] inline std::string wrong_numbers(const gate_tensors& gates, const std::string& pattern,
                                               index_t rows) {
  if (!gates.one_each) {
    return "";
  }
  const auto width = width_of_expert(pattern, gates.first().name());
  const auto name = [&](index_t e) { return name_of_expert(pattern, e, width); };
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

/// Why a number of these weights cannot be had.
[[nodiscard]] inline std::string unreadable(const checkpoint& model, const weight& router,
                                            const weight* latent, const gate_tensors& gates) {
  for (const auto* w : {&router, latent}) {
    if (w != nullptr && !w->problem().empty()) {
      return w->problem();
    }
  }
  const auto bad =
      std::ranges::find_if(gates.tensors, [](const auto& each) { return !each.second->problem().empty(); });
  if (bad != gates.tensors.end()) {
    return bad->second->problem();
  }
  return model.packing().turned_inputs
             ? core::concatenate("'", gates.first().name(),
                                 "' does not multiply what the router sees: ", "config.json names ",
                                 model.packing().unknown)
             : "";
}

/// Whether a table of token ids chooses the experts of this router.
[[nodiscard]] inline bool has_table(const checkpoint& model, const weight& router) {
  const auto& name = router.name();
  const auto stem =
      name.ends_with("weight") ? name.substr(0, name.size() - std::string_view("weight").size()) : name;
  return model.find_weight(stem + "tid2eid") != nullptr;
}

[[nodiscard]] inline std::vector<gate_block> blocks_of_gates(const gate_tensors& gates, gate_layout layout,
                                                             index_t experts, index_t gate_dim) {
  std::vector<gate_block> blocks;
  for (index_t e = 0; e < experts; ++e) {
    const auto* tensor = gates.one_each ? gates.tensors.at(e) : &gates.first();
    blocks.push_back({.tensor = tensor,
                      .index = gates.one_each ? 0 : e,
                      .layout = layout,
                      .ffn_dim = *ffn_dim_of(layout, tensor->shape(), gates.held_by_one(experts), gate_dim),
                      .hidden_dim = gate_dim});
  }
  return blocks;
}

/// All that was found out, as a layer.
[[nodiscard]] inline moe_layer layer_of(const checkpoint& model, const weight& router,
                                        const gate_search& wanted, const gate_tensors& gates,
                                        const router_choice& how, const layout_choice& chosen,
                                        const weight* latent, const expert_range& range) {
  const index_t experts = count_experts(gates, how.shape.rows);
  const index_t gate_dim = latent == nullptr ? how.shape.dim : latent->shape()[0];
  auto blocks = blocks_of_gates(gates, *chosen.layout, experts, gate_dim);
  const index_t ffn_dim = std::ranges::max(blocks, {}, &gate_block::ffn_dim).ffn_dim;
  const bool is_whole = range.count == 0;
  return {.name = is_whole ? shared_prefix(router.name(), gates.first().name()) : router.name(),
          .family = wanted.family,
          .router = &router,
          .layout_of_router = how.layout,
          .gates = std::move(blocks),
          .gate_name = wanted.pattern,
          .layout = *chosen.layout,
          .layout_known_by = chosen.known_by,
          .first_expert = range.first,
          .num_experts = experts,
          .router_rows = how.shape.rows,
          .ffn_dim = ffn_dim,
          .hidden_dim = how.shape.dim,
          .part = wanted.part,
          .latent = latent,
          .selects_by_table = has_table(model, router)};
}

/// A layer from a router and gates; a reason where these cannot be used; neither where there are no gates.
[[nodiscard]] inline attempt assemble(const checkpoint& model, const weight& router,
                                      const gate_search& wanted) {
  auto gates = find_gates(model, wanted.pattern);
  if (gates.tensors.empty() || gates.first().rank() == 0) {
    return {};
  }
  if (gates.twice != nullptr) {
    const index_t number = *match_expert(wanted.pattern, gates.twice->name());
    return {{},
            core::concatenate("'", gates.tensors.at(number)->name(), "' and '", gates.twice->name(),
                              "' are both expert ", number),
            gates.held()};
  }
  const auto range = keep_group(model, router, wanted, gates);
  if (!range.reason.empty()) {
    return {{}, range.reason, std::min(router.shape()[0], router.shape()[1])};
  }
  const auto how = choose_router(router, wanted, gates);
  const auto [rows, dim] = how.shape;
  const auto refuse = [&](std::string reason) {
    return attempt{{}, std::move(reason), std::max(rows, gates.held())};
  };
  if (!how.reason.empty()) {
    return refuse(how.reason);
  }
  if (auto reason = wrong_numbers(gates, wanted.pattern, rows); !reason.empty()) {
    return refuse(std::move(reason));
  }
  const auto block = shared_prefix(router.name(), gates.first().name());
  const auto* latent = latent_of(model, block.empty() ? block : block + ".", dim);
  if (auto reason = unreadable(model, router, latent, gates); !reason.empty()) {
    return refuse(std::move(reason));
  }
  const auto chosen =
      choose_layout(wanted, gates, count_experts(gates, rows), latent == nullptr ? dim : latent->shape()[0]);
  if (!chosen.layout) {
    auto made = refuse(chosen.reason);
    for (const auto layout : chosen.possible) {
      made.hints.push_back({patterns_of(router.name(), wanted.pattern), layout, how.layout});
    }
    return made;
  }
  return {layer_of(model, router, wanted, gates, how, chosen, latent, range), "", rows};
}

}  // namespace detail::moe

MPIROUTER_END
