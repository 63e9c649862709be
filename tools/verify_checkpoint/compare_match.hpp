// Which layer and which expert of one checkpoint is which of another.
#pragma once

#include "results.hpp"

#include <Eigen/Core>

#include <utility>
#include <vector>

namespace verify {

struct layer_match {
  std::vector<std::pair<const moe_layer*, const moe_layer*>> pairs;  ///< in the order of A
  std::vector<const moe_layer*> only_a;
  std::vector<const moe_layer*> only_b;
};

/// Layers of one name; of the others those of one number, "model.layers.3.mlp" and "blk.3", where no other
/// layer that is left has it; last the two that are left alone without a number.
[[nodiscard]] layer_match match_layers(const std::vector<const moe_layer*>& a,
                                       const std::vector<const moe_layer*>& b);

struct expert_match {
  std::vector<std::pair<index_t, index_t>> pairs;  ///< in the order of A
  std::vector<index_t> only_a;
  std::vector<index_t> only_b;
  bool by_number = false;
};

/// likeness: [N_A, N_B], finite. i and j are a match where j is the likest to i of all of B, and i the
/// likest to j of all of A; among equals (to 1e-9) the one of the same number, else the first that is free.
/// If both have as many experts and every match has one number, each expert is matched with its number: one
/// that changed beyond recognition too. O(N_A N_B).
[[nodiscard]] expert_match match_experts(const Eigen::MatrixXd& likeness);

}  // namespace verify
