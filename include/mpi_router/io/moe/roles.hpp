// What the name of a tensor says: a router, an expert's, or neither, and of which layer.
#pragma once

#include <mpi_router/io/moe/layer_names.hpp>

#include <array>

MPIROUTER_BEGIN

namespace detail::moe {

enum class tensor_role : unsigned char { other, router, expert, optimizer, adapter };

/// What a tensor is, by the look of its name.
struct tensor_part {
  tensor_role role = tensor_role::other;
  std::string block = {};              ///< what a router and its experts begin with, "model.layers.3.mlp."
  std::optional<index_t> expert = {};  ///< of an expert's tensor that has a number
  bool plain_gate = false;             ///< a router by nothing but "gate", as dense layers have it too
};

[[nodiscard]] inline bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != text.npos;
}

template <std::size_t N>
[[nodiscard]] bool is_one_of(std::string_view text, const std::array<std::string_view, N>& words) {
  return std::ranges::find(words, text) != words.end();
}

[[nodiscard]] inline bool is_optimizer_word(std::string_view c) {
  constexpr std::array<std::string_view, 10> words{
      "optimizer", "optim",      "optimizer_state", "opt_state", "adam",
      "adamw",     "square_avg", "acc_delta",       "exp_inf",   "optimizer_states"};
  return is_one_of(c, words) || c.starts_with("exp_avg") || c.starts_with("max_exp_avg") ||
         c.starts_with("momentum");
}

/// The words of PEFT: LoRA, LoKr, LoHa, OFT, BOFT, IA3, VeRA, HRA, Bone, MiSS, FourierFT, VB-LoRA, RandLoRA,
/// SHiRA, C3A, RoAd, WaveFT, and of whole modules that it trains beside.
[[nodiscard]] inline bool is_adapter_word(std::string_view c) {
  constexpr std::array<std::string_view, 17> beginnings{
      "lora_", "lokr_",      "hada_",   "oft_",      "boft_",  "ia3_", "vera_", "hra_",   "bone_",
      "miss_", "fourierft_", "vblora_", "randlora_", "shira_", "c3a_", "road_", "waveft_"};
  return c == "lora" || c == "modules_to_save" ||
         std::ranges::any_of(beginnings, [&](auto begin) { return c.starts_with(begin); });
}

/// The components of a name that say what is in a layer: after its number, or the last two where it has none.
/// What stands before is of models, "denoiser.blocks.1", or of parts of them, "adapter.layers.1".
[[nodiscard]] inline std::span<const std::string_view> within_layer(const std::vector<std::string_view>& c) {
  const auto layer = layer_component(c);
  return std::span(c).subspan(layer < c.size() ? layer + 1 : c.size() - std::min<std::size_t>(c.size(), 2));
}

/// GroveMoE's adjugate experts, "chunk_experts" and "ffn_gate_chexps": each goes with several of the others,
/// whose rows choose it.
[[nodiscard]] inline bool is_adjugate_word(std::string_view c) {
  return contains(c, "chunk_expert") || contains(c, "_chexps");
}

/// "shared_experts", "share_expert", which see every token, and adjugate ones: no row of the router is theirs
/// alone.
[[nodiscard]] inline bool is_shared_word(std::string_view c) {
  return contains(c, "shared") || contains(c, "share_expert") || is_adjugate_word(c);
}

/// "experts", "local_experts", "expert_3", "switch_mlp"; not "shared_experts", "expert_bias",
/// "per_expert_scale".
[[nodiscard]] inline bool is_expert_word(std::string_view c) {
  constexpr std::array<std::string_view, 4> words{"switch_mlp", "mlp1_weight", "input_linear",
                                                  "output_linear"};
  if (is_one_of(c, words) || c.ends_with("_exps")) {
    return true;
  }
  return contains(c, "expert") && !is_shared_word(c) && !contains(c, "per_expert") &&
         !c.starts_with("routed_expert_") && !c.starts_with("num_") && !c.ends_with("_bias") &&
         c != "expert_gate";
}

/// Scales, zero points, biases and the like: they say how an expert's weights are to be read.
[[nodiscard]] inline bool is_auxiliary(std::string_view leaf) {
  constexpr std::array<std::string_view, 11> parts{"scale",       "zero",   "g_idx",  "shape",
                                                   "bias",        "absmax", "nested", "quant_map",
                                                   "quant_state", "norm",   "qzeros"};
  return std::ranges::any_of(parts, [&](auto part) { return contains(leaf, part); });
}

/// Whether a matrix makes the noise that training adds to a router's logits: it routes nothing.
[[nodiscard]] inline bool is_noise(std::string_view name) {
  const auto c = components_of(name);
  return std::ranges::any_of(within_layer(c), [](auto part) { return contains(part, "noise"); });
}

/// Whether a block is of attention: JetMoE routes that too, to experts that have no gate.
[[nodiscard]] inline bool is_of_attention(std::string_view block) {
  return contains(block, "attn") || contains(block, "attention");
}

/// How many components from the end make a router's name; 0 where it is none. `plain` if only "gate" says it.
[[nodiscard]] inline std::size_t router_suffix(std::span<const std::string_view> c, bool& plain) {
  constexpr std::array<std::string_view, 6> leaves{"weight",        "kernel", "qweight",
                                                   "weight_packed", "w",      "weights"};
  constexpr std::array<std::string_view, 4> bare{"router", "router_weight", "router_weights", "router_DE"};
  constexpr std::array<std::string_view, 8> inner{"layer", "gate",  "classifier", "linear",
                                                  "proj",  "dense", "wg",         "router"};
  constexpr std::array<std::string_view, 7> words{"router",      "ffn_gate_inp",   "moe_gate",     "gating",
                                                  "router_gate", "primary_router", "router_logits"};
  plain = false;
  if (is_one_of(c.back(), bare)) {
    return 1;
  }
  constexpr std::string_view weight = "weight_";  // and a number, of a second group's router
  const bool of_group = c.back().starts_with(weight) && number_of(c.back().substr(weight.size()));
  if (c.size() < 2 || !(is_one_of(c.back(), leaves) || of_group)) {
    return 0;
  }
  const auto last = c[c.size() - 2];
  const auto before = c.size() > 2 ? c[c.size() - 3] : std::string_view();
  if (is_one_of(last, inner) && (before == "router" || (before == "gate" && last != "proj"))) {
    return 3;
  }
  plain = last == "gate";
  return plain || is_one_of(last, words) ? 2 : 0;
}

[[nodiscard]] inline std::string joined(std::span<const std::string_view> c) {
  std::string out;
  for (const auto part : c) {
    out += std::string(part) + ".";
  }
  return out;
}

/// The number that follows one of these words without a dot: "expert_3", "expert3", "weight3".
[[nodiscard]] inline std::optional<index_t> number_after_word(std::string_view part) {
  constexpr std::array<std::string_view, 3> words{"expert_", "expert", "weight"};
  const auto at = part.find_last_not_of(digits) + 1;
  return is_one_of(part.substr(0, at), words) ? number_of(part.substr(at)) : std::nullopt;
}

/// The number of the expert: a component of its own, or at the end of one.
[[nodiscard]] inline std::optional<index_t> expert_number(std::span<const std::string_view> c) {
  for (const auto part : c) {
    if (const auto number = number_of(part)) {
      return number;
    }
  }
  for (const auto part : c) {
    if (const auto number = number_after_word(part)) {
      return number;
    }
  }
  return std::nullopt;
}

[[nodiscard]] inline tensor_part part_of(std::string_view name) {
  const auto c = components_of(name);
  const std::span all(c);
  if (std::ranges::any_of(c, is_optimizer_word)) {
    return {tensor_role::optimizer};
  }
  const auto is_named_so = [](std::string_view part) { return part.starts_with("adapter"); };
  if (std::ranges::any_of(c, is_adapter_word) || std::ranges::any_of(within_layer(c), is_named_so)) {
    return {tensor_role::adapter};
  }
  const auto expert = static_cast<std::size_t>(std::ranges::find_if(c, is_expert_word) - c.begin());
  bool plain = false;
  if (const auto suffix = router_suffix(all, plain); suffix > 0) {
    const auto before = all.first(c.size() - suffix);
    const bool elsewhere = std::ranges::any_of(before, [](auto part) {
      return is_shared_word(part) || contains(part, "attn") || contains(part, "attention");
    });
    const bool of_an_expert = expert < before.size() && (plain || expert_number(before.subspan(expert)));
    if (!of_an_expert && !(plain && elsewhere)) {
      return {tensor_role::router, joined(all.first(std::min(expert, before.size()))), {}, plain};
    }
  }
  if (expert == c.size() || is_auxiliary(c.back()) ||
      std::ranges::any_of(all.first(expert), is_shared_word)) {
    return {};
  }
  return {tensor_role::expert, joined(all.first(expert)), expert_number(all.subspan(expert))};
}

}  // namespace detail::moe

MPIROUTER_END
