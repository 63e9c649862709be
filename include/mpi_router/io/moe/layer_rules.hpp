// Which layers of a model have experts, by the rules that its config.json states.
#pragma once

#include <mpi_router/core/config.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

MPIROUTER_BEGIN

namespace detail::moe {

/// The first of these keys that is an integer of sensible size.
[[nodiscard]] inline std::optional<index_t> integer_of(const nlohmann::json& object,
                                                       std::initializer_list<const char*> keys) {
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

/// Whether a key speaks of which layers have experts.
[[nodiscard]] inline bool chooses_layers(const std::string& key) {
  const auto has = [&](const char* part) { return key.find(part) != key.npos; };
  return (has("moe") || has("sparse") || has("dense") || has("expert_layer")) &&
         (has("layer") || has("step") || has("freq") || has("interval") || has("every") || has("replace"));
}

/// Rule by rule: each rule that a config states takes layers away.
class layer_rules {
 public:
  layer_rules(const nlohmann::json& config, index_t layers)
      : config_(config), keep_(static_cast<std::size_t>(layers), true) {}

  /// The numbers of the layers that are left; nothing where the config has rules that are not known here.
  [[nodiscard]] std::optional<std::vector<index_t>> apply() {
    by_kind("mlp_layer_types");
    by_kind("layers_block_type");
    by_pattern();
    by_list("moe_layers", true);
    by_list("mlp_only_layers", false);
    by_list("moe_layer_freq", true);
    by_enumeration();
    only([](index_t i, index_t k) { return i >= k; },
         {"first_k_dense_replace", "num_dense_layers", "moe_layer_num_skipped", "moe_layer_start_index"});
    only([](index_t i, index_t k) { return k < 0 || i <= k; }, {"moe_layer_end_index"});
    only([](index_t i, index_t k) { return i % k == 0; }, {"moe_layer_freq"}, 1);
    only([](index_t i, index_t k) { return (i + 1) % k == 0; },
         {"decoder_sparse_step", "moe_layer_interval", "moe_layer_frequency", "interleave_moe_layer_step"},
         1);
    const auto offset = integer_of(config_, {"expert_layer_offset"}).value_or(0);
    only([&](index_t i, index_t k) { return i % k == offset; }, {"expert_layer_period"}, 1);
    understood_.emplace_back("expert_layer_offset");
    return has_unknown_rules() ? std::nullopt : std::optional(layers_left());
  }

 private:
  [[nodiscard]] bool has_unknown_rules() const {
    for (const auto& [key, value] : config_.items()) {
      if (chooses_layers(key) && !value.is_null() &&
          std::ranges::find(understood_, key) == understood_.end()) {
        return true;
      }
    }
    return false;
  }

  [[nodiscard]] std::vector<index_t> layers_left() const {
    std::vector<index_t> out;
    for (std::size_t i = 0; i < keep_.size(); ++i) {
      if (keep_[i]) {
        out.push_back(static_cast<index_t>(i));
      }
    }
    return out;
  }

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
      if (const auto k = integer_of(config_, {key})) {
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
      const bool listed = flags ? at < it->size() && (*it)[at] != 0
                                : std::find(it->begin(), it->end(), nlohmann::json(i)) != it->end();
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

  const nlohmann::json& config_;
  std::vector<bool> keep_;
  std::vector<std::string> understood_;
};

}  // namespace detail::moe

MPIROUTER_END
