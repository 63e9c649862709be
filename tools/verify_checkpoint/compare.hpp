// Compares the experts of two checkpoints, layer by layer.
#pragma once

#include "compare_results.hpp"
#include "gpu.hpp"

#include <functional>
#include <vector>

namespace verify {

/// What choices are compared on.
struct choice_options {
  std::string tokens;            ///< "FILE.safetensors:NAME"; empty: Gaussian ones
  std::optional<index_t> top_k;  ///< K; without it no choices are compared
};

/// Compares the layers of A and B that are the same: fills in `layers`, `only_a`, `only_b` and `tokens` of
/// `result`. Spread over threads; the numbers do not depend on how many. `progress(done, all)` counts
/// experts. device: where large experts are multiplied; null for the host. Throws what reading throws, and
/// file_error where given tokens have not the layers' D.
void compare(const std::vector<const moe_layer*>& a, const std::vector<const moe_layer*>& b,
             const choice_options& options, gpu* device, comparison_result& result,
             const std::function<void(index_t, index_t)>& progress);

}  // namespace verify
