// Looks at each router row and its expert.
#pragma once

#include "results.hpp"
#include "selection.hpp"

#include <algorithm>
#include <functional>
#include <vector>

namespace verify {

/// Which gate matrices are decomposed.
enum class spectrum_choice : unsigned char {
  automatic,  ///< those with min(F, D) ≤ svd_up_to; the others are certified alone
  always,
  never
};

inline constexpr index_t svd_up_to = 512;

[[nodiscard]] constexpr bool decomposes(spectrum_choice choice, index_t ffn_dim, index_t hidden_dim) {
  return choice == spectrum_choice::always ||
         (choice == spectrum_choice::automatic && std::min(ffn_dim, hidden_dim) <= svd_up_to);
}

struct analysis_options {
  double tolerance = 1e-6;  ///< on the sine of the angle, for `steps`
  index_t max_steps = 10000;
  spectrum_choice spectrum = spectrum_choice::automatic;
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
