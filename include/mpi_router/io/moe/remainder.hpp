// What the files hold beside the layers that were found, and why it is in none.
#pragma once

#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/io/moe/assemble.hpp>
#include <mpi_router/io/moe/blocks.hpp>
#include <mpi_router/io/moe/layer.hpp>
#include <mpi_router/io/moe/search_options.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// What a search has come to so far.
struct found_parts {
  moe_layers result;
  std::set<const weight*> said;  ///< weights that are used, or about which something is said
  std::set<std::string> blocks;  ///< all that the files hold: "model.layers.3.mlp."
};

inline void note_failure(const weight& router, attempt& made, found_parts& found) {
  found.said.insert(&router);
  found.result.omissions.push_back(
      {router.name(), std::move(made.reason), omission_kind::unseen, 1, made.rows, std::move(made.hints)});
}

inline void note_layer(moe_layer layer, found_parts& found) {
  found.said.insert(layer.router);
  for (const auto& gate : layer.gates) {
    found.said.insert(gate.tensor);
  }
  found.result.layers.push_back(std::move(layer));
}

/// "NAME", or "NAME and 3 more".
[[nodiscard]] inline std::string first_and_count(const std::string& first, std::size_t count) {
  return count > 1 ? core::concatenate(first, " and ", count - 1, " more") : first;
}

[[nodiscard]] inline std::string name_them(const search_words& words) {
  return core::concatenate(words.patterns_and_layout, " name the tensors of other models");
}

/// Whether this may be a matrix of a router's network: no table of integers, no shared expert.
[[nodiscard]] inline bool is_of_network(const weight& w) {
  const auto role = part_of(w.name()).role;
  return w.rank() == 2 && !is_noise(w.name()) &&
         (role == tensor_role::other || role == tensor_role::router) &&
         (w.plain() == nullptr || is_floating(w.plain()->type())) && !is_shared_word(w.name());
}

/// The matrices of a router that is a network, several below the first component that is named for a router,
/// after those of `block`, which the experts have too: of these `name` is one, and none has a row for each
/// expert in the model's own dimension. Empty where it is no such network.
[[nodiscard]] inline weight_list network_of_router(const checkpoint& model, std::string_view name,
                                                   std::string_view block) {
  const auto c = components_of(name);
  std::string module;
  for (std::size_t i = 0; i + 1 < c.size(); ++i) {
    module += core::concatenate(c[i], ".");
    if (module.size() <= block.size()) {
      continue;
    }
    if (contains(c[i], "router") || contains(c[i], "gating") || place_of_word(c[i], 0, "gate") != c[i].npos) {
      break;
    }
  }
  weight_list found;
  if (module.size() + c.back().size() == name.size()) {  // the router itself
    return found;
  }
  for (const auto& w : model.weights_with(module)) {
    if (is_of_network(w)) {
      found.push_back(&w);
    }
  }
  return found.size() > 1 ? found : weight_list{};
}

/// The first such network in a block.
[[nodiscard]] inline weight_list network_in(const checkpoint& model, const std::string& block) {
  for (const auto& w : model.weights_with(block)) {
    if (part_of(w.name()).role == tensor_role::other && !is_shared_word(w.name())) {
      if (auto found = network_of_router(model, w.name(), block); !found.empty()) {
        return found;
      }
    }
  }
  return {};
}

/// Why a block of which nothing was said is no layer. `network`: its router's, if that is one.
[[nodiscard]] inline std::string reason_of(const block_parts& block, const search_words& words,
                                           const weight_list& network) {
  const auto& shown = shown_of(block);
  const bool routed = !block.routers.empty();
  if (block.experts.empty() && !shown.problem().empty()) {
    return core::concatenate("looks like a router, and cannot be read: ", shown.problem());
  }
  if (block.experts.empty() && shown.rank() == 3 && shown.shape()[0] > 1) {
    return core::concatenate(
        "looks like the routers of several layers in one, ", to_string(shown.shape()),
        ", as JAX's scan over layers leaves them, and no stack of experts beside it tells "
        "along which axis they lie; write each layer under names of its own");
  }
  if (block.experts.empty()) {
    return "looks like a router, but there are no experts beside it; " + name_them(words);
  }
  if (!shown.problem().empty()) {
    return core::concatenate("experts that cannot be read: ", shown.problem(), "; ",
                             routed
                                 ? core::concatenate("their router is '", block.routers.front()->name(), "'")
                                 : "no router goes with them");
  }
  if (!routed && !network.empty()) {
    return core::concatenate("experts whose router is a network of ", network.size(),
                             " matrices, the first '", network.front()->name(),
                             "': its last rows do not see what the experts see");
  }
  if (!routed) {
    return "looks like experts, but no router goes with them that has a router's name; " + name_them(words);
  }
  const auto& router = *block.routers.front();
  if (!router.problem().empty()) {
    return core::concatenate("experts whose router cannot be read: ", router.problem());
  }
  if (router.rank() != 2) {
    return core::concatenate("experts whose router '", router.name(), "' has shape ",
                             to_string(router.shape()), ", not [N, D]");
  }
  return core::concatenate("experts ", to_string(shown.shape()), " ", shown.stored_as(), "; its router is '",
                           router.name(), "', but no known family has these two names; ", name_them(words));
}

/// One line for all blocks that differ in their numbers alone.
class grouped_omissions {
 public:
  /// `names`: of the tensors that the entry is about, alike except for numbers.
  void add(const std::vector<std::string>& names, const omission& entry) {
    auto [it, fresh] =
        groups_.try_emplace({with_stars(names.front()), numbers_as_stars(entry.reason)}, entry, 0);
    auto& [known, count] = it->second;
    if (fresh) {
      known.name = names.front();
    } else {
      known.layers += entry.layers;
      known.rows += entry.rows;
    }
    for (const auto& name : names) {
      known.name = common_name(known.name, name);
    }
    count += names.size();
  }

  void finish(std::vector<omission>& out) {
    for (auto& [key, group] : groups_) {
      auto& [entry, tensors] = group;
      entry.name += tensors > 1 ? core::concatenate(" (", tensors, " tensors)") : "";
      out.push_back(std::move(entry));
    }
  }

 private:
  std::map<std::pair<std::string, std::string>, std::pair<omission, std::size_t>> groups_;
};

/// The names of those that differ from one of them in numbers alone.
[[nodiscard]] inline std::vector<std::string> names_like(const weight& shown, const weight_list& all) {
  std::vector<std::string> names;
  for (const auto* w : all) {
    if (with_stars(w->name()) == with_stars(shown.name())) {
      names.push_back(w->name());
    }
  }
  return names;
}

/// Routers and experts under names that no family has.
inline void note_blocks(const checkpoint& model, const search_words& words, found_parts& found) {
  grouped_omissions groups;
  for (const auto& [name, block] : blocks_of(model.weights())) {
    found.blocks.insert(name);
    const auto said = [&](const auto* t) { return found.said.contains(t); };
    const bool known = std::ranges::any_of(block.routers, said) || std::ranges::any_of(block.experts, said);
    if (!known && is_of_attention(name)) {
      groups.add({shown_of(block).name()},
                 {"", "experts of attention: they have no gate", omission_kind::set_aside, 0, 0});
      continue;
    }
    if (!known) {
      groups.add(
          names_like(shown_of(block), block.experts.empty() ? block.routers : block.experts),
          {"", reason_of(block, words, network_in(model, name)), omission_kind::unseen, 1, rows_in(block)});
      continue;
    }
    for (const auto* router : block.routers) {
      if (!said(router)) {
        groups.add({router->name()},
                   {"", "looks like a second router of a layer; " + name_them(words), omission_kind::unseen,
                    0, router->rank() == 2 ? router->shape()[0] : 0});
      }
    }
  }
  groups.finish(found.result.omissions);
}

/// What the shards hold and the index does not name.
inline void note_unindexed(const checkpoint& model, found_parts& found) {
  const auto omitted = model.unindexed();
  if (omitted.empty()) {
    return;
  }
  index_t layers = 0;
  index_t rows = 0;
  const auto weights = weights_of(omitted, model.packing());
  for (const auto& [name, block] : blocks_of(weights)) {
    if (found.blocks.insert(name).second) {
      ++layers;
      rows += rows_in(block);
    }
  }
  const bool one = omitted.size() == 1;
  found.result.omissions.push_back(
      {io::path_text(model.index().filename()),
       core::concatenate(
           omitted.size(), one ? " tensor" : " tensors", " of the shards ", one ? "is" : "are",
           " not in the index, the first is '", omitted[0]->name(), "'",
           layers > 0 ? core::concatenate("; they hold ", layers, " whole MoE layer", layers == 1 ? "" : "s")
                      : ""),
       layers > 0 ? omission_kind::unseen : omission_kind::missing, layers, rows});
}

/// Optimizer state and adapters.
inline void note_set_aside(const checkpoint& model, found_parts& found) {
  const auto note = [&](tensor_role role, const std::string& reason) {
    weight_list all;
    for (const auto& w : model.weights()) {
      if (part_of(w.name()).role == role) {
        all.push_back(&w);
      }
    }
    if (!all.empty()) {
      found.result.omissions.push_back(
          {first_and_count(all[0]->name(), all.size()), reason, omission_kind::set_aside});
    }
  };
  note(tensor_role::optimizer, "optimizer state, which is no layer of the model");
  note(tensor_role::adapter,
       "an adapter (LoRA and its like), which is not applied: the numbers are of the weights without it; "
       "merge it to verify both");
}

/// Adjugate experts, which have no rows of their own.
inline void note_adjugate(const checkpoint& model, found_parts& found) {
  weight_list all;
  for (const auto& w : model.weights()) {
    const auto words = components_of(w.name());
    if (std::ranges::any_of(words, is_adjugate_word) && holds_gates(w.name())) {
      all.push_back(&w);
    }
  }
  if (!all.empty()) {
    found.result.omissions.push_back({first_and_count(all[0]->name(), all.size()),
                                      "adjugate experts, each of which goes with several of the others: no "
                                      "row of the router is theirs alone",
                                      omission_kind::set_aside});
  }
}

inline void note_remainder(const checkpoint& model, const search_words& words, found_parts& found) {
  note_blocks(model, words, found);
  note_unindexed(model, found);
  note_set_aside(model, found);
  note_adjugate(model, found);
}

}  // namespace detail::moe

MPIROUTER_END
