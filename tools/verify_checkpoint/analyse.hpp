// Looks at each router row and its expert.
#pragma once

#include "results.hpp"
#include "selection.hpp"

#include <functional>
#include <vector>

namespace verify {

struct analysis_options {
  double tolerance = 1e-6;  ///< on the sine of the angle, for `steps`
  index_t max_steps = 10000;
  bool exact = true;  ///< decompose; otherwise certificates alone
  bool trace = false;
};

/// One expert. Never throws for numbers, however odd.
[[nodiscard]] expert_result analyse_expert(const moe_layer& layer, index_t expert,
                                           const analysis_options& options);

/// The experts of these layers, all or a sample of each, spread over threads; the results do not depend on
/// their number. `progress(done, all)` is called from one thread.
[[nodiscard]] std::vector<layer_result> analyse(const std::vector<const moe_layer*>& layers,
                                                std::optional<index_t> sample,
                                                const analysis_options& options,
                                                const std::function<void(index_t, index_t)>& progress);

}  // namespace verify
