// Layers whose experts have names that say nothing: by shapes alone, within one layer of the model.
#pragma once

#include <mpi_router/io/moe/find_by_roles.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// The last number of a name that stands alone between dots, as {expert}; nothing where there is none after
/// the layer's own.
[[nodiscard]] inline std::optional<std::pair<std::string, index_t>> numbered_name(std::string_view name,
                                                                                  std::string_view layer) {
  const auto c = components_of(name.substr(layer.size()));
  for (std::size_t i = c.size(); i-- > 0;) {
    if (const auto number = number_of(c[i])) {
      std::string pattern(layer);
      for (std::size_t k = 0; k < c.size(); ++k) {
        pattern += core::concatenate(k == 0 ? "" : ".", k == i ? expert_mark : c[k]);
      }
      return std::pair(pattern, *number);
    }
  }
  return std::nullopt;
}

/// Weights of one layer that may be its experts' and about which nothing was said: matrices under numbers
/// from 0 on, and stacks of matrices.
struct layer_by_shape {
  std::vector<expert_weights> experts;
  weight_list matrices;  ///< single ones: a router is among them
};

[[nodiscard]] inline bool is_no_expert(std::string_view name) {
  const auto role = part_of(name).role;
  return role == tensor_role::optimizer || role == tensor_role::adapter || is_of_attention(name) ||
         is_shared_word(name) || contains(name, "norm") || contains(name, "conv") || is_noise(name);
}

[[nodiscard]] inline layer_by_shape parts_of_layer(std::span<const weight> weights, const std::string& layer,
                                                   const found_parts& found) {
  std::map<std::string, std::map<index_t, const weight*>> numbered;
  layer_by_shape out;
  for (const auto& w : weights) {
    if (found.said.contains(&w) || w.rank() < 2 || is_no_expert(w.name()) ||
        is_auxiliary(components_of(w.name()).back())) {
      continue;
    }
    if (const auto number = w.rank() == 2 ? numbered_name(w.name(), layer) : std::nullopt) {
      numbered[number->first].emplace(number->second, &w);
    } else if (w.rank() > 2 && std::ranges::all_of(w.shape(), [](index_t extent) { return extent > 1; })) {
      out.experts.push_back({w.name(), {&w}});
    } else if (w.rank() == 2) {
      out.matrices.push_back(&w);
    }
  }
  for (const auto& [pattern, group] : numbered) {
    if (group.size() > 1 && group.rbegin()->first == static_cast<index_t>(group.size()) - 1) {
      auto& entry = out.experts.emplace_back(expert_weights{pattern, {}});
      for (const auto& [number, w] : group) {
        entry.all.push_back(w);
      }
    } else if (group.size() == 1) {
      out.matrices.push_back(group.begin()->second);
    }
  }
  return out;
}

/// The one matrix with a row, or a column, for each expert and their D; null if there is none or several.
[[nodiscard]] inline const weight* only_router(const checkpoint& model, const layer_by_shape& layer) {
  weight_list found;
  for (const auto* w : layer.matrices) {
    const auto experts =
        std::ranges::find_if(layer.experts, [w](const auto& each) { return each.fit_router(*w); });
    if (experts != layer.experts.end() &&
        network_of_router(model, w->name(), shared_prefix(w->name(), experts->pattern) + ".").empty()) {
      found.push_back(w);
    }
  }
  return found.size() == 1 ? found[0] : nullptr;
}

/// Layers that neither families nor names find: a matrix [N, D] beside N matrices, or beside a stack of N,
/// that have D for an axis.
inline void find_by_shapes(const checkpoint& model, const moe_search& wanted,
                           const std::optional<model_config>& config, found_parts& found) {
  std::set<std::string> seen;
  for (const auto& w : model.weights()) {
    const auto place = place_of_layer(w.name());
    if (!place) {
      continue;
    }
    const auto layer = core::concatenate(place->series, place->written, ".");
    const bool has_one = std::ranges::any_of(
        found.result.layers, [&](const auto& known) { return known.name.starts_with(layer); });
    if (!seen.insert(layer).second || has_one) {
      continue;
    }
    const auto parts = parts_of_layer(model.weights_with(layer), layer, found);
    const auto* router = parts.experts.empty() ? nullptr : only_router(model, parts);
    if (router == nullptr) {
      continue;
    }
    auto experts = parts.experts;
    std::erase_if(experts, [&](const auto& each) {
      const auto shape = router->shape();
      return each.count() != shape[0] && each.count() != shape[1];
    });
    note_attempt(*router, try_parts(model, *router, experts, wanted, config), found);
    for (const auto& each : experts) {  // whatever became of them is said
      found.said.insert(each.all.begin(), each.all.end());
    }
  }
}

}  // namespace detail::moe

MPIROUTER_END
