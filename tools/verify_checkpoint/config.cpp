#include "config.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <initializer_list>
#include <iterator>

namespace verify {

namespace {

using json = nlohmann::json;

std::string plain(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) {
      out += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return out;
}

std::optional<index_t> integer(const json& object, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (const auto it = object.find(key); it != object.end() && it->is_number_integer()) {
      const auto value = it->get<std::int64_t>();
      if (value >= -1 && value <= 1'000'000) {
        return static_cast<index_t>(value);
      }
    }
  }
  return std::nullopt;
}

void collect_names(const json& object, std::vector<std::string>& names) {
  if (const auto it = object.find("model_type"); it != object.end() && it->is_string()) {
    names.push_back(plain(it->get<std::string>()));
  }
  if (const auto it = object.find("architectures"); it != object.end() && it->is_array()) {
    for (const auto& name : *it) {
      if (name.is_string()) {
        names.push_back(plain(name.get<std::string>()));
      }
    }
  }
}

/// Whether a key speaks of which layers have experts.
bool chooses_layers(const std::string& key) {
  const auto has = [&](const char* part) { return key.find(part) != key.npos; };
  return (has("moe") || has("sparse") || has("dense") || has("expert_layer")) &&
         (has("layer") || has("step") || has("freq") || has("interval") || has("every") || has("replace"));
}

/// Which layers have experts, rule by rule: each rule that a config states takes layers away.
class layer_rules {
 public:
  layer_rules(const json& config, index_t layers)
      : config_(config), keep_(static_cast<std::size_t>(layers), true) {}

  /// Nothing where the config has rules that are not known here.
  std::optional<std::vector<index_t>> apply() {
    by_kind("mlp_layer_types");
    by_kind("layers_block_type");
    by_pattern();
    by_list("moe_layers", true);
    by_list("mlp_only_layers", false);
    by_list("moe_layer_freq", true);
    by_enumeration();
    only([](index_t i, index_t k) { return i >= k; }, {"first_k_dense_replace"});
    only([](index_t i, index_t k) { return i >= k; }, {"num_dense_layers", "moe_layer_num_skipped"});
    only([](index_t i, index_t k) { return i >= k; }, {"moe_layer_start_index"});
    only([](index_t i, index_t k) { return k < 0 || i <= k; }, {"moe_layer_end_index"});
    only([](index_t i, index_t k) { return i % k == 0; }, {"moe_layer_freq"}, 1);
    only([](index_t i, index_t k) { return (i + 1) % k == 0; }, {"decoder_sparse_step"}, 1);
    only([](index_t i, index_t k) { return (i + 1) % k == 0; }, {"moe_layer_interval"}, 1);
    only([](index_t i, index_t k) { return (i + 1) % k == 0; }, {"moe_layer_frequency"}, 1);
    only([](index_t i, index_t k) { return (i + 1) % k == 0; }, {"interleave_moe_layer_step"}, 1);
    const auto offset = integer(config_, {"expert_layer_offset"}).value_or(0);
    only([&](index_t i, index_t k) { return i % k == offset; }, {"expert_layer_period"}, 1);
    understood_.emplace_back("expert_layer_offset");
    for (const auto& [key, value] : config_.items()) {
      if (chooses_layers(key) && !value.is_null() &&
          std::ranges::find(understood_, key) == understood_.end()) {
        return std::nullopt;
      }
    }
    std::vector<index_t> out;
    for (std::size_t i = 0; i < keep_.size(); ++i) {
      if (keep_[i]) {
        out.push_back(static_cast<index_t>(i));
      }
    }
    return out;
  }

 private:
  template <class Keep>
  void filter(Keep keep) {
    for (std::size_t i = 0; i < keep_.size(); ++i) {
      keep_[i] = keep_[i] && keep(static_cast<index_t>(i));
    }
  }

  /// A number k, no less than `least` where it is heeded.
  template <class Rule>
  void only(Rule rule, std::initializer_list<const char*> keys, index_t least = -1) {
    for (const char* key : keys) {
      if (const auto k = integer(config_, {key})) {
        understood_.emplace_back(key);
        if (*k >= least) {
          filter([&](index_t i) { return rule(i, *k); });
        }
      }
    }
  }

  /// ["dense", "sparse", …] or ["attention", "moe", …]; a list that has no word for experts is about another
  /// matter.
  void by_kind(const char* key) {
    const auto it = config_.find(key);
    if (it == config_.end() || !it->is_array()) {
      return;
    }
    understood_.emplace_back(key);
    const auto sparse = [&](std::size_t i) {
      const auto text = i < it->size() && (*it)[i].is_string() ? (*it)[i].get<std::string>() : "";
      return text.find("moe") != text.npos || text.find("sparse") != text.npos;
    };
    bool any = false;
    for (std::size_t i = 0; i < it->size(); ++i) {
      any = any || sparse(i);
    }
    if (any) {
      filter([&](index_t i) { return sparse(static_cast<std::size_t>(i)); });
    }
  }

  /// "MEM*E…" of Nemotron-H: E has experts.
  void by_pattern() {
    const auto it = config_.find("hybrid_override_pattern");
    if (it != config_.end() && it->is_string() && it->get<std::string>().find('E') != std::string::npos) {
      const auto text = it->get<std::string>();
      filter([&](index_t i) {
        return static_cast<std::size_t>(i) < text.size() && text[static_cast<std::size_t>(i)] == 'E';
      });
    }
  }

  /// A list of layers, or one of a 0 or 1 for each layer.
  void by_list(const char* key, bool wanted) {
    const auto it = config_.find(key);
    if (it == config_.end() || !it->is_array()) {
      return;
    }
    understood_.emplace_back(key);
    const bool flags = std::string_view(key) == "moe_layer_freq";
    filter([&](index_t i) {
      const auto at = static_cast<std::size_t>(i);
      const bool listed =
          flags ? at < it->size() && (*it)[at] != 0 : std::find(it->begin(), it->end(), json(i)) != it->end();
      return listed == wanted;
    });
  }

  /// "4,5,6" of Step-3.
  void by_enumeration() {
    const auto it = config_.find("moe_layers_enum");
    if (it == config_.end() || !it->is_string()) {
      return;
    }
    understood_.emplace_back("moe_layers_enum");
    const std::string text = "," + it->get<std::string>() + ",";
    filter([&](index_t i) { return text.find("," + std::to_string(i) + ",") != text.npos; });
  }

  const json& config_;
  std::vector<bool> keep_;
  std::vector<std::string> understood_;
};

/// The part of a composite config that speaks of the layers with experts.
const json& text_part(const json& whole) {
  for (const char* key : {"text_config", "language_config", "llm_config", "thinker_config"}) {
    if (const auto it = whole.find(key); it != whole.end() && it->is_object()) {
      return text_part(*it);
    }
  }
  return whole;
}

void read_experts(const json& text, model_config& out) {
  out.num_experts = integer(text, {"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts",
                                   "num_moe_experts", "n_experts"});
  if (const auto ffn = text.find("ffn_config"); !out.num_experts && ffn != text.end() && ffn->is_object()) {
    out.num_experts = integer(*ffn, {"moe_num_experts"});  // DBRX
  }
  if (out.num_experts && *out.num_experts <= 1) {
    out.num_experts.reset();  // a dense model of a family that can be sparse
  }
}

}  // namespace

bool model_config::is_called(std::string_view architecture) const {
  return std::ranges::any_of(names, [&](const auto& name) { return name.starts_with(architecture); });
}

model_config parse_config(std::string_view text) {
  model_config out;
  const auto whole = json::parse(text, nullptr, false);
  if (!whole.is_object()) {
    out.problem = "is no JSON object";
    return out;
  }
  const json& part = text_part(whole);
  collect_names(whole, out.names);
  if (&part != &whole) {
    collect_names(part, out.names);
  }
  out.hidden_dim = integer(part, {"hidden_size", "d_model", "n_embd", "dim"});
  read_experts(part, out);
  auto layers = integer(part, {"num_hidden_layers", "num_layers", "n_layers", "n_layer"});
  if (const auto kinds = part.find("layers_block_type");
      !layers && kinds != part.end() && kinds->is_array()) {
    layers = static_cast<index_t>(kinds->size());
  }
  const auto two_stacks = part.find("is_encoder_decoder");
  const bool stacks = two_stacks != part.end() && *two_stacks == true;
  if (layers && *layers > 0 && out.num_experts && !stacks) {
    out.moe_layers = layer_rules(part, *layers).apply();
  }
  return out;
}

std::optional<model_config> read_config(const std::filesystem::path& checkpoint) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto folder = fs::is_directory(checkpoint, error) ? checkpoint : checkpoint.parent_path();
  const auto path = folder / "config.json";
  if (!fs::is_regular_file(path, error)) {
    return std::nullopt;
  }
  constexpr std::uintmax_t longest = 64U << 20U;
  model_config out;
  if (fs::file_size(path, error) > longest) {
    out.problem = "is too long for a config.json";
    return out;
  }
  std::ifstream in(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  return parse_config(text);
}

}  // namespace verify
