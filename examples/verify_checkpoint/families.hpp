// Finds the MoE layers of a checkpoint by the names that known model families give their tensors.
#pragma once

#include "layout.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <string>
#include <vector>

namespace verify {

/// One MoE layer: a router [N, D] and a gate matrix for each of its rows.
struct moe_layer {
  std::string name;    ///< the prefix that its router and experts share
  std::string family;  ///< who names tensors so
  const mpi_router::stored_tensor* router = nullptr;
  std::vector<gate_block> gates;  ///< one for each expert
  index_t num_experts = 0;
  index_t ffn_dim = 0;
  index_t hidden_dim = 0;
};

/// Something that looks like part of an MoE layer and could not be used.
struct unmatched {
  std::string name;
  std::string reason;  ///< with a hint
};

/// Tensors that the user names. {layer} stands for any text, the same in both; {expert} for the number of the
/// expert.
struct name_patterns {
  std::string router;
  std::string gate;
};

struct search_options {
  std::optional<name_patterns> patterns;  ///< instead of the families
  std::optional<layout> how;              ///< instead of the family's layout
};

struct search_result {
  std::vector<moe_layer> layers;  ///< in natural order: layer 2 before layer 10
  std::vector<unmatched> others;
};

[[nodiscard]] search_result find_layers(const mpi_router::checkpoint& model, const search_options& options);

/// The families, one line each, for --help.
[[nodiscard]] std::string describe_families();

}  // namespace verify
