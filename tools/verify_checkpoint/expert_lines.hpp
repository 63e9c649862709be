// The result of one expert as a line of JSON, and back: what --lines keeps and what processes tell each
// other.
#pragma once

#include "results.hpp"

#include <optional>
#include <string>
#include <string_view>

namespace verify {

/// A result, and whose it is.
struct placed_result {
  std::size_t layer = 0;  ///< its place among all layers of the run
  expert_result result;
};

/// Without an end of line. The names are those of --json, with "layer", "angle" and, where there is one,
/// "trace", rows of step, ρ, residual and angle. An unknown number is null.
[[nodiscard]] std::string to_line(const placed_result& one);

/// The same again, each number to its last bit; nothing for what to_line() does not write.
[[nodiscard]] std::optional<placed_result> from_line(std::string_view line);

}  // namespace verify
