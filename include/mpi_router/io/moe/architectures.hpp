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

/// The architecture that config.json, or a GGUF file, names, unless its experts are known to have no gates;
/// empty where none is named. Nearly all have them, so that one which is not known here is taken to.
[[nodiscard]] inline std::string gated_architecture(const model_config& config) {
  for (const char* ungated : {"nemotron", "switch", "nllb", "nomicbert"}) {
    if (config.is_called(ungated)) {
      return "";
    }
  }
  const auto named = std::ranges::find_if(config.names, [](const auto& name) { return !name.empty(); });
  return named == config.names.end() ? "" : *named;
}

namespace detail::moe {

/// The layouts that the architecture which config.json names has, of those in the table.
[[nodiscard]] inline std::vector<gate_layout> layouts_of_architecture(
    const std::vector<architecture_layout>& table, const std::optional<model_config>& config) {
  std::vector<gate_layout> out;
  for (const auto& known : table) {
    const bool is_it = config && (known.architecture.empty() ? config->names_any() && out.empty()
                                                             : config->is_called(known.architecture));
    if (is_it &&
        (!known.is_whole || (config->is_of_transformers_5 && config->names.front() == known.architecture))) {
      out.push_back(known.layout);
    }
  }
  return out;
}

}  // namespace detail::moe

MPIROUTER_END
