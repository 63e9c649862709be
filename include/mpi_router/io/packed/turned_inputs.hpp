// Weights that compressed-tensors keeps turned, for inputs that are turned when they come (QuIP).
#pragma once

#include <mpi_router/io/config_file.hpp>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>

MPIROUTER_BEGIN

namespace detail::packing {

[[nodiscard]] inline bool has_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::ranges::any_of(words, [&](auto word) { return text.find(word) != text.npos; });
}

/// Whether a target, a name or a regular expression, is of other modules than gates: each of its alternatives
/// names a projection of attention or a down projection.
[[nodiscard]] inline bool is_of_others(std::string_view target) {
  for (std::size_t begin = 0; begin <= target.size();) {
    const auto end = std::min(target.find('|', begin), target.size());
    const auto one = target.substr(begin, end - begin);
    if (!has_any(one, {"down_proj", "w2", "q_proj", "k_proj", "v_proj", "o_proj", "qkv"}) ||
        has_any(one, {"gate", "up", "w1", "w3", "fc1"})) {
      return false;
    }
    begin = end + 1;
  }
  return true;
}

/// Whether an entry of "ignore" is of all that experts have: "re:.*mlp.experts.*".
[[nodiscard]] inline bool is_of_all_experts(std::string_view entry) {
  const std::string_view word = "experts";
  const auto at = entry.rfind(word);
  const bool is_shared = at != entry.npos && entry.substr(0, at).ends_with("shared_");
  return at != entry.npos && !is_shared && entry.find_first_not_of("\\.*$", at + word.size()) == entry.npos;
}

/// Whether a list of names has one of which this holds, or, `all`, none of which it does not hold.
template <class Holds>
[[nodiscard]] bool names_hold(const nlohmann::json& names, bool all, const Holds& holds) {
  const auto each = [&](const nlohmann::json& name) {
    const auto* text = name.get_ptr<const std::string*>();
    return text != nullptr && holds(std::string_view(*text));
  };
  return names.is_array() && (all ? std::ranges::all_of(names, each) : std::ranges::any_of(names, each));
}

/// Whether a step of a transform_config turns what the gates see: then their rows are not what multiplies the
/// token that the router sees.
[[nodiscard]] inline bool turns_gates(const nlohmann::json& step) {
  const auto location = step.is_object() ? step.find("location") : step.end();
  if (location == step.end() || !(*location == "input")) {
    return false;
  }
  const auto targets = step.find("targets");
  const auto ignored = step.find("ignore");
  return (targets == step.end() || !names_hold(*targets, true, is_of_others)) &&
         (ignored == step.end() || !names_hold(*ignored, false, is_of_all_experts));
}

/// Whether any step of any scheme does.
[[nodiscard]] inline bool turns_inputs(const nlohmann::json& entry) {
  const auto* config = find_object(entry, {"transform_config"});
  const auto* schemes = config == nullptr ? nullptr : find_object(*config, {"config_groups"});
  return schemes != nullptr && std::ranges::any_of(*schemes, [](const nlohmann::json& scheme) {
           const auto steps = scheme.is_object() ? scheme.find("apply") : scheme.end();
           return steps != scheme.end() && steps->is_array() && std::ranges::any_of(*steps, turns_gates);
         });
}

}  // namespace detail::packing

MPIROUTER_END
