// What may be asked of a search for MoE layers.
#pragma once

#include <mpi_router/io/moe/expert_part.hpp>
#include <mpi_router/io/moe/gate_layout.hpp>

#include <optional>
#include <string>

MPIROUTER_BEGIN

/// Names of tensors. {layer} stands for any text, the same in both; {expert} for the number of the expert.
struct name_patterns {
  std::string router;
  std::string gate;
};

/// What reasons call the options below, for those who can set them: a program says its flags.
struct search_words {
  std::string_view layout = "layout";
  std::string_view layout_of_router = "layout_of_router";
  std::string_view layout_of_down = "layout_of_down";
  std::string_view of = "of";
  std::string_view patterns = "patterns";
  std::string_view patterns_and_layout = "patterns and layout";
};

/// What is known beforehand of the names and layouts of a checkpoint.
struct moe_search {
  std::optional<name_patterns> patterns;          ///< instead of the families
  std::optional<gate_layout> layout;              ///< instead of the family's layout
  std::optional<router_layout> layout_of_router;  ///< instead of the family's, or of what shapes force
  /// What of each expert is looked at: a layer must have it all, and then has it in moe_layer::measured.
  part_weights of{};
  std::optional<gate_layout> layout_of_down{};  ///< of down projections: nfd or ndf
  search_words words{};
};

MPIROUTER_END
