// Which experts tokens choose, before and after.
#pragma once

#include "results.hpp"

#include <Eigen/Core>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace verify {

using token_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // [T, D]

inline constexpr index_t gaussian_tokens = 4096;

/// T rows of D independent normal numbers, the same each time.
[[nodiscard]] token_matrix random_tokens(index_t count, index_t hidden_dim);

/// The file of "FILE.safetensors:NAME" or "FILE.safetensors".
[[nodiscard]] std::filesystem::path file_of_tokens(const std::string& place);

/// The tensor [T, D] of "FILE.safetensors:NAME", or the only such of "FILE.safetensors". Throws file_error
/// where there is none, or it is not of finite floating-point numbers.
[[nodiscard]] token_matrix read_tokens(const std::string& place);

/// Shares of A's choices, T · K of them.
struct choice_share {
  double flipped = unknown;  ///< not chosen in B
  double lost = unknown;     ///< of these, experts that have no counterpart in B
};

/// The logits are x · r alone: no bias, no groups, and of the rows only those given; ties go to the lower
/// index, and a logit that is no number is never chosen while there are others. rows_a: [N_A, D], rows_b:
/// [N_B, D]; each chooses its K largest, or all that it has. O(T N D).
[[nodiscard]] choice_share compare_choices(const token_matrix& tokens, const Eigen::MatrixXd& rows_a,
                                           const Eigen::MatrixXd& rows_b,
                                           const std::vector<std::pair<index_t, index_t>>& pairs,
                                           index_t top_k);

}  // namespace verify
