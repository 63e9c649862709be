// What lies beside the routers of layers that were found, and is no part of these.
#pragma once

#include <mpi_router/io/moe/hints.hpp>
#include <mpi_router/io/moe/remainder.hpp>

MPIROUTER_BEGIN

namespace detail::moe {

/// Gemma-4's routers weigh what they see, channel by channel, before the rows do: "router.scale", [D], or
/// "ffn_gate_inp.scale" of GGUF.
inline void note_scaled_routers(const checkpoint& model, found_parts& found) {
  for (const auto& layer : found.result.layers) {
    const std::string_view name = layer.router->name();
    const auto scale_after = [&](std::string_view word) {
      const auto at = name.rfind(word);
      return at == name.npos
                 ? nullptr
                 : model.find_weight(core::concatenate(name.substr(0, at + word.size()), "scale"));
    };
    const auto* in_gguf = scale_after("ffn_gate_inp.");
    const auto* scale = in_gguf == nullptr ? scale_after("router.") : in_gguf;
    if (scale != nullptr && element_count(scale->shape()) == layer.hidden_dim) {
      found.result.omissions.push_back(
          {scale->name(),
           "a scale of what the router sees, which is not applied: rows are looked at as they are stored",
           omission_kind::set_aside});
    }
  }
}

/// Whether a weight may be another router of a layer: a matrix like the layer's own, in the same module,
/// whose name says so ("image_gate" beside "gate", as Ming has it).
[[nodiscard]] inline bool is_like_router(const weight& w, const weight& router) {
  const auto own = components_of(router.name());
  const auto other = components_of(w.name());
  const std::size_t named = own.size() - (own.size() > 1 && part_of(own.back()).role != tensor_role::router);
  if (other.size() != own.size() || &w == &router || !std::ranges::equal(w.shape(), router.shape()) ||
      is_noise(w.name()) || is_shared_word(w.name())) {
    return false;
  }
  const auto role = part_of(w.name()).role;
  const auto name = other[named - 1];
  if ((role != tensor_role::other && role != tensor_role::router) || is_of_attention(name)) {
    return false;
  }
  const bool is_beside =
      std::ranges::equal(std::span(own).first(named - 1), std::span(other).first(named - 1));
  return is_beside && (name.ends_with("_gate") || name.ends_with("_router"));
}

/// Whether "mlp_gate" is the gate of a dense layer: "mlp_up" or "mlp_down" is beside it.
[[nodiscard]] inline bool is_of_dense_layer(const checkpoint& model, std::string_view name) {
  const auto at = name.rfind("_gate");
  const auto begin = name.substr(0, at == name.npos ? 0 : at + 1);
  return !begin.empty() && std::ranges::any_of(model.weights_with(begin), [&](const weight& w) {
    const auto rest = std::string_view(w.name()).substr(begin.size());
    const auto kind = kind_of_component(rest.substr(0, rest.find('.')));
    return kind == matrix_kind::up || kind == matrix_kind::down;
  });
}

/// Routers of the same experts for tokens of another kind.
inline void note_second_routers(const checkpoint& model, found_parts& found) {
  for (const auto& layer : found.result.layers) {
    for (const auto& w : model.weights_with(layer.name)) {
      if (is_like_router(w, *layer.router) && !is_of_dense_layer(model, w.name()) &&
          found.said.insert(&w).second) {
        found.result.omissions.push_back(
            {w.name(),
             "looks like a second router of a layer, for the same experts",
             omission_kind::unseen,
             0,
             layer.router_rows,
             {{patterns_of(w.name(), layer.gate_name), layer.layout, layer.layout_of_router}}});
      }
    }
  }
}

}  // namespace detail::moe

MPIROUTER_END
