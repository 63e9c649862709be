// The numbers that a model gives its layers.
#pragma once

#include "results.hpp"

#include <vector>

namespace verify {

/// What the page calls the layers: 2 for "model.layers.2.mlp", as the model does; their places, 0, 1, 2, …,
/// where their names do not number all of them apart.
[[nodiscard]] std::vector<index_t> layer_numbers(const std::vector<const moe_layer*>& layers);
[[nodiscard]] std::vector<index_t> layer_numbers(const checkpoint_result& checkpoint);

}  // namespace verify
