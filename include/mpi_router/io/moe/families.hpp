// The names and layouts that known model families give their tensors.
#pragma once

#include <mpi_router/io/moe/architectures.hpp>

#include <span>

MPIROUTER_BEGIN

/// How one family names the router and the gates of a layer. {layer} is empty or ends with a dot; {expert} is
/// a number.
struct model_family {
  std::string_view name;
  std::string_view router;
  std::string_view gate;
  std::vector<gate_layout> layouts;  ///< more than one: releases differ
  std::vector<architecture_layout> architectures;
  router_layout layout_of_router = router_layout::nd;
  expert_part part = expert_part::gate;
  std::vector<gate_layout> unnamed = {};     ///< that it has where config.json names no architecture
  std::optional<gate_layout> in_mxfp4 = {};  ///< of MXFP4, then
  std::string_view beside = {};  ///< must be there too, where others have the gate's name for another matrix
};

/// All that are known here.
[[nodiscard]] inline std::span<const model_family> model_families() {
  const auto and_fused = [](std::vector<architecture_layout> known) {
    const auto& others = fused_architectures();
    known.insert(known.end(), others.begin(), others.end());
    return known;
  };
  using enum gate_layout;
  using enum router_layout;
  constexpr auto up = expert_part::up;
  const auto beside = [](std::string_view other, model_family named) {
    named.beside = other;
    return named;
  };
  static const std::vector<model_family> table{
      {"mpi_router", "{layer}mlp.router.weight", "{layer}mlp.experts.gate_proj", {nfd}, {}},
      {"OLMoE, Qwen-MoE, DeepSeek, GLM",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.{expert}.gate_proj.weight",
       {nfd},
       {}},
      {"Hunyuan", "{layer}mlp.gate.wg.weight", "{layer}mlp.experts.{expert}.gate_proj.weight", {nfd}, {}},
      {"Hunyuan, gate and up in one",  // up comes first, whatever the name says
       "{layer}mlp.gate.wg.weight",
       "{layer}mlp.experts.{expert}.gate_and_up_proj.weight",
       {n2fd_up_first},
       {}},
      {"AFMoE", "{layer}mlp.router.gate.weight", "{layer}mlp.experts.{expert}.gate_proj.weight", {nfd}, {}},
      {"LongCat",
       "{layer}mlp.router.classifier.weight",
       "{layer}mlp.experts.{expert}.gate_proj.weight",
       {nfd},
       {}},
      {"Mixtral, Phi-MoE, MiniMax",
       "{layer}block_sparse_moe.gate.weight",
       "{layer}block_sparse_moe.experts.{expert}.w1.weight",
       {nfd},
       {}},
      {"DeepSeek-V4", "{layer}ffn.gate.weight", "{layer}ffn.experts.{expert}.w1.weight", {nfd}, {}},
      {"MegaBlocks, DBRX",
       "{layer}router.layer.weight",
       "{layer}experts.mlp.w1",
       {nfd, ndf},
       {{"dbrx", nfd}, {"nomicbert", nfd}}},
      {"OLMo-core",
       "{layer}feed_forward_moe.router.weight",
       "{layer}feed_forward_moe.experts.mlp.w1",
       {nfd},
       {}},
      {"Step-3.5", "{layer}moe.gate.weight", "{layer}moe.gate_proj.weight", {nfd}, {{"step3", nfd}}},
      {"Granite-MoE, JetMoE",
       "{layer}router.layer.weight",
       "{layer}input_linear.weight",
       {n2fd_concatenated},
       {{"granitemoe", n2fd_concatenated}, {"jetmoe", n2fd_concatenated}}},
      {"Granite-MoE by modules",
       "{layer}block_sparse_moe.router.weight",
       "{layer}block_sparse_moe.experts.gate_up_proj",
       {n2fd_concatenated},
       {{"granitemoe", n2fd_concatenated}}},
      // gpt-oss unpacked is [N, D, 2F]; its blocks of MXFP4 are stored as [N, 2F, D]. OpenAI's privacy filter
      // and Phi-MoE, written by modules, have these names too, and no shape tells rows in turn from rows of
      // gate before rows of up.
      {"gpt-oss, Phi-MoE by modules",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.gate_up_proj",
       {nd2f_interleaved, nd2f_concatenated, n2fd_interleaved, n2fd_concatenated},
       and_fused({{"gptoss", nd2f_interleaved},
                  {"gptoss", n2fd_interleaved},
                  {"openaiprivacyfilter", nd2f_concatenated}}),
       nd,
       expert_part::gate,
       {nd2f_interleaved},
       n2fd_interleaved},
      // Rows of Inkling and gpt-oss are in turn; vLLM writes those of other models one half after the other,
      // and so does SGLang, turned round for Triton's kernels.
      {"Inkling, vLLM",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.w13_weight",
       {n2fd_interleaved, n2fd_concatenated, nd2f_interleaved, nd2f_concatenated},
       {{"inkling", n2fd_interleaved},
        {"gptoss", n2fd_interleaved},
        {"gptoss", nd2f_interleaved},
        {"", n2fd_concatenated},
        {"", nd2f_concatenated}}},
      {"gpt-oss (original)",
       "{layer}mlp.gate.weight",
       "{layer}mlp.mlp1_weight",
       {n2fd_interleaved},
       {{"gptoss", n2fd_interleaved}}},
      {"Llama-4, Jamba",
       "{layer}feed_forward.router.weight",
       "{layer}feed_forward.experts.gate_up_proj",
       {nd2f_concatenated, n2fd_concatenated},
       {{"llama4", nd2f_concatenated}, {"jamba", n2fd_concatenated}}},
      {"Llama-4 (original)",
       "{layer}feed_forward.router_DE",
       "{layer}feed_forward.experts.moe_w_in_eD_F",
       {ndf},
       {},
       dn},
      // Qwen3-VL was released as [N, D, 2F] and is written again as [N, 2F, D]: its name does not tell.
      {"Qwen3-VL, Qwen3.5",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.gate_up_proj",
       {nd2f_concatenated, n2fd_concatenated},
       fused_architectures()},
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
      {"LFM2-MoE by modules",
       "{layer}feed_forward.gate.weight",
       "{layer}feed_forward.experts.gate_up_proj",
       {n2fd_concatenated},
       {{"lfm2", n2fd_concatenated}}},
      {"ERNIE-4.5 (Paddle)",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.{expert}.up_gate_proj.weight",
       {nd2f_concatenated},
       {{"ernie", nd2f_concatenated}},
       dn},
      {"Aria",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.fc1.weight",
       {nd2f_concatenated},
       {{"aria", nd2f_concatenated}}},
      {"MLX", "{layer}mlp.gate.weight", "{layer}mlp.switch_mlp.gate_proj.weight", {nfd}, {}},
      {"MLX, Mixtral",
       "{layer}block_sparse_moe.gate.weight",
       "{layer}block_sparse_moe.switch_mlp.gate_proj.weight",
       {nfd},
       {}},
      {"MLX, gpt-oss", "{layer}mlp.router.weight", "{layer}mlp.experts.gate_proj.weight", {nfd}, {}},
      {"TorchTitan", "{layer}moe.router.gate.weight", "{layer}moe.experts.w1", {nfd, ndf}, {}},
      beside("{layer}mlp.experts.{expert}.proj.weight",
             {"LitGPT",  // fc_1 and fc_2 alone are a network of two layers
              "{layer}mlp.gate.weight",
              "{layer}mlp.experts.{expert}.fc_1.weight",
              {nfd},
              {}}),
      {"Megatron",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.local_experts.{expert}.linear_fc1.weight",
       {n2fd_concatenated},
       {}},
      {"Megatron, torch_dist",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.experts.linear_fc1.weight",
       {n2fd_concatenated},
       {}},
      {"Megatron, grouped",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.linear_fc1.weight{expert}",
       {n2fd_concatenated},
       {}},
      {"Megatron, grouped in one",
       "{layer}mlp.router.weight",
       "{layer}mlp.experts.linear_fc1.weight",
       {n2fd_concatenated},
       {}},
      {"NeMo Automodel",
       "{layer}mlp.gate.weight",
       "{layer}mlp.experts.gate_and_up_projs",
       {nd2f_concatenated, nd2f_interleaved},
       {{"gptoss", nd2f_interleaved}, {"", nd2f_concatenated}}},
      beside("{layer}mlp.proj.weight",
             {"TensorRT-LLM", "{layer}mlp.router.weight", "{layer}mlp.fc.weight", {n2fd_up_first}, {}}),
      beside("{layer}mlp.fc2.weight", {"Moondream-3",
                                       "{layer}mlp.router.weight",
                                       "{layer}mlp.fc1.weight",
                                       {n2fd_concatenated},
                                       {{"moondream", n2fd_concatenated}}}),
      beside("{layer}experts.{expert}.linear_v.weight",
             {"Grok-1", "{layer}gate.weight", "{layer}experts.{expert}.linear.weight", {nfd}, {}}),
      beside(
          "{layer}moe.{expert}.linear_v.weight",
          {"Grok-1, router outside", "{layer}router.weight", "{layer}moe.{expert}.linear.weight", {nfd}, {}}),
      {"Gemma-4 (Flax)",
       "{layer}mlp.router_logits.w",
       "{layer}mlp.gating_einsum",
       {n2fd_concatenated},
       {},
       dn},
      {"Gemma-4 (Flax), einsum by modules",
       "{layer}mlp.router_logits.w",
       "{layer}mlp.gating_einsum.w",
       {n2fd_concatenated},
       {},
       dn},
      {"Marin", "{layer}mlp.router", "{layer}mlp.expert_mlp.w_gate", {ndf}, {}, dn},
      {"VeOmni, verl", "{layer}mlp.gate.weight", "{layer}mlp.experts.gate_proj", {nfd}, {}},
      {"GGUF", "{layer}ffn_gate_inp.weight", "{layer}ffn_gate_exps.weight", {nfd}, {}},
      {"GGUF, fused",
       "{layer}ffn_gate_inp.weight",
       "{layer}ffn_gate_up_exps.weight",
       {n2fd_concatenated},
       {}},
      {"GGUF, old Mixtral", "{layer}ffn_gate_inp.weight", "{layer}ffn_gate.{expert}.weight", {nfd}, {}},
      {"Nemotron-H",
       "{layer}mixer.gate.weight",
       "{layer}mixer.experts.{expert}.up_proj.weight",
       {nfd},
       {},
       nd,
       up},
      {"Switch",
       "{layer}mlp.router.classifier.weight",
       "{layer}mlp.experts.expert_{expert}.wi.weight",
       {nfd},
       {},
       nd,
       up},
      {"NLLB",
       "{layer}ffn.router.classifier.weight",
       "{layer}ffn.experts.expert_{expert}.fc1.weight",
       {nfd},
       {},
       nd,
       up},
      {"GGUF without gates", "{layer}ffn_gate_inp.weight", "{layer}ffn_up_exps.weight", {nfd}, {}, nd, up},
  };
  return table;
}

MPIROUTER_END
