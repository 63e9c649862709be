// The MoE layers of a checkpoint: found by the names and layouts of model families, as views of their
// experts.
//
//   const mpi_router::checkpoint files("model-folder");
//   for (const auto& layer : mpi_router::find_moe_layers(files)) {
//     mpi_router::visit_experts(layer, [&](const auto& experts) { … });  // an expert_batch_view
//   }
#pragma once

#include <mpi_router/io/moe/assemble.hpp>
#include <mpi_router/io/moe/beside_routers.hpp>
#include <mpi_router/io/moe/families.hpp>
#include <mpi_router/io/moe/find_by_shapes.hpp>
#include <mpi_router/io/moe/gates_or_up.hpp>
#include <mpi_router/io/moe/gguf_config.hpp>
#include <mpi_router/io/moe/promises.hpp>
#include <mpi_router/io/moe/up_and_down.hpp>
#include <mpi_router/io/moe/visit.hpp>

#include <numeric>

MPIROUTER_BEGIN

namespace detail::moe {

/// What the tensors of a layer's experts begin with, where one of their matrices is named so:
/// "mlp.experts." of "mlp.experts.{expert}.up_proj.weight", "blk.0." of "blk.0.ffn_up_exps.weight".
[[nodiscard]] inline std::string_view stem_of_experts(std::string_view pattern) {
  if (const auto mark = pattern.find(expert_mark); mark != pattern.npos) {
    return pattern.substr(0, pattern.substr(0, mark).rfind('.') + 1);
  }
  const auto c = components_of(pattern);
  const auto word = std::ranges::find_if(
      c.rbegin(), c.rend(), [](auto part) { return kind_of_component(part) != matrix_kind::unclear; });
  return word == c.rend() ? pattern.substr(0, pattern.rfind('.') + 1)
                          : pattern.substr(0, static_cast<std::size_t>(word->data() - pattern.data()));
}

/// Whether this may be of the experts that a router chooses: by its name, or as a stack. Routers, shared
/// experts and dense layers have gates of their own.
[[nodiscard]] inline bool is_of_experts(const weight& w) {
  const auto role = part_of(w.name()).role;
  return role == tensor_role::expert ||
         (role == tensor_role::other && w.rank() > 2 && !is_shared_word(w.name()));
}

/// Whether the experts whose up projections are named so have a gate too, in whatever form.
[[nodiscard]] inline bool has_gates(const checkpoint& model, const std::string& up_pattern) {
  const auto stem = stem_of_experts(up_pattern);
  return std::ranges::any_of(model.weights_with(stem), [&](const weight& w) {
    return is_of_experts(w) && holds_gates(std::string_view(w.name()).substr(stem.size()));
  });
}

/// Whether experts have this matrix too: one each, or a stack of them, not that of a dense layer.
[[nodiscard]] inline bool has_beside(const checkpoint& model, const std::string& pattern) {
  const auto all = find_gates(model, pattern);
  return !all.tensors.empty() && (all.one_each || all.first().rank() > 2);
}

/// Whether the name of matrices that a family has as gates and up projections in one says up alone, and their
/// shapes are not the family's: experts without gates, or of another model, have that name too.
[[nodiscard]] inline bool is_of_others(const checkpoint& model, const weight& router,
                                       const gate_search& search) {
  if (!is_fused(search.layouts.front()) || kind_of(search.pattern) != matrix_kind::up) {
    return false;
  }
  const auto all = find_gates(model, search.pattern);
  if (all.tensors.empty() || router.rank() != 2 || !all.first().problem().empty()) {
    return false;
  }
  const auto how = choose_router(router, search, all);
  const auto block = shared_prefix(router.name(), all.first().name());
  const auto* latent = latent_of(model, block.empty() ? block : block + ".", how.shape.dim);
  return how.reason.empty() && latent == nullptr &&
         !fits_any(search.layouts, all, count_experts(all, how.shape.rows), how.shape.dim);
}

/// A layer where two patterns name a router and gates of one family.
[[nodiscard]] inline attempt try_family(const checkpoint& model, const weight& router,
                                        const model_family& family, const moe_search& wanted,
                                        const std::optional<model_config>& config) {
  const auto bound = match_layer(family.router, group_of(model, router).stem);
  if (!bound || !(bound->empty() || bound->ends_with('.')) || is_of_attention(*bound)) {
    return {};
  }
  const auto pattern = substituted(family.gate, layer_mark, *bound);
  if (family.part == expert_part::up && has_gates(model, pattern)) {
    return {};
  }
  if (!family.beside.empty() && !has_beside(model, substituted(family.beside, layer_mark, *bound))) {
    return {};
  }
  auto search = search_for(std::string(family.name), pattern, family.layouts, wanted, config);
  search.of_architecture = layouts_of_architecture(family.architectures, config);
  if (!family.beside.empty() && !family.architectures.empty() && search.of_architecture.empty()) {
    return {};  // a name that others have for up before gate, and for up alone
  }
  const bool is_named = config && config->names_any();
  search.in_mxfp4 = is_named ? std::nullopt : family.in_mxfp4;
  if (!is_named) {
    search.unnamed = family.unnamed;
    if (!search.asked && is_servers_name(pattern)) {
      search.layouts.push_back(gate_layout::n2fd_up_first);
    }
  }
  search.layout_of_router = wanted.layout_of_router.value_or(family.layout_of_router);
  search.part = family.part;
  if (search.part == expert_part::gate && !search.asked && is_of_others(model, router, search)) {
    return {};
  }
  auto made = assemble(model, router, search);
  return made.layer && !search.asked
             ? checked_by_width(model, router, std::move(search), std::move(made), config)
             : made;
}

inline void find_by_families(const checkpoint& model, const moe_search& wanted,
                             const std::optional<model_config>& config, found_parts& found) {
  for (const auto& router : model.weights()) {
    const auto role = part_of(router.name()).role;
    if (role == tensor_role::optimizer || role == tensor_role::adapter) {
      continue;
    }
    for (const auto& family : model_families()) {
      auto made = try_family(model, router, family, wanted, config);
      if (made.layer || !made.reason.empty()) {
        note_attempt(router, std::move(made), found);
        break;
      }
    }
  }
}

inline void find_by_patterns(const checkpoint& model, const moe_search& wanted,
                             const std::optional<model_config>& config, found_parts& found) {
  auto patterns = *wanted.patterns;
  const auto is_router = [&](const weight& w) { return match_layer(patterns.router, w.name()).has_value(); };
  if (std::ranges::none_of(model.weights(), is_router)) {  // by the names that the file has
    patterns = {dotted(patterns.router), dotted(patterns.gate)};
  }
  for (const auto& router : model.weights()) {
    const auto bound = match_layer(patterns.router, router.name());
    if (!bound) {
      continue;
    }
    const std::string gate = substituted(patterns.gate, layer_mark, *bound);
    auto made = assemble(model, router,
                         search_for(core::concatenate("named by ", wanted.words.patterns), gate,
                                    {gate_layout::nfd}, wanted, config));
    if (made.layer && made.layer->name.empty()) {
      made.layer->name = bound->empty() ? router.name() : *bound;
    }
    if (!made.layer && made.reason.empty()) {
      made.reason = core::concatenate("there is no '", substituted(gate, expert_mark, "0"), "'");
      made.rows = router.rank() == 2 ? router.shape()[0] : 0;
    }
    note_attempt(router, std::move(made), found);
  }
}

/// A layer whose experts have no gates lacks them where others of the same names have them, be these whole or
/// not, or where config.json names an architecture that is not known to be without: its up projections do not
/// take their place.
inline void refuse_lost_gates(const checkpoint& model, const moe_search& wanted,
                              const std::optional<model_config>& config, found_parts& found) {
  const bool has_up = std::ranges::any_of(
      found.result.layers, [](const moe_layer& layer) { return layer.part == expert_part::up; });
  if (!has_up || wanted.of.of(expert_part::gate) == 0) {
    return;
  }
  std::map<std::string, std::string> gates;  // one for each name with stars
  for (const weight& w : model.weights()) {
    if (is_of_experts(w) && holds_gates(w.name())) {
      gates.emplace(with_stars(w.name()), w.name());
    }
  }
  const auto gated = config ? gated_architecture(*config) : "";
  std::erase_if(found.result.layers, [&](const moe_layer& layer) {
    const auto stem = with_stars(stem_of_experts(layer.gate_name));
    const auto own = with_stars(layer.gates.front().tensor->name());  // "gate_and_up_projs" of up alone
    const auto like = std::ranges::find_if(gates, [&](const auto& gate) {
      return gate.first != own && gate.first.starts_with(stem) &&
             holds_gates(std::string_view(gate.first).substr(stem.size()));
    });
    const bool lost = layer.part == expert_part::up &&
                      (like != gates.end() || (!gated.empty() && is_beside_gate(layer.gate_name)));
    if (lost) {
      const auto known = like != gates.end()
                             ? core::concatenate("as '", like->second, "' is one; is a file missing?")
                             : core::concatenate("and those of ", gated,
                                                 " are not known to be without; is a file missing? (",
                                                 wanted.words.of, " up looks at what is here)");
      found.result.omissions.push_back({layer.router->name(),
                                        core::concatenate("its experts have no gates, ", known),
                                        omission_kind::unseen, 1, layer.router_rows});
    }
    return lost;
  });
}

/// In natural order; those of one name stay as they were.
template <class Named>
void sort_by_name(std::vector<Named>& all) {
  std::vector<std::size_t> order(all.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return all[a].name == all[b].name ? a < b : natural_less(all[a].name, all[b].name);
  });
  std::vector<Named> sorted;
  sorted.reserve(all.size());
  for (const std::size_t i : order) {
    sorted.push_back(std::move(all[i]));
  }
  all = std::move(sorted);
}

/// One entry for all that differ in their numbers alone: a model of sixty layers says it once.
inline void merge_alike(std::vector<omission>& omissions) {
  std::map<std::string, std::size_t> first;
  std::vector<omission> merged;
  for (auto& entry : omissions) {
    const auto key = core::concatenate(with_stars(entry.name), "\n", numbers_as_stars(entry.reason), "\n",
                                       static_cast<int>(entry.kind));
    const auto [it, fresh] = first.try_emplace(key, merged.size());
    if (fresh) {
      merged.push_back(std::move(entry));
      continue;
    }
    auto& known = merged[it->second];
    known.name = common_name(known.name, entry.name);
    known.layers += entry.layers;
    known.rows += entry.rows;
  }
  omissions = std::move(merged);
}

}  // namespace detail::moe

/// The MoE layers of a checkpoint, by the caller's patterns, or else by the names of known families, by what
/// names look like, and by shapes, in this order; `family` says which. A layout is never guessed: a layer is
/// taken where the shapes, the groups of packed weights, the architecture in config.json, torch's Linear or
/// the caller leave but one. `omissions` names all else that looks like a router or an expert and says why it
/// is in no layer, and what shards, index and config.json promise and is not here. Reads headers and names,
/// no weights. O(tensors · families).
[[nodiscard]] inline moe_layers find_moe_layers(const checkpoint& model, const moe_search& wanted = {}) {
  detail::moe::found_parts found;
  const auto config = config_of(model);
  if (wanted.patterns) {
    detail::moe::find_by_patterns(model, wanted, config, found);
  } else {
    detail::moe::find_by_families(model, wanted, config, found);
    detail::moe::find_by_roles(model, wanted, config, found);
    detail::moe::find_by_shapes(model, wanted, config, found);
  }
  detail::moe::refuse_lost_gates(model, wanted, config, found);
  if (!wanted.patterns && !wanted.layout) {
    detail::moe::note_assumed_order(found);
  }
  detail::moe::find_up_and_down(model, wanted, config, found);
  detail::moe::sort_by_name(found.result.layers);
  if (!wanted.patterns) {
    detail::moe::note_second_routers(model, found);
  }
  detail::moe::note_remainder(model, wanted.words, found);
  detail::moe::note_scaled_routers(model, found);
  detail::moe::sort_by_name(found.result.omissions);
  detail::moe::merge_alike(found.result.omissions);
  detail::moe::note_missing_files(model, found);
  if (config) {
    detail::moe::note_config(model, *config, found);
  }
  detail::moe::note_idle_rows(config, found);
  return std::move(found.result);
}
/// Layers must not outlive their checkpoint.
moe_layers find_moe_layers(const checkpoint&&, const moe_search& = {}) = delete;

MPIROUTER_END
