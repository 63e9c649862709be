// Names and a layout that would find a layer outright, for those who can say whether they are right.
#pragma once

#include <mpi_router/io/moe/layer.hpp>
#include <mpi_router/io/moe/layer_names.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// These names as patterns: {layer} in place of the number that both have.
[[nodiscard]] inline name_patterns patterns_of(std::string_view router, std::string_view gate) {
  const auto place = place_of_layer(shared_prefix(router, gate));
  if (!place) {
    return {std::string(router), std::string(gate)};
  }
  const auto with_mark = [&](std::string_view name) {
    const auto rest = name.substr(place->series.size());
    return core::concatenate(place->series, layer_mark,
                             rest.substr(std::min(rest.find_first_not_of(digits), rest.size())));
  };
  return {with_mark(router), with_mark(gate)};
}

}  // namespace detail::moe

/// What names the tensors of a layer that was found.
[[nodiscard]] inline naming_hint hint_of(const moe_layer& layer) {
  return {detail::moe::patterns_of(layer.router->name(), layer.gate_name), layer.layout,
          layer.layout_of_router};
}

MPIROUTER_END
