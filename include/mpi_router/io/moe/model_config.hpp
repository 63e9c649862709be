// What the config.json beside a checkpoint says of its layers and experts.
#pragma once

#include <mpi_router/io/config_file.hpp>
#include <mpi_router/io/moe/layer_rules.hpp>

#include <array>
#include <cctype>

MPIROUTER_BEGIN

/// What is absent was not said, or not in words known here.
struct model_config {
  std::vector<std::string> names;  ///< model types and architectures, in small letters and digits alone
  std::optional<index_t> hidden_dim;
  std::optional<index_t> num_experts;              ///< routed experts of a layer
  std::optional<index_t> experts_per_token;        ///< K of top-K
  std::optional<index_t> ffn_dim;                  ///< neurons of a routed expert
  bool is_ffn_dim_of_experts = false;              ///< in a word for routed experts, not for any layer
  std::optional<std::vector<index_t>> moe_layers;  ///< numbers of the layers with experts, ascending
  std::optional<bool> has_gates;                   ///< experts have gates beside up projections
  bool is_of_transformers_5 = false;               ///< transformers_version begins with 5
  std::string problem;                             ///< why it could not be read; empty if it could

  /// Whether an architecture or model type begins so.
  [[nodiscard]] bool is_called(std::string_view architecture) const {
    return std::ranges::any_of(names, [&](const auto& name) { return name.starts_with(architecture); });
  }
  /// Whether it names an architecture or model type at all.
  [[nodiscard]] bool names_any() const {
    return std::ranges::any_of(names, [](const auto& name) { return !name.empty(); });
  }
};

namespace detail::moe {

[[nodiscard]] inline std::string letters_and_digits(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return out;
}

inline void collect_names(const nlohmann::json& object, std::vector<std::string>& names) {
  if (const auto it = object.find("model_type"); it != object.end() && it->is_string()) {
    names.push_back(letters_and_digits(it->get<std::string>()));
  }
  if (const auto it = object.find("architectures"); it != object.end() && it->is_array()) {
    for (const auto& name : *it) {
      if (name.is_string()) {
        names.push_back(letters_and_digits(name.get<std::string>()));
      }
    }
  }
}

/// The part of a composite config that speaks of the layers with experts: the innermost.
[[nodiscard]] inline const nlohmann::json& text_part(const nlohmann::json& whole) {
  const auto inner = [](const nlohmann::json& part) -> const nlohmann::json* {
    for (const char* key : {"text_config", "language_config", "llm_config", "thinker_config"}) {
      if (const auto it = part.find(key); it != part.end() && it->is_object()) {
        return &*it;
      }
    }
    return nullptr;
  };
  const nlohmann::json* part = &whole;
  while (const auto* next = inner(*part)) {  // no recursion: a file may nest them as deep as it likes
    part = next;
  }
  return *part;
}

[[nodiscard]] inline std::optional<index_t> experts_of(const nlohmann::json& text) {
  auto experts = integer_of(text, {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts",
                                   "num_moe_experts", "n_experts"});
  if (const auto ffn = text.find("ffn_config"); !experts && ffn != text.end() && ffn->is_object()) {
    experts = integer_of(*ffn, {"moe_num_experts"});  // DBRX
  }
  return experts && *experts > 1 ? experts : std::nullopt;  // 1: a dense model of a family that can be sparse
}

[[nodiscard]] inline std::optional<index_t> experts_per_token_of(const nlohmann::json& text) {
  auto count = integer_of(text, {"num_experts_per_tok", "num_experts_per_token", "experts_per_token",
                                 "moe_topk", "moe_top_k", "moe_k"});
  if (const auto ffn = text.find("ffn_config"); !count && ffn != text.end() && ffn->is_object()) {
    count = integer_of(*ffn, {"moe_top_k"});  // DBRX
  }
  return count && *count >= 1 ? count : std::nullopt;
}

/// F in words for routed experts; these go before words for any layer, of which a dense one may be meant.
inline void read_ffn_dim(const nlohmann::json& text, model_config& out) {
  constexpr std::array<const char*, 4> own{"moe_intermediate_size", "moe_ffn_hidden_size",
                                           "expert_ffn_hidden_size", "expert_intermediate_size"};
  out.is_ffn_dim_of_experts = std::ranges::any_of(own, [&](const char* key) { return text.contains(key); });
  auto neurons = out.is_ffn_dim_of_experts
                     ? integer_of(text, {own[0], own[1], own[2], own[3]})
                     : integer_of(text, {"intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff"});
  if (const auto ffn = text.find("ffn_config"); !neurons && ffn != text.end() && ffn->is_object()) {
    neurons = integer_of(*ffn, {"ffn_hidden_size"});  // DBRX
  }
  out.ffn_dim = neurons && *neurons >= 1 ? neurons : std::nullopt;
}

/// Whether experts have gates: by a switch (Megatron's, T5's), or an activation that needs them, "swiglu".
[[nodiscard]] inline std::optional<bool> has_gates_of(const nlohmann::json& text) {
  for (const char* key : {"gated_linear_unit", "swiglu", "is_gated_act"}) {
    if (const auto it = text.find(key); it != text.end() && it->is_boolean()) {
      return it->get<bool>();
    }
  }
  for (const char* key :
       {"hidden_act", "hidden_activation", "activation_function", "activation_func", "activation"}) {
    const auto it = text.find(key);
    if (it != text.end() && it->is_string() && letters_and_digits(it->get<std::string>()).ends_with("glu")) {
      return true;
    }
  }
  return std::nullopt;
}

/// LongCat's num_hidden_layers counts attention, which is twice in a layer.
[[nodiscard]] inline std::optional<index_t> layers_of(const nlohmann::json& text, bool of_longcat) {
  if (of_longcat) {
    const auto layers = integer_of(text, {"num_layers"});
    const auto attention = integer_of(text, {"num_hidden_layers"});
    return layers || !attention ? layers : std::optional(*attention / 2);
  }
  const auto layers = integer_of(text, {"num_hidden_layers", "num_layers", "n_layers", "n_layer"});
  const auto kinds = text.find("layers_block_type");
  return !layers && kinds != text.end() && kinds->is_array() ? static_cast<index_t>(kinds->size()) : layers;
}

}  // namespace detail::moe

/// Reads `text`, a config.json. A composite model is asked for the part that speaks: text_config and the
/// like. Never throws for what the text says.
[[nodiscard]] inline model_config parse_model_config(std::string_view text) {
  using namespace detail::moe;
  model_config out;
  const auto whole = parse_python_json(text);
  if (!whole.is_object()) {
    out.problem = "is no JSON object";
    return out;
  }
  const auto& part = text_part(whole);
  collect_names(whole, out.names);
  if (&part != &whole) {
    collect_names(part, out.names);
  }
  const auto version = whole.find("transformers_version");
  out.is_of_transformers_5 =
      version != whole.end() && version->is_string() && version->get<std::string>().starts_with("5.");
  out.hidden_dim = integer_of(part, {"hidden_size", "d_model", "n_embd", "dim"});
  out.num_experts = experts_of(part);
  out.experts_per_token = experts_per_token_of(part);
  read_ffn_dim(part, out);
  out.has_gates = has_gates_of(part);
  const auto layers = layers_of(part, out.is_called("longcat"));
  const auto two_stacks = part.find("is_encoder_decoder");
  const bool stacks = two_stacks != part.end() && *two_stacks == true;
  if (layers && *layers > 0 && out.num_experts && !stacks) {
    out.moe_layers = layer_rules(part, *layers).apply();
  }
  return out;
}

/// The config.json in a folder, or beside a file; nothing where there is none.
[[nodiscard]] inline std::optional<model_config> read_model_config(const std::filesystem::path& checkpoint) {
  const auto file = read_beside(checkpoint, "config.json");
  if (!file) {
    return std::nullopt;
  }
  if (!file->problem.empty()) {
    model_config out;
    out.problem = file->problem;
    return out;
  }
  return parse_model_config(file->text);
}

MPIROUTER_END
