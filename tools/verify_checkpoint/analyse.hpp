// Looks at each router row and its expert.
#pragma once

#include "gpu.hpp"
#include "ranks.hpp"
#include "results.hpp"
#include "task_list.hpp"

#include <algorithm>
#include <functional>

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

/// Whether a gate matrix is read where it lies, and not in double.
[[nodiscard]] constexpr bool is_large(index_t ffn_dim, index_t hidden_dim) {
  return ffn_dim * hidden_dim > 6'000'000;
}

struct analysis_options {
  double tolerance = 1e-6;  ///< on the sine of the angle, for `steps`
  index_t max_steps = 10000;
  spectrum_choice spectrum = spectrum_choice::automatic;
  bool trace = false;
  gpu* device = nullptr;  ///< where experts are multiplied that are not decomposed; null for the host
};

/// Whether an expert of this size goes to the GPU, where there is one: not if it is decomposed, or small
/// enough for the rigorous bound.
[[nodiscard]] bool multiplies_on_gpu(const analysis_options& options, index_t ffn_dim, index_t hidden_dim);

/// One expert. Never throws for numbers, however odd.
[[nodiscard]] expert_result analyse_expert(const moe_layer& layer, index_t expert,
                                           const analysis_options& options);

/// The experts of the list that have no result yet, spread over ranks and threads; the results do not depend
/// on the number of either. `finished(result)` is called for each on the first rank, from one thread at a
/// time, before the list has it. The other ranks end up with none.
void analyse(task_list& tasks, const analysis_options& options, ranks& all,
             const std::function<void(const placed_result&)>& finished);

}  // namespace verify
