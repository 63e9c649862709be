#include "layer_numbers.hpp"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <set>
#include <string_view>

namespace verify {

namespace {

/// The parts of a name that are numbers: 3 and 1 in "encoder.block.3.layer.1.mlp".
std::vector<index_t> numbers_in(std::string_view name) {
  constexpr std::string_view separators = "./_-";
  std::vector<index_t> numbers;
  while (!name.empty()) {
    const auto part = name.substr(0, name.find_first_of(separators));
    index_t number = 0;
    const auto read = std::from_chars(part.data(), part.data() + part.size(), number);
    if (!part.empty() && read.ec == std::errc{} && read.ptr == part.data() + part.size()) {
      numbers.push_back(number);
    }
    name.remove_prefix(std::min(name.size(), part.size() + 1));
  }
  return numbers;
}

}  // namespace

std::vector<index_t> layer_numbers(const std::vector<const moe_layer*>& layers) {
  std::vector<std::vector<index_t>> all;
  std::size_t fewest = layers.empty() ? 0 : static_cast<std::size_t>(-1);
  for (const auto* layer : layers) {
    all.push_back(numbers_in(layer->name));
    fewest = std::min(fewest, all.back().size());
  }
  std::vector<index_t> numbers(all.size());
  for (std::size_t k = 0; k < fewest; ++k) {
    for (std::size_t l = 0; l < all.size(); ++l) {
      numbers[l] = all[l][k];
    }
    if (std::set<index_t>(numbers.begin(), numbers.end()).size() == numbers.size()) {
      return numbers;
    }
  }
  std::iota(numbers.begin(), numbers.end(), index_t{0});
  return numbers;
}

std::vector<index_t> layer_numbers(const checkpoint_result& checkpoint) {
  std::vector<const moe_layer*> layers;
  for (const auto& result : checkpoint.layers) {
    layers.push_back(result.layer);
  }
  return layer_numbers(layers);
}

}  // namespace verify
