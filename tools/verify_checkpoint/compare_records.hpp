// What a program reads of a comparison: JSON.
#pragma once

#include "compare_results.hpp"

#include <string>

namespace verify {

/// The JSON document that compare --help describes. Numbers that are unknown or not finite are null; angles
/// are radians.
[[nodiscard]] std::string to_json(const comparison_result& result);

}  // namespace verify
