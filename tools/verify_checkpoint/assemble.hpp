// Puts an MoE layer together from its router and the gates of its experts, or says why it cannot be.
#pragma once

#include "layout.hpp"
#include "names.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <optional>
#include <string>
#include <vector>

namespace verify {

/// One MoE layer: a router and a gate matrix for each of its first rows.
struct moe_layer {
  std::string name;    ///< the prefix that its router and experts share
  std::string family;  ///< who names tensors so
  const mpi_router::stored_tensor* router = nullptr;
  router_layout router_how = router_layout::nd;
  std::vector<gate_block> gates;  ///< one for each expert
  std::string gate_name;          ///< of the gates' tensors, {expert} in place of a number
  layout how = layout::nfd;
  std::string how_known;    ///< what says that it is this layout: "its shape", "config.json", …
  index_t num_experts = 0;  ///< that have a gate
  index_t router_rows = 0;  ///< at least as many
  index_t ffn_dim = 0;      ///< of the largest expert
  index_t hidden_dim = 0;

  /// Whether all experts have `ffn_dim` neurons.
  [[nodiscard]] bool is_uniform() const;
};

/// The gates to look for, and what is known of them beforehand.
struct gate_search {
  std::string family;
  std::string pattern;                    ///< a name, or one with {expert}
  std::vector<layout> layouts;            ///< that the family has, or the one that is asked for
  bool asked = false;                     ///< the user names the layout
  std::optional<layout> of_architecture;  ///< config.json names it
  router_layout router_how = router_layout::nd;
};

/// A layer, or why there is none; neither where there are no such gates.
struct attempt {
  std::optional<moe_layer> layer;
  std::string reason;
  index_t rows = 0;  ///< of a layer that cannot be used
};

[[nodiscard]] attempt assemble(const mpi_router::checkpoint& model, const mpi_router::stored_tensor& router,
                               const gate_search& wanted);

/// The tensors whose names begin so, in order.
[[nodiscard]] std::span<const mpi_router::stored_tensor* const> tensors_with(
    const mpi_router::checkpoint& model, std::string_view prefix);

}  // namespace verify
