// Weights that compressed-tensors keeps turned, for inputs that are turned when they come (QuIP).
#pragma once

#include <mpi_router/io/config_file.hpp>

#include <algorithm>
#include <string>

MPIROUTER_BEGIN

namespace detail::packing {

/// Whether a module of these targets is a down or an output projection, or none but such.
[[nodiscard]] inline bool are_of_outputs(const nlohmann::json& targets) {
  return targets.is_array() && std::ranges::all_of(targets, [](const nlohmann::json& target) {
           const auto* name = target.get_ptr<const std::string*>();
           const auto has = [&](const char* part) { return name->find(part) != name->npos; };
           return name != nullptr && (has("down_proj") || has("o_proj") || has("w2"));
         });
}

/// Whether a step of a transform_config turns what the gates see: then their rows are not what multiplies the
/// token that the router sees.
[[nodiscard]] inline bool turns_gates(const nlohmann::json& step) {
  const auto location = step.is_object() ? step.find("location") : step.end();
  const auto targets = step.is_object() ? step.find("targets") : step.end();
  return location != step.end() && *location == "input" &&
         (targets == step.end() || !are_of_outputs(*targets));
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
