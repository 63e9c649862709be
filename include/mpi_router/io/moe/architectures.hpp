// The layouts that are known of architectures, whatever their tensors are called.
#pragma once

#include <mpi_router/io/moe/layer.hpp>
#include <mpi_router/io/moe/model_config.hpp>

MPIROUTER_BEGIN

/// A layout that every release of an architecture has.
struct architecture_layout {
  std::string_view architecture;  ///< what its names begin with, see model_config::names; empty: any other
  gate_layout layout;
  bool is_whole = false;  ///< only where it is all of a model that transformers 5 wrote
};

/// Architectures whose experts' "gate_up_proj" is [N, 2F, D] wherever it is one tensor.
[[nodiscard]] inline const std::vector<architecture_layout>& fused_architectures() {
  static const auto table = [] {
    std::vector<architecture_layout> out;
    for (const std::string_view name :
         {"qwen35moe",    "qwen2moe", "qwen3moe",     "qwen3next", "qwen3omnimoe", "mixtral", "olmoe",
          "deepseek",     "glm4moe",  "glm4vmoe",     "glmmoedsa", "dots1",        "ernie45", "flexolmo",
          "hunyuanv1moe", "hyv3",     "longcatflash", "minimax",   "mistral4",     "phimoe",  "afmoe",
          "axk",          "bailing",  "cohere2moe",   "exaonemoe", "gemma4",       "laguna",  "mimov2",
          "solaropen",    "mellum",   "inkling",      "kimi",      "step3"}) {
      out.push_back({name, gate_layout::n2fd_concatenated});
    }
    out.push_back({"qwen3vlmoetext", gate_layout::n2fd_concatenated, true});
    return out;
  }();
  return table;
}

/// Whether config.json, or a GGUF file, says that experts have no gates, or names an architecture whose have
/// none.
[[nodiscard]] inline bool is_ungated_architecture(const model_config& config) {
  if (config.has_gates) {
    return !*config.has_gates;
  }
  constexpr std::array<std::string_view, 4> ungated{"nemotron", "switch", "nllb", "nomicbert"};
  return std::ranges::any_of(ungated, [&](auto name) { return config.is_called(name); });
}

/// The architecture that it names, unless its experts are known to have no gates; empty where none is named.
/// Nearly all have them, so that one which is not known here is taken to.
[[nodiscard]] inline std::string gated_architecture(const model_config& config) {
  if (is_ungated_architecture(config)) {
    return "";
  }
  const auto named = std::ranges::find_if(config.names, [](const auto& name) { return !name.empty(); });
  return named == config.names.end() ? "" : *named;
}

namespace detail::moe {

/// What matrices hold that may be gate and up in one, or up alone, of experts without gates.
enum class held_parts : unsigned char { both, up_alone, unknown };

/// What config.json says of matrices that hold gate and up of experts with so many neurons, or up alone of
/// twice as many: by a switch, unless F contradicts it; by F; or by the architecture.
[[nodiscard]] inline held_parts parts_by_config(index_t ffn_dim_of_both,
                                                const std::optional<model_config>& config) {
  if (!config) {
    return held_parts::unknown;
  }
  const auto by_width = config->ffn_dim == ffn_dim_of_both       ? held_parts::both
                        : config->ffn_dim == 2 * ffn_dim_of_both ? held_parts::up_alone
                                                                 : held_parts::unknown;
  if (config->has_gates) {
    const auto said = *config->has_gates ? held_parts::both : held_parts::up_alone;
    const bool agrees = by_width == held_parts::unknown || by_width == said;
    return agrees || !config->is_ffn_dim_of_experts ? said : held_parts::unknown;
  }
  if (by_width != held_parts::unknown) {
    return by_width;
  }
  if (is_ungated_architecture(*config)) {
    return held_parts::up_alone;
  }
  return gated_architecture(*config).empty() ? held_parts::unknown : held_parts::both;
}

/// The layouts that the architecture which config.json names has, of those in the table.
[[nodiscard]] inline std::vector<gate_layout> layouts_of_architecture(
    const std::vector<architecture_layout>& table, const std::optional<model_config>& config) {
  std::vector<gate_layout> out;
  bool is_other = config && config->names_any();
  for (const auto& known : table) {
    const bool is_it =
        config && (known.architecture.empty() ? is_other : config->is_called(known.architecture));
    is_other = is_other && (known.architecture.empty() || !is_it);
    if (is_it &&
        (!known.is_whole || (config->is_of_transformers_5 && config->names.front() == known.architecture))) {
      out.push_back(known.layout);
    }
  }
  return out;
}

}  // namespace detail::moe

MPIROUTER_END
