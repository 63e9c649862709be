// What the names of the files and a config.json promise, and the files do not hold.
#pragma once

#include <mpi_router/io/moe/model_config.hpp>
#include <mpi_router/io/moe/remainder.hpp>

#include <numeric>

MPIROUTER_BEGIN

namespace detail::moe {

/// The numbers of the layers that the files hold, of the longest series alone: "mtp.0" is not layer 0 of the
/// model.
[[nodiscard]] inline std::vector<index_t> layers_held(const found_parts& found) {
  std::map<std::string, std::set<index_t>> series;
  const auto add = [&](std::string_view block) {
    if (const auto place = place_of_layer(block)) {
      series[place->series].insert(place->number);
    }
  };
  for (const auto& block : found.blocks) {
    add(block);
  }
  for (const auto& layer : found.result) {
    add(layer.name);
  }
  const auto longest = std::ranges::max_element(series, {}, [](const auto& s) { return s.second.size(); });
  return longest == series.end() ? std::vector<index_t>{}
                                 : std::vector<index_t>(longest->second.begin(), longest->second.end());
}

[[nodiscard]] inline bool is_of_another_model(const model_config& config, const moe_layers& found) {
  return config.hidden_dim && !found.empty() && std::ranges::none_of(found.layers, [&](const auto& layer) {
           return layer.hidden_dim == *config.hidden_dim;
         });
}

/// Shards that the names of others promise, and files that the index leaves out.
inline void note_missing_files(const checkpoint& model, found_parts& found) {
  auto& omissions = found.result.omissions;
  std::vector<std::string> absent;
  std::vector<std::string> unlisted;
  const auto& beside = model.unlisted_files();
  for (const auto& name : model.missing_shards()) {
    (std::ranges::find(beside, name) == beside.end() ? absent : unlisted).push_back(name);
  }
  const bool one_file = model.shards().size() == 1 && model.shards()[0].path() == model.path();
  if (!absent.empty()) {
    const auto shard = std::ranges::find_if(model.shards(), [](const auto& file) {
      return shard_name_of(io::path_text(file.path().filename())).has_value();
    });
    const auto name = io::path_text(shard->path().filename());  // there is one: it made the promise
    omissions.push_back({first_and_count(absent[0], absent.size()),
                         core::concatenate("not ", one_file ? "read" : "here", ", though the name of ", name,
                                           " says that it is one of ", shard_name_of(name)->count, " shards"),
                         omission_kind::missing});
  }
  const std::string not_named =
      model.index().empty() ? "not read: a projector of images beside the model"
                            : "not read: " + io::path_text(model.index().filename()) + " does not name it";
  if (!unlisted.empty()) {
    omissions.push_back({first_and_count(unlisted[0], unlisted.size()),
                         not_named + ", though its name is one of the shards'", omission_kind::missing});
  }
  std::vector<std::string> strangers;
  std::ranges::set_difference(beside, unlisted, std::back_inserter(strangers));
  if (!strangers.empty()) {
    omissions.push_back(
        {first_and_count(strangers[0], strangers.size()), not_named, omission_kind::set_aside});
  }
}

/// Layers of a scan are numbered within their stack, wherever in the model that begins: only how many there
/// are can be compared.
inline void note_missing_of_scan(const model_config& config, index_t here, found_parts& found) {
  const auto count = static_cast<index_t>(config.moe_layers->size());
  if (here < count) {
    found.result.omissions.push_back(
        {"config.json",
         core::concatenate("says that ", count, count == 1 ? " layer has " : " layers have ",
                           *config.num_experts, " experts each, and ", here, here == 1 ? " is" : " are",
                           " here"),
         omission_kind::missing, count - here, (count - here) * *config.num_experts});
  }
}

inline void note_missing_layers(const model_config& config, found_parts& found) {
  const auto held = layers_held(found);
  if (std::ranges::any_of(found.said, [](const auto* w) { return w->part().has_value(); })) {
    const auto here = std::max(found.result.layers.size(), held.size());
    note_missing_of_scan(config, static_cast<index_t>(here), found);
    return;
  }
  std::vector<index_t> missing;
  std::ranges::set_difference(*config.moe_layers, held, std::back_inserter(missing));
  if (missing.empty() || (held.empty() && !found.result.empty())) {
    return;  // nothing to compare where layers have no numbers
  }
  const auto count = static_cast<index_t>(missing.size());
  const bool one = count == 1;
  found.result.omissions.push_back(
      {"config.json",
       core::concatenate("says that ", one ? "layer " : "layers ", ranges_of(missing),
                         one ? " has " : " have ", *config.num_experts, " experts each, and ",
                         one ? "it is" : "they are", " not here"),
       omission_kind::missing, count, count * *config.num_experts});
}

/// Whether the name of a file is of one rank of several, "model-rank-0-part-0", as vLLM and SGLang write it.
[[nodiscard]] inline bool is_of_ranks(const checkpoint& model) {
  return std::ranges::any_of(model.shards(), [](const auto& file) {
    return contains(io::path_text(file.path().filename()), "-rank-");
  });
}

/// Experts that have a half, a third, … of the neurons that config.json says: one rank of several holds a
/// part of each, under the name of the whole.
inline void note_missing_neurons(const checkpoint& model, const model_config& config, found_parts& found) {
  if (!config.ffn_dim || !(config.is_ffn_dim_of_experts || is_of_ranks(model))) {
    return;
  }
  for (const auto& layer : found.result) {
    if (layer.ffn_dim < *config.ffn_dim && *config.ffn_dim % layer.ffn_dim == 0) {
      found.result.omissions.push_back(
          {"config.json",
           core::concatenate("says that experts have ", *config.ffn_dim, " neurons each, and those of '",
                             layer.name, "' have ", layer.ffn_dim,
                             ": is this one rank of several, which hold the others?"),
           omission_kind::missing});
      return;
    }
  }
}

/// Layers that config.json has and the files lack.
inline void note_config(const checkpoint& model, const model_config& config, found_parts& found) {
  auto& omissions = found.result.omissions;
  if (!config.problem.empty()) {
    omissions.push_back({"config.json", config.problem + ", and says nothing of what should be here",
                         omission_kind::set_aside});
  } else if (is_of_another_model(config, found.result)) {
    omissions.push_back(
        {"config.json",
         core::concatenate("seems to be of another model: its hidden dimension is ", *config.hidden_dim,
                           ", the routers' is ", found.result[0].hidden_dim),
         omission_kind::missing});
  } else {
    note_missing_neurons(model, config, found);
    if (config.moe_layers) {
      note_missing_layers(config, found);
    }
  }
}

/// What is to be said of rows without an expert, and of experts that config.json promises; empty if nothing.
[[nodiscard]] inline std::string idle_reason(const moe_layer& layer, std::optional<index_t> promised) {
  std::vector<index_t> idle(static_cast<std::size_t>(layer.router_rows - layer.num_experts));
  std::iota(idle.begin(), idle.end(), layer.num_experts);
  std::string reason;
  if (!idle.empty()) {
    reason = core::concatenate(idle.size() == 1 ? "row " : "rows ", ranges_of(idle), " of the router ",
                               idle.size() == 1 ? "has" : "have", " no expert",
                               promised ? "" : ": identity experts, or experts of a shard that is not here");
  }
  if (promised && (!idle.empty() || *promised != layer.num_experts)) {
    reason += core::concatenate(reason.empty() ? "" : "; ", "config.json says ", *promised, " experts, and ",
                                layer.num_experts, " are here");
  }
  return reason;
}

/// Whether its experts are some of those that several routers share by number.
[[nodiscard]] inline bool is_group(const moe_layer& layer, const moe_layers& all) {
  return layer.first_expert > 0 || std::ranges::any_of(all, [&](const moe_layer& other) {
           return other.first_expert > 0 && other.gate_name == layer.gate_name;
         });
}

/// Rows of routers that have no expert. Layers mostly agree: one entry for all that do.
inline void note_idle_rows(const std::optional<model_config>& config, found_parts& found) {
  const auto said =
      config && !is_of_another_model(*config, found.result) ? config->num_experts : std::nullopt;
  std::map<std::string, omission> entries;  // by reason
  for (const auto& layer : found.result) {
    // Of one group of several, config.json says nothing on its own.
    const auto promised = is_group(layer, found.result) ? std::nullopt : said;
    const std::string reason = idle_reason(layer, promised);
    if (reason.empty()) {
      continue;
    }
    auto& entry = entries
                      .try_emplace(with_stars(layer.name) + reason,
                                   omission{layer.name, reason, omission_kind::set_aside})
                      .first->second;
    entry.name = common_name(entry.name, layer.name);
    const index_t lacking = promised.value_or(layer.router_rows) - layer.num_experts;
    if (lacking > 0) {
      entry.kind = omission_kind::missing;
      entry.rows += lacking;
    }
  }
  for (auto& [key, entry] : entries) {
    found.result.omissions.push_back(std::move(entry));
  }
}

}  // namespace detail::moe

MPIROUTER_END
