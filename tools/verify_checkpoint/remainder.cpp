#include "remainder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <span>

namespace verify {

namespace {

using mpi_router::checkpoint;
using mpi_router::stored_tensor;
using mpi_router::to_string;          // of a type
using mpi_router::detail::to_string;  // of a shape

using tensor_list = std::vector<const stored_tensor*>;

constexpr std::string_view name_them = "--router, --gate and --layout name the tensors of other models";

/// What names say is in one block.
struct block_parts {
  tensor_list routers;
  tensor_list plain_gates;  ///< "gate.weight": a router beside experts, else perhaps a dense layer's gate
  tensor_list experts;
  std::set<index_t> numbers;  ///< of experts
  bool dense = false;         ///< has the other projections of a dense layer
};

/// Whether this is what a dense layer has beside its "gate.weight".
bool is_dense_sibling(std::string_view leaf) {
  return leaf == "up.weight" || leaf == "down.weight" || leaf == "up_proj.weight" ||
         leaf == "down_proj.weight" || leaf == "value.weight";
}

std::map<std::string, block_parts> blocks_of(std::span<const stored_tensor* const> tensors) {
  std::map<std::string, block_parts> blocks;
  for (const auto* t : tensors) {
    const auto part = part_of(t->name());
    if (part.role == tensor_role::router) {
      auto& block = blocks[part.block];
      (part.plain_gate ? block.plain_gates : block.routers).push_back(t);
    } else if (part.role == tensor_role::expert) {
      auto& block = blocks[part.block];
      block.experts.push_back(t);
      if (part.expert) {
        block.numbers.insert(*part.expert);
      }
    }
  }
  for (const auto* t : tensors) {
    for (const std::size_t dots : {1U, 0U}) {
      const std::string_view name = t->name();
      auto at = name.rfind('.');
      at = dots == 1 && at != name.npos && at > 0 ? name.rfind('.', at - 1) : at;
      const auto block = blocks.find(std::string(name.substr(0, at == name.npos ? 0 : at + 1)));
      if (block != blocks.end()) {
        block->second.dense = block->second.dense || is_dense_sibling(name.substr(block->first.size()));
      }
    }
  }
  for (auto it = blocks.begin(); it != blocks.end();) {
    auto& block = it->second;
    if (!block.dense || !block.experts.empty() || !block.routers.empty()) {
      block.routers.insert(block.routers.end(), block.plain_gates.begin(), block.plain_gates.end());
    }
    it = block.routers.empty() && block.experts.empty() ? blocks.erase(it) : std::next(it);
  }
  return blocks;
}

/// The rows that a block's router has or must have.
index_t rows_in(const block_parts& block) {
  const auto numbered = static_cast<index_t>(block.numbers.size());
  index_t stacked = 0;
  for (const auto* t : block.experts) {
    stacked = t->rank() >= 3 ? std::max(stacked, t->shape()[0]) : stacked;
  }
  const index_t experts = std::max(numbered, numbered > 0 ? 0 : stacked);
  if (block.routers.empty() || block.routers.front()->rank() != 2) {
    return experts;
  }
  const auto shape = block.routers.front()->shape();
  return experts > 0 && shape[1] == experts ? experts : std::max(experts, shape[0]);
}

/// How a packed tensor is packed, as far as its name and type tell.
std::string_view packing_of(const stored_tensor& t) {
  const std::string_view name = t.name();
  return name.ends_with("blocks")          ? "MXFP4, packed 4-bit weights"
         : name.ends_with("qweight")       ? "AWQ or GPTQ, packed weights"
         : name.ends_with("weight_packed") ? "compressed-tensors, packed weights"
         : to_string(t.type()) == "U32"    ? "MLX, packed weights"
                                           : "packed weights";
}

/// The tensor that stands for a block in messages: a gate of its experts, or its router.
const stored_tensor& shown_of(const block_parts& block) {
  const auto gate =
      std::ranges::find_if(block.experts, [](const auto* t) { return looks_like_gate(t->name()); });
  return gate != block.experts.end() ? **gate
         : !block.experts.empty()    ? *block.experts.front()
                                     : *block.routers.front();
}

std::string reason_of(const block_parts& block) {
  const auto& shown = shown_of(block);
  if (block.experts.empty()) {
    return fmt::format("looks like a router, but there are no experts beside it; {}", name_them);
  }
  const std::string router = block.routers.empty()
                                 ? "no router goes with them"
                                 : fmt::format("its router is '{}'", block.routers.front()->name());
  if (!is_floating(shown.type())) {
    return fmt::format(
        "experts stored as {} ({}), which are not supported: write the model out in bf16 first; {}",
        to_string(shown.type()), packing_of(shown), router);
  }
  if (block.routers.empty()) {
    return fmt::format("looks like experts, but no router goes with them that has a router's name; {}",
                       name_them);
  }
  const auto& tensor = *block.routers.front();
  if (!is_floating(tensor.type())) {
    return fmt::format("experts whose router '{}' is stored as {}, which is not supported", tensor.name(),
                       to_string(tensor.type()));
  }
  if (tensor.rank() != 2) {
    return fmt::format("experts whose router '{}' has shape {}, not [N, D]", tensor.name(),
                       to_string(tensor.shape()));
  }
  return fmt::format("experts {} {}; {}, but no known family has these two names; {}",
                     to_string(shown.shape()), to_string(shown.type()), router, name_them);
}

/// One line for all blocks that differ in their numbers alone.
class grouped {
 public:
  explicit grouped(std::vector<unmatched>& out) : out_(out) {}

  void add(const std::string& name, std::size_t tensors, unmatched entry) {
    auto [it, fresh] = groups_.try_emplace({with_stars(name), with_stars(entry.reason)}, std::move(entry), 0);
    if (!fresh) {
      it->second.first.layers += entry.layers;
      it->second.first.rows += entry.rows;
    }
    it->second.second += tensors;
  }

  void finish() {
    for (auto& [key, group] : groups_) {
      auto& [entry, tensors] = group;
      entry.name = tensors > 1 ? fmt::format("{} ({} tensors)", key.first, tensors) : key.first;
      out_.push_back(std::move(entry));
    }
  }

 private:
  std::vector<unmatched>& out_;
  std::map<std::pair<std::string, std::string>, std::pair<unmatched, std::size_t>> groups_;
};

/// Tensors of the block that have the same name as the one shown, but for numbers.
std::size_t count_like(const tensor_list& tensors, const stored_tensor& shown) {
  return static_cast<std::size_t>(std::ranges::count(tensors, with_stars(shown.name()),
                                                     [](const auto* t) { return with_stars(t->name()); }));
}

void note_blocks(const checkpoint& model, found_parts& found) {
  grouped groups(found.result.others);
  for (const auto& [name, block] : blocks_of(model.tensors())) {
    found.blocks.insert(name);
    const auto said = [&](const auto* t) { return found.said.contains(t); };
    const bool known = std::ranges::any_of(block.routers, said) || std::ranges::any_of(block.experts, said);
    if (!known) {
      const auto& shown = shown_of(block);
      const auto count = count_like(block.experts.empty() ? block.routers : block.experts, shown);
      groups.add(shown.name(), count, {"", reason_of(block), fate::unseen, 1, rows_in(block)});
      continue;
    }
    for (const auto* router : block.routers) {
      if (!said(router)) {
        groups.add(router->name(), 1,
                   {"", "looks like a second router of a layer; " + std::string(name_them), fate::unseen, 0,
                    router->rank() == 2 ? router->shape()[0] : 0});
      }
    }
  }
  groups.finish();
}

/// What the shards hold and the index does not name.
void note_unindexed(const checkpoint& model, found_parts& found) {
  const auto omitted = model.unindexed();
  if (omitted.empty()) {
    return;
  }
  index_t layers = 0;
  index_t rows = 0;
  for (const auto& [name, block] : blocks_of(omitted)) {
    if (found.blocks.insert(name).second) {
      ++layers;
      rows += rows_in(block);
    }
  }
  found.result.others.push_back(
      {model.index().filename().string(),
       fmt::format(
           "{} tensor{} of the shards {} not in the index, the first is '{}'{}", omitted.size(),
           omitted.size() == 1 ? "" : "s", omitted.size() == 1 ? "is" : "are", omitted[0]->name(),
           layers > 0 ? fmt::format("; they hold {} whole MoE layer{}", layers, layers == 1 ? "" : "s") : ""),
       layers > 0 ? fate::unseen : fate::missing, layers, rows});
}

void note_set_aside(const checkpoint& model, found_parts& found) {
  const auto note = [&](tensor_role role, const std::string& reason) {
    tensor_list all;
    std::ranges::copy_if(model.tensors(), std::back_inserter(all),
                         [&](const auto* t) { return part_of(t->name()).role == role; });
    if (!all.empty()) {
      found.result.others.push_back(
          {all.size() > 1 ? fmt::format("{} and {} more", all[0]->name(), all.size() - 1) : all[0]->name(),
           reason, fate::set_aside});
    }
  };
  note(tensor_role::optimizer, "optimizer state, which is no layer of the model");
  note(tensor_role::adapter,
       "a LoRA adapter, which is not applied: the numbers are of the weights without it; merge it to verify "
       "both");
}

}  // namespace

void note_remainder(const checkpoint& model, found_parts& found) {
  note_blocks(model, found);
  note_unindexed(model, found);
  note_set_aside(model, found);
}

}  // namespace verify
