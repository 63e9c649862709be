// The up and down projections of a layer's experts: named like the gates except for one word, and stored as
// shapes, packing, the architecture or torch's Linear leave no doubt.
#pragma once

#include <mpi_router/io/moe/choose_layout.hpp>
#include <mpi_router/io/moe/expert_words.hpp>
#include <mpi_router/io/moe/families.hpp>
#include <mpi_router/io/moe/remainder.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Matrices of all experts, or why they cannot be told.
struct matrices_choice {
  std::optional<expert_matrices> found;
  std::string reason;
};

[[nodiscard]] inline std::vector<std::string> names_of_part(const moe_layer& layer, expert_part part) {
  const auto first = shared_prefix(layer.router->name(), layer.gates.front().tensor->name()).size();
  return names_of_part(layer.gate_name, first, part);
}

/// "'experts.0.w3' or 'experts.0.v1'", of the first expert, its number written as in the layer's gates.
[[nodiscard]] inline std::string list_of_names(const moe_layer& layer,
                                               const std::vector<std::string>& names) {
  const auto width = width_of_expert(layer.gate_name, layer.gates.front().tensor->name());
  std::string out;
  for (const auto& name : names) {
    out += core::concatenate(out.empty() ? "'" : " or '", name_of_expert(name, 0, width), "'");
  }
  return out;
}

/// Why these tensors are not one for each expert of the layer; empty if they are.
[[nodiscard]] inline std::string wrong_tensors(const moe_layer& layer, const std::string& name,
                                               const gate_tensors& tensors) {
  if (tensors.one_each) {
    for (index_t e = 0; e < layer.num_experts; ++e) {
      if (!tensors.tensors.contains(layer.first_expert + e)) {
        return core::concatenate(
            "there is no '",
            name_of_expert(name, layer.first_expert + e, width_of_expert(name, tensors.first().name())), "'");
      }
    }
  }
  const auto bad =
      std::ranges::find_if(tensors.tensors, [](const auto& each) { return !each.second->problem().empty(); });
  return bad == tensors.tensors.end() ? "" : bad->second->problem();
}

/// The blocks of the experts in these tensors if they lie so; empty where the shapes are others.
[[nodiscard]] inline std::vector<gate_block> blocks_in(const moe_layer& layer, const gate_tensors& tensors,
                                                       gate_layout layout, index_t dim) {
  std::vector<gate_block> out;
  for (index_t e = 0; e < layer.num_experts; ++e) {
    const auto* tensor = tensors.one_each ? tensors.tensors.at(layer.first_expert + e) : &tensors.first();
    const auto ffn_dim = ffn_dim_of(layout, tensor->shape(), tensors.held_by_one(layer.num_experts), dim);
    if (ffn_dim != layer.gates[static_cast<std::size_t>(e)].ffn_dim) {
      return {};
    }
    out.push_back({.tensor = tensor,
                   .index = tensors.one_each ? 0 : e,
                   .layout = layout,
                   .ffn_dim = *ffn_dim,
                   .hidden_dim = dim});
  }
  return out;
}

/// What the layer's gates hold, and the half of it that holds the up projections.
[[nodiscard]] inline expert_matrices stored_with_gates(const moe_layer& layer, expert_part part) {
  expert_matrices out{part, 1, layer.gates, layer.gate_name, layer.layout, layer.layout_known_by};
  if (part == expert_part::up && layer.part == expert_part::gate) {
    for (auto& block : out.blocks) {
      block.half = fused_half::up;
    }
  }
  return out;
}

/// The layout of down projections that may lie both ways, [D, F] or [F, D].
[[nodiscard]] inline layout_choice square_down(const moe_layer& layer, const gate_tensors& tensors,
                                               const std::string& name, const moe_search& wanted,
                                               const std::optional<model_config>& config) {
  using enum gate_layout;
  if (tensors.first().is_grouped() || tensors.first().is_of_ggml()) {  // along F, which it contracts
    return {ndf, tensors.first().is_grouped() ? "its packing" : "GGUF", ""};
  }
  if (tensors.first().is_grouped_by_rows()) {
    return {nfd, "its packing", ""};
  }
  const auto family = std::ranges::find(model_families(), layer.family, &model_family::name);
  if (family != model_families().end() && is_fused(layer.layout) &&
      std::ranges::count(layouts_of_architecture(family->architectures, config), layer.layout) > 0) {
    return {ffn_comes_first(layer.layout) ? ndf : nfd, "config.json", ""};  // as it has the gates: [out, in]
  }
  if (ffn_comes_first(layer.layout) && is_linear(tensors, name)) {  // beside gates that are one's too
    return {ndf, "torch's Linear", ""};
  }
  return {{},
          "",
          core::concatenate("'", tensors.first().name(), "' of shape ", to_string(tensors.first().shape()),
                            " may be ", meaning_of(nfd), " (", wanted.words.layout_of_down, " nfd) or ",
                            meaning_of(ndf), " (", wanted.words.layout_of_down, " ndf): say which")};
}

/// Down projections in these tensors.
[[nodiscard]] inline matrices_choice down_in(const moe_layer& layer, const gate_tensors& tensors,
                                             const std::string& name, const moe_search& wanted,
                                             const std::optional<model_config>& config) {
  using enum gate_layout;
  auto turned = blocks_in(layer, tensors, ndf, layer.hidden_dim);
  auto straight = blocks_in(layer, tensors, nfd, layer.hidden_dim);
  layout_choice how;
  if (wanted.layout_of_down) {
    how = {wanted.layout_of_down, std::string(wanted.words.layout_of_down), ""};
  } else if (!turned.empty() && !straight.empty()) {
    how = square_down(layer, tensors, name, wanted, config);
  } else {
    how = {turned.empty() ? nfd : ndf, "its shape", ""};
  }
  if (!how.layout) {
    return {{}, how.reason};
  }
  auto& blocks = *how.layout == ndf ? turned : straight;
  if (blocks.empty() || (*how.layout != ndf && *how.layout != nfd)) {
    const auto& shown = tensors.first();
    return {{},
            core::concatenate("'", shown.name(), "' has shape ", to_string(shown.shape()), ", which is not ",
                              wanted.layout_of_down ? meaning_of(*how.layout) : "[N, D, F] or [N, F, D]",
                              " with N = ", layer.num_experts, ", F = ", layer.ffn_dim,
                              ", D = ", layer.hidden_dim)};
  }
  return {expert_matrices{expert_part::down, 1, std::move(blocks), name, *how.layout, how.known_by}, ""};
}

/// Up projections in these tensors: they lie as the gates do.
[[nodiscard]] inline matrices_choice up_in(const moe_layer& layer, const gate_tensors& tensors,
                                           const std::string& name) {
  auto blocks = blocks_in(layer, tensors, layer.layout, layer.gate_dim());
  if (blocks.empty()) {
    const auto& shown = tensors.first();
    return {{},
            core::concatenate("'", shown.name(), "' has shape ", to_string(shown.shape()),
                              ", and its gates are ", to_string(layer.gates.front().tensor->shape()))};
  }
  return {expert_matrices{expert_part::up, 1, std::move(blocks), name, layer.layout, "that of the gates"},
          ""};
}

/// The matrices of one part of a layer's experts.
[[nodiscard]] inline matrices_choice find_part(const checkpoint& model, const moe_layer& layer,
                                               expert_part part, const moe_search& wanted,
                                               const std::optional<model_config>& config) {
  const bool stored = part == layer.part || (part == expert_part::up && is_fused(layer.layout));
  if (stored) {
    return {stored_with_gates(layer, part), ""};
  }
  if (part == expert_part::gate) {
    return {{},
            core::concatenate("its experts have no gate: of them there are up and down alone (",
                              wanted.words.of, " up, down, up+down)")};
  }
  if (part == expert_part::down && layer.latent != nullptr) {
    return {{}, "its experts see a latent, and what their down projections write is projected once more"};
  }
  const auto names = names_of_part(layer, part);
  std::optional<matrices_choice> choice;
  for (const auto& name : names) {
    const auto tensors = find_gates(model, name);
    if (tensors.tensors.empty() || tensors.first().rank() < 2) {
      continue;
    }
    if (choice) {
      return {{},
              core::concatenate("both ", list_of_names(layer, names), " are there: one is no ",
                                to_string(part), " projection")};
    }
    auto wrong = wrong_tensors(layer, name, tensors);
    choice = !wrong.empty()              ? matrices_choice{{}, std::move(wrong)}
             : part == expert_part::down ? down_in(layer, tensors, name, wanted, config)
                                         : up_in(layer, tensors, name);
  }
  const auto looked_for =
      names.empty() ? core::concatenate("'", layer.gate_name, "' does not tell what they are called")
                    : core::concatenate("there is no ", list_of_names(layer, names));
  return choice ? std::move(*choice) : matrices_choice{{}, looked_for};
}

/// Notes with a layer all that is asked for beside its gates; or why it cannot be had.
[[nodiscard]] inline std::string add_parts(const checkpoint& model, moe_layer& layer,
                                           const moe_search& wanted,
                                           const std::optional<model_config>& config) {
  for (const auto part : expert_parts) {
    if (const double weight = wanted.of.of(part); weight != 0) {
      auto choice = find_part(model, layer, part, wanted, config);
      if (!choice.found) {
        return core::concatenate("its ", to_string(part), " projections, which ", wanted.words.of,
                                 " asks for, cannot be told: ", choice.reason);
      }
      choice.found->weight = weight;
      layer.measured.push_back(std::move(*choice.found));
    }
  }
  return "";
}

/// Takes out the layers that lack something that is asked for, and says why.
inline void find_up_and_down(const checkpoint& model, const moe_search& wanted,
                             const std::optional<model_config>& config, found_parts& found) {
  if (wanted.of.is_gate_alone()) {
    return;
  }
  std::vector<moe_layer> whole;
  for (auto& layer : found.result.layers) {
    if (attempt made{{}, add_parts(model, layer, wanted, config), layer.num_experts}; !made.reason.empty()) {
      note_failure(*layer.router, made, found);
    } else {
      whole.push_back(std::move(layer));
    }
  }
  found.result.layers = std::move(whole);
}

}  // namespace detail::moe

MPIROUTER_END
