// What is known of experts, layers and checkpoints after the analysis.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/io/moe/layer.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

using mpi_router::index_t;
using mpi_router::moe_layer;
using mpi_router::moe_layers;
using mpi_router::omission;
using mpi_router::omission_kind;

inline constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
inline constexpr double degrees_per_radian = 180 / std::numbers::pi;

/// One iterate of the power iteration from the stored row.
struct trace_row {
  index_t step = 0;
  double rayleigh = 0;
  double residual = 0;
  double angle = 0;  ///< radians to the principal direction
};

/// Unknown numbers are NaN: those that a degenerate row or matrix has not.
struct expert_result {
  index_t expert = 0;
  mpi_router::status state = mpi_router::status::ok;
  double sigma_1 = unknown;
  double sigma_2 = unknown;
  std::string_view sigma_2_from = "none";  ///< what it is: "svd", exact, or "ritz (estimate)"
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

struct layer_result {
  const moe_layer* layer = nullptr;
  std::vector<expert_result> experts;
};

/// A checkpoint with what was found in it; `layers` are the results of the layers that were asked for, in
/// their order.
struct checkpoint_result {
  std::string path;
  const moe_layers* found = nullptr;
  std::vector<layer_result> layers;
  std::vector<const moe_layer*> skipped;  ///< those that --layers leaves out
};

/// Something that the answer lacks.
struct left_out {
  std::string what;  ///< "not used", "missing"
  std::string name;
  std::string reason;
  std::vector<std::string> commands = {};  ///< each would use it; which is right the user must know
};

[[nodiscard]] constexpr std::string_view word_for(omission_kind kind) {
  return kind == omission_kind::missing ? "missing" : "not used";
}

/// What of an expert its row is measured against: its "gate matrix", or "matrices gate+up" of a sum.
[[nodiscard]] inline std::string measured_of(const checkpoint_result& c) {
  for (const auto& result : c.layers) {
    if (const auto& parts = result.layer->measured; !parts.empty()) {
      return std::string(parts.size() == 1 ? "matrix " : "matrices ") + to_string(weights_of(*result.layer));
    }
  }
  return "gate matrix";
}

/// Whether the cosines of an expert mean something: without a certificate there may be no one direction to
/// measure against. Those that do not are marked, and enter no mean.
[[nodiscard]] inline bool has_direction(const expert_result& e) {
  return e.state == mpi_router::status::ok && e.certificate != "none";
}

/// Whether the angle of the row is certified, rigorously or with a stated probability of failure, to be
/// at most `angle`.
[[nodiscard]] inline bool is_certified(const expert_result& e, double angle) {
  return (e.certificate == "rigorous" || e.certificate == "probabilistic") && e.angle_bound <= angle;
}

/// What the values of one column are over the experts of a layer, or over pairs, without the unknown ones.
struct column {
  double mean = unknown;
  double low = unknown;
  double high = unknown;
};

template <class Entry, class Value>
column summarise(const std::vector<Entry>& all, Value value) {
  column result;
  double sum = 0;
  double count = 0;
  for (const auto& e : all) {
    const double x = value(e);
    if (std::isfinite(x)) {
      sum += x;
      result.low = count == 0 ? x : std::min(result.low, x);
      result.high = count == 0 ? x : std::max(result.high, x);
      ++count;
    }
  }
  result.mean = sum / count;
  return result;
}

}  // namespace verify
