#include "families.hpp"

#include "names.hpp"

#include <fmt/format.h>

namespace verify {

std::span<const family> families() {
  using enum layout;
  static const std::vector<family> table{
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

std::optional<layout> layout_of_architecture(const family& f, const model_config& config) {
  for (const auto& known : f.architectures) {
    if (config.is_called(known.architecture)) {
      return known.how;
    }
  }
  return std::nullopt;
}

std::string describe_families() {
  std::string out;
  for (const auto& f : families()) {
    std::string layouts;
    for (const layout how : f.layouts) {
      layouts += (layouts.empty() ? "" : " or ") + std::string(flag_of(how));
    }
    out +=
        fmt::format("  {}\n      {}\n      {}  {}\n", f.name, replace(std::string(f.router), layer_mark, "…"),
                    replace(replace(std::string(f.gate), layer_mark, "…"), expert_mark, "E"), layouts);
  }
  return out;
}

}  // namespace verify
