#include "promises.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

namespace verify {

namespace {

using mpi_router::checkpoint;

constexpr std::string_view config_name = "config.json";

std::string first_and_count(const std::vector<std::string>& names) {
  return names.size() > 1 ? fmt::format("{} and {} more", names[0], names.size() - 1) : names[0];
}

/// The numbers of the layers that the files hold, of the longest series alone: "mtp.0" is not layer 0 of the
/// model.
std::vector<index_t> layers_held(const found_parts& found) {
  std::map<std::string, std::set<index_t>> series;
  const auto add = [&](std::string_view block) {
    if (const auto place = place_of_layer(block)) {
      series[place->series].insert(place->number);
    }
  };
  for (const auto& block : found.blocks) {
    add(block);
  }
  for (const auto& layer : found.result.layers) {
    add(layer.name);
  }
  const auto longest = std::ranges::max_element(series, {}, [](const auto& s) { return s.second.size(); });
  return longest == series.end() ? std::vector<index_t>{}
                                 : std::vector<index_t>(longest->second.begin(), longest->second.end());
}

bool is_of_another_model(const model_config& config, const search_result& result) {
  return config.hidden_dim && !result.layers.empty() &&
         std::ranges::none_of(result.layers,
                              [&](const auto& l) { return l.hidden_dim == *config.hidden_dim; });
}

void note_missing_layers(const model_config& config, found_parts& found) {
  const auto held = layers_held(found);
  std::vector<index_t> missing;
  std::ranges::set_difference(*config.moe_layers, held, std::back_inserter(missing));
  if (missing.empty() || (held.empty() && !found.result.layers.empty())) {
    return;  // nothing to compare where layers have no numbers
  }
  const auto count = static_cast<index_t>(missing.size());
  found.result.others.push_back(
      {std::string(config_name),
       fmt::format("says that {} {} {} experts each, and {} not here", count == 1 ? "layer" : "layers",
                   ranges_of(missing), fmt::format("{} {}", count == 1 ? "has" : "have", *config.num_experts),
                   count == 1 ? "it is" : "they are"),
       fate::missing, count, count * *config.num_experts});
}

}  // namespace

void note_missing_files(const checkpoint& model, found_parts& found) {
  auto& others = found.result.others;
  std::vector<std::string> absent;
  std::vector<std::string> unlisted;
  const auto& beside = model.unlisted_files();
  for (const auto& name : model.missing_shards()) {
    (std::ranges::find(beside, name) == beside.end() ? absent : unlisted).push_back(name);
  }
  const bool one_file = model.shards().size() == 1 && model.shards()[0].path() == model.path();
  if (!absent.empty()) {
    const auto shard = std::ranges::find_if(model.shards(), [](const auto& file) {
      return mpi_router::detail::shard_name_of(file.path().filename().string()).has_value();
    });
    const auto name = shard->path().filename().string();  // there is one: it made the promise
    others.push_back(
        {first_and_count(absent),
         fmt::format("not {}, though the name of {} says that it is one of {} shards",
                     one_file ? "read" : "here", name, mpi_router::detail::shard_name_of(name)->count),
         fate::missing});
  }
  if (!unlisted.empty()) {
    others.push_back({first_and_count(unlisted),
                      "not read: " + model.index().filename().string() +
                          " does not name it, though its name is one of the shards'",
                      fate::missing});
  }
  std::vector<std::string> strangers;
  std::ranges::set_difference(beside, unlisted, std::back_inserter(strangers));
  if (!strangers.empty()) {
    others.push_back({first_and_count(strangers),
                      "not read: " + model.index().filename().string() + " does not name it",
                      fate::set_aside});
  }
}

void note_config(const model_config& config, found_parts& found) {
  auto& others = found.result.others;
  if (!config.problem.empty()) {
    others.push_back({std::string(config_name), config.problem + ", and says nothing of what should be here",
                      fate::set_aside});
    return;
  }
  if (is_of_another_model(config, found.result)) {
    others.push_back(
        {std::string(config_name),
         fmt::format("seems to be of another model: its hidden dimension is {}, the routers' is {}",
                     *config.hidden_dim, found.result.layers[0].hidden_dim),
         fate::missing});
    return;
  }
  if (config.moe_layers) {
    note_missing_layers(config, found);
  }
}

void note_idle_rows(const std::optional<model_config>& config, found_parts& found) {
  std::map<std::string, unmatched> entries;  // by reason: layers mostly agree
  for (const auto& layer : found.result.layers) {
    const auto promised =
        config && !is_of_another_model(*config, found.result) ? config->num_experts : std::nullopt;
    std::vector<index_t> idle(static_cast<std::size_t>(layer.router_rows - layer.num_experts));
    std::iota(idle.begin(), idle.end(), layer.num_experts);
    const index_t lacking = promised.value_or(layer.router_rows) - layer.num_experts;
    if (idle.empty() && lacking == 0) {
      continue;
    }
    std::string reason;
    if (!idle.empty()) {
      reason = fmt::format("row{} {} of the router {} no expert", idle.size() == 1 ? "" : "s",
                           ranges_of(idle), idle.size() == 1 ? "has" : "have");
      reason += promised ? "" : ": identity experts, or experts of a shard that is not here";
    }
    if (promised) {
      reason += fmt::format("{}{} says {} experts, and {} are here", reason.empty() ? "" : "; ", config_name,
                            *promised, layer.num_experts);
    }
    auto& entry =
        entries.try_emplace(with_stars(layer.name) + reason, unmatched{layer.name, reason, fate::set_aside})
            .first->second;
    entry.name = entry.name == layer.name ? layer.name : with_stars(layer.name);
    if (lacking > 0) {
      entry.what = fate::missing;
      entry.rows += lacking;
    }
  }
  for (auto& [key, entry] : entries) {
    found.result.others.push_back(std::move(entry));
  }
}

}  // namespace verify
