// What one router row says of one expert.
#pragma once

#include "search.hpp"

#include <mpi_router/core/error.hpp>

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

namespace verify {

inline constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

struct analysis_options {
  double tolerance = 1e-6;  ///< on the sine of the angle, for `steps`
  index_t max_steps = 10000;
  bool exact = true;  ///< decompose; otherwise certificates alone
  bool trace = false;
};

/// One iterate of the power iteration from the stored row.
struct trace_row {
  index_t step = 0;
  double rayleigh = 0;
  double residual = 0;
  double angle = 0;  ///< radians to the principal direction
};

/// Unknown numbers are NaN: those that a degenerate row or matrix has not, and σ₂ without an SVD.
struct expert_report {
  index_t expert = 0;
  mpi_router::status state = mpi_router::status::ok;
  double sigma_1 = unknown;
  double sigma_2 = unknown;
  double cosine_stored = unknown;  ///< |cos| of the stored row to the principal right singular direction
  double cosine_step = unknown;    ///< after one step
  double lambda_stored = unknown;
  double lambda_step = unknown;
  double rayleigh = unknown;
  double residual = unknown;
  double angle = unknown;        ///< of the stored row, radians
  double angle_bound = unknown;  ///< it is at most this, for what `certificate` is worth
  std::string_view certificate = "none";
  std::optional<index_t> steps;
  std::vector<trace_row> trace;
};

struct layer_report {
  const moe_layer* layer = nullptr;
  std::vector<expert_report> experts;
};

/// One expert. Never throws for numbers, however odd.
[[nodiscard]] expert_report analyse_expert(const moe_layer& layer, index_t expert,
                                           const analysis_options& options);

/// All experts of all layers, spread over threads; the results do not depend on their number. `progress(done,
/// all)` is called from one thread.
[[nodiscard]] std::vector<layer_report> analyse(const std::vector<const moe_layer*>& layers,
                                                const analysis_options& options,
                                                const std::function<void(index_t, index_t)>& progress);

}  // namespace verify
