// What the tables for a terminal are made of: styles, cells, and the null of λ.
#pragma once

#include "results.hpp"

#include <mpi_router/verify/null_model.hpp>

#include <fmt/color.h>
#include <fmt/format.h>

#include <cmath>
#include <string>

namespace verify {

/// Text in a style, where styles are wanted.
struct painter {
  bool colour;

  [[nodiscard]] std::string operator()(const fmt::text_style& style, const std::string& text) const {
    return colour ? fmt::format(style, "{}", text) : text;
  }
  [[nodiscard]] std::string bold(const std::string& text) const { return (*this)(fmt::emphasis::bold, text); }
  [[nodiscard]] std::string faint(const std::string& text) const {
    return (*this)(fmt::emphasis::faint, text);
  }
  /// Green where the row is nearly there, yellow half way, red where it points elsewhere.
  [[nodiscard]] std::string cosine(double value, const std::string& text) const {
    return (*this)(fg(value >= 0.95  ? fmt::terminal_color::green
                      : value >= 0.6 ? fmt::terminal_color::yellow
                                     : fmt::terminal_color::red),
                   text);
  }
};

/// A number of the given width, or a dash.
[[nodiscard]] inline std::string cell(double value, int width, int digits) {
  return std::isfinite(value) ? fmt::format("{:>{}.{}f}", value, width, digits)
                              : fmt::format("{:>{}}", "-", width);
}
[[nodiscard]] inline std::string scientific(double value, int width) {
  return std::isfinite(value) ? fmt::format("{:>{}.2e}", value, width) : fmt::format("{:>{}}", "-", width);
}
/// An angle, in degrees down to a hundredth and in radians below.
[[nodiscard]] inline std::string angle_cell(double radians, int width) {
  const double degrees = radians * degrees_per_radian;
  return !std::isfinite(radians)           ? fmt::format("{:>{}}", "-", width)
         : degrees >= 0.01 || radians == 0 ? fmt::format("{:>{}}", fmt::format("{:.2f}°", degrees), width)
                                           : fmt::format("{:>{}}", fmt::format("{:.0e} rad", radians), width);
}

/// Rows of what is measured of an expert whose gate is this.
[[nodiscard]] inline index_t rows_measured(const moe_layer& layer, const mpi_router::gate_block& gate) {
  return gate.ffn_dim * std::max<index_t>(1, static_cast<index_t>(layer.measured.size()));
}

/// λ after one step, and before, for random rows and matrices of these shapes: the mean over the experts. Of
/// a sum, for the stacked matrix with elements that are alike.
[[nodiscard]] inline mpi_router::null_alignment null_of(const moe_layer& layer) {
  mpi_router::null_alignment sum{};
  for (const auto& gate : layer.gates) {
    const auto null = mpi_router::null_model(rows_measured(layer, gate), gate.hidden_dim);
    sum.stored += null.stored;
    sum.one_step += null.one_step;
  }
  const auto count = static_cast<double>(layer.gates.size());
  sum.stored /= count;
  sum.one_step /= count;
  return sum;
}

}  // namespace verify
