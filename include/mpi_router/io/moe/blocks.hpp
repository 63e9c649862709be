// The routers and experts of a checkpoint by the look of their names, a block for each layer.
#pragma once

#include <mpi_router/io/moe/expert_words.hpp>
#include <mpi_router/io/weight.hpp>

#include <iterator>
#include <map>
#include <set>

MPIROUTER_BEGIN

namespace detail::moe {

using weight_list = std::vector<const weight*>;

/// What names say is in one block.
struct block_parts {
  weight_list routers;
  weight_list plain_gates;  ///< "gate.weight": a router beside experts, else perhaps a dense layer's gate
  weight_list experts;
  std::set<index_t> numbers;  ///< of experts
  bool dense = false;         ///< has the other projections of a dense layer
};

using block_map = std::map<std::string, block_parts>;

/// Whether this is what a dense layer has beside its "gate.weight": its up or down projection, a matrix.
[[nodiscard]] inline bool is_dense_sibling(const weight& w, std::string_view leaf) {
  const auto c = components_of(leaf);
  if (w.rank() != 2 || c.size() != 2 || c[1] != "weight" || is_shared_word(c[0])) {
    return false;
  }
  const auto kind = kind_of_component(c[0]);
  return kind == matrix_kind::up || kind == matrix_kind::down || c[0] == "value";
}

inline void add_by_role(std::span<const weight> weights, block_map& blocks) {
  for (const auto& w : weights) {
    const auto part = part_of(w.name());
    if (part.role == tensor_role::router) {
      auto& block = blocks[part.block];
      (part.plain_gate ? block.plain_gates : block.routers).push_back(&w);
    } else if (part.role == tensor_role::expert) {
      auto& block = blocks[part.block];
      block.experts.push_back(&w);
      if (part.expert) {
        block.numbers.insert(*part.expert);
      }
    }
  }
}

/// A dense sibling lies directly in its block, or one component below.
inline void mark_dense(std::span<const weight> weights, block_map& blocks) {
  for (const auto& w : weights) {
    for (const std::size_t dots : {1U, 0U}) {
      const std::string_view name = w.name();
      auto at = name.rfind('.');
      at = dots == 1 && at != name.npos && at > 0 ? name.rfind('.', at - 1) : at;
      const auto block = blocks.find(std::string(name.substr(0, at == name.npos ? 0 : at + 1)));
      if (block != blocks.end()) {
        block->second.dense = block->second.dense || is_dense_sibling(w, name.substr(block->first.size()));
      }
    }
  }
}

/// Whether this has one row: it weighs a layer against another, as fairseq's CMR does, and routes to none.
[[nodiscard]] inline bool has_one_row(const weight* w) {
  return w->rank() == 2 && (w->shape()[0] == 1 || w->shape()[1] == 1);
}

/// The blocks of these weights; a gate of a dense layer makes none, nor does one of a whole layer.
[[nodiscard]] inline block_map blocks_of(std::span<const weight> weights) {
  block_map blocks;
  add_by_role(weights, blocks);
  mark_dense(weights, blocks);
  for (auto it = blocks.begin(); it != blocks.end();) {
    auto& block = it->second;
    if (!block.dense || !block.experts.empty() || !block.routers.empty()) {
      block.routers.insert(block.routers.end(), block.plain_gates.begin(), block.plain_gates.end());
    }
    if (block.experts.empty()) {
      std::erase_if(block.routers, has_one_row);
    }
    it = block.routers.empty() && block.experts.empty() ? blocks.erase(it) : std::next(it);
  }
  return blocks;
}

/// The rows that a block's router has or must have.
[[nodiscard]] inline index_t rows_in(const block_parts& block) {
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

/// The tensor that stands for a block in messages: a gate of its experts, or what takes its place, or its
/// router.
[[nodiscard]] inline const weight& shown_of(const block_parts& block) {
  const auto gate = std::ranges::find_if(block.experts, [](const auto* t) { return holds_gates(t->name()); });
  const auto up = std::ranges::find_if(block.experts,
                                       [](const auto* t) { return kind_of(t->name()) == matrix_kind::up; });
  return gate != block.experts.end() ? **gate
         : up != block.experts.end() ? **up
         : !block.experts.empty()    ? *block.experts.front()
                                     : *block.routers.front();
}

}  // namespace detail::moe

MPIROUTER_END
