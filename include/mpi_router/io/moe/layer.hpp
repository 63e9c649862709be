// What an MoE layer of a checkpoint is, and what is told of the parts that are none.
#pragma once

#include <mpi_router/io/moe/search_options.hpp>
#include <mpi_router/io/weight.hpp>

#include <algorithm>
#include <string>
#include <vector>

MPIROUTER_BEGIN_TYPES

/// What became of something that no layer uses.
enum class omission_kind : unsigned char {
  set_aside,  ///< no part of the model's routers and experts: optimizer state, adapters; or a mere remark
  unseen,     ///< routers or experts that the files hold and that no layer has
  missing     ///< promised by file names, the index or config.json, and not there
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The gate matrix of one expert: consecutive rows of a weight. visit_gate() makes a view of it. Other parts
/// of an expert are such blocks too, all of them seen as [F, D].
struct gate_block {
  const weight* tensor = nullptr;
  index_t index = 0;  ///< of the expert within the tensor
  gate_layout layout = gate_layout::nfd;
  index_t ffn_dim = 0;
  index_t hidden_dim = 0;              ///< of what the expert sees: of the latent, where the layer has one
  fused_half half = fused_half::gate;  ///< of a fused layout
};

/// The matrices of one part of all experts of a layer.
struct expert_matrices {
  expert_part part = expert_part::gate;
  double weight = 1;               ///< in the sum that is asked for
  std::vector<gate_block> blocks;  ///< one for each expert; Wᵀ of a down projection W
  std::string name;                ///< of their tensors, {expert} in place of a number
  gate_layout layout = gate_layout::nfd;
  std::string layout_known_by;
};

/// One MoE layer of a checkpoint, which it must not outlive: a router and a gate matrix for each of its first
/// rows. Nothing is read yet: visit_router(), visit_experts() and visit_gate() make views of it.
struct moe_layer {
  std::string name;    ///< the prefix that its router and experts share
  std::string family;  ///< who names tensors so
  const weight* router = nullptr;
  router_layout layout_of_router = router_layout::nd;
  std::vector<gate_block> gates;  ///< one for each expert
  std::string gate_name;          ///< of the gates' tensors, {expert} in place of a number
  gate_layout layout = gate_layout::nfd;
  std::string layout_known_by;  ///< what says that it is this layout: "its shape", "config.json", …
  index_t first_expert = 0;     ///< the number that names give the first: those before it are another layer's
  index_t num_experts = 0;      ///< that have a gate
  index_t router_rows = 0;      ///< at least as many
  index_t ffn_dim = 0;          ///< of the largest expert
  index_t hidden_dim = 0;       ///< D, of a router row
  expert_part part = expert_part::gate;  ///< what `gates` hold: the first matrix that sees the token
  /// What moe_search::of asks for, each with its weight, gates included; empty where that is the gates alone.
  std::vector<expert_matrices> measured = {};
  /// P, [L, D]: the experts see P x, their gates are [F, L], and M = Pᵀ AᵀA P. Null where they see x.
  const weight* latent = nullptr;
  /// Tokens are given to experts by a table of their ids (DeepSeek-V4's first layers): the rows weigh what
  /// the experts chosen put out, and choose none.
  bool selects_by_table = false;

  /// Whether all experts have `ffn_dim` neurons.
  [[nodiscard]] bool is_uniform() const {
    return std::ranges::all_of(gates, [&](const auto& g) { return g.ffn_dim == ffn_dim; });
  }
  /// Whether each expert has a tensor of its own.
  [[nodiscard]] bool has_one_tensor_each() const { return gate_name.find("{expert}") != gate_name.npos; }
  /// L, where the experts see a latent; otherwise D.
  [[nodiscard]] index_t gate_dim() const { return latent == nullptr ? hidden_dim : latent->shape()[0]; }
  /// Of the gates as they are stored: [num_experts, ffn_dim, gate_dim()].
  [[nodiscard]] expert_shape shape() const { return {num_experts, ffn_dim, gate_dim()}; }
};

/// The sum that is measured of a layer's experts.
[[nodiscard]] inline part_weights weights_of(const moe_layer& layer) {
  if (layer.measured.empty()) {
    return {};
  }
  part_weights out{0, 0, 0};
  for (const auto& each : layer.measured) {
    (each.part == expert_part::gate ? out.gate
     : each.part == expert_part::up ? out.up
                                    : out.down) = each.weight;
  }
  return out;
}

/// Names and a layout with which a search finds what it does not find, or not for certain, without them.
struct naming_hint {
  name_patterns patterns;
  gate_layout layout = gate_layout::nfd;
  std::optional<router_layout> layout_of_router = {};
};

/// Something that looks like part of an MoE layer and is in none, or that is not there.
struct omission {
  std::string name;
  std::string reason;  ///< with a hint
  omission_kind kind = omission_kind::unseen;
  index_t layers = 0;                   ///< whole layers that the answer lacks for it
  index_t rows = 0;                     ///< rows that it lacks, those of the layers included
  std::vector<naming_hint> hints = {};  ///< each makes a layer of it; which is right the caller must know
};

/// The MoE layers of a checkpoint and, so that nothing is passed over in silence, all that is left out.
struct moe_layers {
  std::vector<moe_layer> layers;  ///< in natural order: layer 2 before layer 10
  std::vector<omission> omissions;

  [[nodiscard]] auto begin() const noexcept { return layers.begin(); }
  [[nodiscard]] auto end() const noexcept { return layers.end(); }
  [[nodiscard]] std::size_t size() const noexcept { return layers.size(); }
  [[nodiscard]] bool empty() const noexcept { return layers.empty(); }
  [[nodiscard]] const moe_layer& operator[](std::size_t i) const { return layers[i]; }
};

MPIROUTER_END
