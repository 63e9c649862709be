// Which layers and experts of a checkpoint are looked at.
#pragma once

#include "results.hpp"

#include <optional>
#include <string>
#include <vector>

namespace verify {

/// What --layers and --sample ask for; all without them.
struct selection {
  std::vector<index_t> layers;    ///< numbers, ascending; empty: all
  std::optional<index_t> sample;  ///< experts of each layer
};

/// The numbers of "3,17-20"; nothing for what is no such list.
[[nodiscard]] std::optional<std::vector<index_t>> numbers_of_list(const std::string& text);

/// The layers of those numbers, as their names say; where a name has none, its place counts.
struct chosen_layers {
  std::vector<const moe_layer*> asked;
  std::vector<const moe_layer*> skipped;
};
[[nodiscard]] chosen_layers choose(const moe_layers& found, const selection& wanted);

/// The numbers that stand alone in such a list: a layer must have each. Those of a range may be dense layers.
[[nodiscard]] std::vector<index_t> lone_numbers(const std::string& list);
[[nodiscard]] bool has_number(const moe_layers& found, index_t number);

/// The experts of a layer to look at: all of them, or `sample`, evenly spread, always the same.
[[nodiscard]] std::vector<index_t> experts_of(const moe_layer& layer, std::optional<index_t> sample);

}  // namespace verify
