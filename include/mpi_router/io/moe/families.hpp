// The names and layouts that known model families give their tensors.
#pragma once

#include <mpi_router/io/moe/gate_layout.hpp>
#include <mpi_router/io/moe/model_config.hpp>

#include <span>

MPIROUTER_BEGIN

/// A layout that every release of an architecture has.
struct architecture_layout {
  std::string_view architecture;  ///< what its names begin with, see model_config::names
  gate_layout layout;
};

/// How one family names the router and the gates of a layer. {layer} is empty or ends with a dot; {expert} is
/// a number.
struct model_family {
  std::string_view name;
  std::string_view router;
  std::string_view gate;
  std::vector<gate_layout> layouts;  ///< more than one: releases differ
  std::vector<architecture_layout> architectures;
};

/// All that are known here.
[[nodiscard]] inline std::span<const model_family> model_families() {
  using enum gate_layout;
  static const std::vector<model_family> table{
      {"mpi_router", "{layer}mlp.router.weight", "{layer}mlp.experts.gate_proj", {nfd}, {}},
      {"OLMoE, Qwen-MoE, DeepSeek, GLM",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.{expert}.gate_proj.weight",
       {nfd},
       {}},
      {"Hunyuan", "{layer}mlp.gate.wg.weight", "{layer}mlp.experts.{expert}.gate_proj.weight", {nfd}, {}},
      {"Mixtral, Phi-MoE, MiniMax",
       "{layer}block_sparse_moe.gate.weight",
       "{layer}block_sparse_moe.experts.{expert}.w1.weight",
       {nfd},
       {}},
      {"MegaBlocks, DBRX",
       "{layer}router.layer.weight",
       "{layer}experts.mlp.w1",
       {nfd},
       {{"dbrx", nfd}, {"nomicbert", nfd}}},
      {"Granite-MoE",
       "{layer}block_sparse_moe.router.layer.weight",
       "{layer}block_sparse_moe.input_linear.weight",
       {n2fd_concatenated},
       {{"granitemoe", n2fd_concatenated}}},
      {"gpt-oss",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.gate_up_proj",
       {nd2f_interleaved},
       {{"gptoss", nd2f_interleaved}}},
      {"Llama-4",
       "{layer}feed_forward.router.weight",
       "{layer}feed_forward.experts.gate_up_proj",
       {nd2f_concatenated},
       {{"llama4", nd2f_concatenated}}},
      // Qwen3-VL was released as [N, D, 2F] and is written again as [N, 2F, D]: its name does not tell.
      {"Qwen3-VL, Qwen3.5",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.gate_up_proj",
       {nd2f_concatenated, n2fd_concatenated},
       {{"qwen35moe", n2fd_concatenated},
        {"qwen2moe", n2fd_concatenated},
        {"qwen3moe", n2fd_concatenated},
        {"qwen3next", n2fd_concatenated},
        {"mixtral", n2fd_concatenated},
        {"olmoe", n2fd_concatenated},
        {"deepseek", n2fd_concatenated},
        {"glm4moe", n2fd_concatenated},
        {"glm4vmoe", n2fd_concatenated}}},
      {"Jamba",
       "{layer}feed_forward.router.weight",
       "{layer}feed_forward.experts.{expert}.gate_proj.weight",
       {nfd},
       {}},
      {"LFM2-MoE",
       "{layer}feed_forward.gate.weight",
       "{layer}feed_forward.experts.{expert}.w1.weight",
       {nfd},
       {}},
  };
  return table;
}

namespace detail::moe {

/// The layout of the architecture that config.json names, if the family knows it.
[[nodiscard]] inline std::optional<gate_layout> layout_of_architecture(const model_family& family,
                                                                       const model_config& config) {
  for (const auto& known : family.architectures) {
    if (config.is_called(known.architecture)) {
      return known.layout;
    }
  }
  return std::nullopt;
}

}  // namespace detail::moe

MPIROUTER_END
