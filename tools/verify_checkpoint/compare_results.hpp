// What is known of two checkpoints after they were compared.
#pragma once

#include "compare_choices.hpp"

#include <mpi_router/verify/compare.hpp>

#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace verify {

/// One version of an expert. Unknown numbers are NaN.
struct version_result {
  index_t expert = 0;
  index_t ffn_dim = 0;
  double cosine_stored = unknown;  ///< of its own row to its own direction
  double sigma_1 = unknown;
  double sigma_2 = unknown;
  std::string_view sigma_2_from = "none";  ///< as in expert_result
  bool has_row = true;                     ///< that is neither zero nor has what is not finite
};

/// An expert of A and its counterpart in B.
struct pair_result {
  version_result a;
  version_result b;
  mpi_router::direction_change row;
  mpi_router::direction_change direction;
  /// ‖B − A‖₂; nothing where F differs.
  std::optional<mpi_router::norm_bounds> change;
  mpi_router::angle_limit wedin;
};

/// A layer of A and the layer of B that it became.
struct layer_comparison {
  const moe_layer* a = nullptr;
  const moe_layer* b = nullptr;
  std::string problem;    ///< why the two cannot be compared; empty if they can
  bool by_number = true;  ///< each expert with the one of its number
  std::vector<pair_result> pairs;
  std::vector<index_t> only_a;  ///< experts without a counterpart
  std::vector<index_t> only_b;
  choice_share stored;   ///< with the stored rows
  choice_share step;     ///< with the rows after one step of MPI
  std::string no_share;  ///< why these are unknown; empty if they are not
};

struct comparison_result {
  std::string path_a;
  std::string path_b;
  const moe_layers* found_a = nullptr;
  const moe_layers* found_b = nullptr;
  std::vector<layer_comparison> layers;
  std::vector<const moe_layer*> only_a;
  std::vector<const moe_layer*> only_b;
  std::string tokens;            ///< what they are: "4096 Gaussian tokens"
  std::optional<index_t> top_k;  ///< K
  std::string top_k_from;        ///< who says so
  std::string device;            ///< that multiplied; empty for the host
  index_t layers_skipped = 0;    ///< that --layers leaves out, of the checkpoint that has more of them
  index_t experts_skipped = 0;   ///< of those
  std::vector<left_out> others;  ///< left_out_of() it
};

/// What a search left out of A, of B, or under one name of both.
struct common_omission {
  const omission* a = nullptr;
  const omission* b = nullptr;
  index_t layers = 0;  ///< that the comparison lacks for it, beside those of the lists above
  index_t rows = 0;
};
[[nodiscard]] std::vector<common_omission> omissions_of(const comparison_result& result);

/// Layers and experts that have no counterpart, or cannot be compared, and what was not read. `commands`
/// makes the command lines for that.
[[nodiscard]] std::vector<left_out> left_out_of(
    const comparison_result& result,
    const std::function<std::vector<std::string>(const omission&)>& commands);

/// What the answer covers, over both checkpoints: a pair of layers or of experts counts once, and so does
/// what could be read in one or in neither, where both have one name for it.
struct comparison_coverage {
  index_t layers = 0;
  index_t layers_compared = 0;
  index_t experts = 0;
  index_t experts_compared = 0;
  index_t layers_skipped = 0;  ///< not asked for; not among the others
  index_t experts_skipped = 0;
  [[nodiscard]] bool is_complete() const { return layers == layers_compared && experts == experts_compared; }
};
[[nodiscard]] comparison_coverage coverage_of(const comparison_result& result);

/// "2 of 3 layers, 14 of 24 experts compared".
[[nodiscard]] std::string describe(const comparison_coverage& covered);

/// "blk.0", or "blk.0 and model.layers.0.mlp" where the two are called differently.
[[nodiscard]] std::string name_of(const layer_comparison& pair);

/// "K = 2 of --top-k, 4096 Gaussian tokens".
[[nodiscard]] std::string describe_flips(const comparison_result& result);

/// ‖ΔA‖ / σ₁(A).
[[nodiscard]] double relative_change(const pair_result& e);

/// How far a singular value moved, relative to `scale`.
[[nodiscard]] inline double moved_by(double before, double after, double scale) {
  return scale > 0 ? std::abs(after - before) / scale : unknown;
}

/// Whether Wedin's bound on the angle is more than a guess.
[[nodiscard]] inline bool is_proven(const mpi_router::angle_limit& limit) {
  using mpi_router::certainty;
  return limit.label == certainty::rigorous || limit.label == certainty::probabilistic;
}

}  // namespace verify
