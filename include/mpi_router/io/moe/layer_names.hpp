// Where a name has the number of a layer, and many names in one line.
#pragma once

#include <mpi_router/io/moe/names.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// What stands before the number of a component that is one, or that ends with a layer's, as JAX writes it:
/// nothing of "3", "layers_" of "layers_3". No number: nullopt.
[[nodiscard]] inline std::optional<std::string_view> before_number(std::string_view part) {
  if (number_of(part)) {
    return part.substr(0, 0);
  }
  const auto end = part.rfind('_') + 1;  // 0 where there is none
  const bool of_layer = part.find("layer") < end || part.find("block") < end;
  return end > 0 && of_layer && number_of(part.substr(end)) ? std::optional(part.substr(0, end))
                                                            : std::nullopt;
}

/// Which component has the number of the layer; components_of(name).size() for none. The first that is a
/// number; where one ends with a layer's before it, as JAX has them, only if a layer's word is before it too:
/// 1 of "block_0.layers.1", but 3 of "layers_3.mlp.nets.1".
[[nodiscard]] inline std::size_t layer_component(const std::vector<std::string_view>& c) {
  const auto has = [](std::string_view part, std::string_view word) { return part.find(word) != part.npos; };
  const auto is_of_layers = [&](std::string_view part) {
    return has(part, "layer") || has(part, "block") || part == "h" || part == "blk";
  };
  std::size_t found = c.size();
  bool of_experts = false;
  for (std::size_t i = 0; i < c.size(); ++i) {
    of_experts = of_experts || has(c[i], "expert");
    if (number_of(c[i]) && (found == c.size() || (!of_experts && is_of_layers(c[i - 1])))) {
      return i;
    }
    found = found == c.size() && !of_experts && before_number(c[i]) ? i : found;
  }
  return found;
}

/// A text with its numbers as stars, and those of layers_3.
[[nodiscard]] inline std::string numbers_as_stars(std::string_view text) {
  std::string out;
  for (const auto part : components_of(text)) {
    const auto before = before_number(part);
    out += "." + (before ? std::string(*before) + "*" : std::string(part));
  }
  return out.substr(1);
}

/// `name` with its numbers as stars, to say "layers.*.…" once instead of for each layer; a "layer_1" that is
/// no layer of the model, but a matrix of an expert, is as it is.
[[nodiscard]] inline std::string with_stars(std::string_view name) {
  const auto c = components_of(name);
  const auto layer = layer_component(c);
  std::string out;
  for (std::size_t i = 0; i < c.size(); ++i) {
    const bool stars = i == layer || number_of(c[i]);
    out += "." + (stars ? std::string(*before_number(c[i])) + "*" : std::string(c[i]));
  }
  return out.substr(1);
}

/// One name for two that with_stars makes alike: stars for the numbers in which they differ.
[[nodiscard]] inline std::string common_name(std::string_view a, std::string_view b) {
  const auto of_a = components_of(a);
  const auto of_b = components_of(b);
  std::string out;
  for (std::size_t i = 0; i < std::min(of_a.size(), of_b.size()); ++i) {
    const auto before = before_number(of_b[i]);
    out += "." + std::string(of_a[i] == of_b[i] || !before ? of_a[i] : *before);
    out += of_a[i] == of_b[i] || !before ? "" : "*";
  }
  return out.substr(1);
}

/// The number of a layer and what stands before it: "model.layers." and 3, "decoder.layers_" and 3.
struct layer_place {
  std::string series;
  index_t number = 0;
  std::string written;  ///< the number as the name has it, "003"
};

/// Nothing where there is no number.
[[nodiscard]] inline std::optional<layer_place> place_of_layer(std::string_view block) {
  const auto c = components_of(block);
  const auto layer = layer_component(c);
  if (layer == c.size()) {
    return std::nullopt;
  }
  std::string series;
  for (std::size_t i = 0; i < layer; ++i) {
    series += std::string(c[i]) + ".";
  }
  const auto before = *before_number(c[layer]);
  const auto written = c[layer].substr(before.size());
  return layer_place{series + std::string(before), *number_of(written), std::string(written)};
}

}  // namespace detail::moe

MPIROUTER_END
