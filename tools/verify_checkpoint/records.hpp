// What a program reads: JSON and CSV.
#pragma once

#include "analyse.hpp"
#include "coverage.hpp"

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

namespace verify {

/// A number, or null where it is unknown or not finite.
[[nodiscard]] nlohmann::ordered_json number(double value);

/// What was read of a layer, what was assumed of it, and its experts.
[[nodiscard]] nlohmann::ordered_json layer_record(const std::string& file, const layer_result& result);

/// The JSON document that --help describes. Numbers that are unknown or not finite are null; angles are
/// radians.
[[nodiscard]] std::string to_json(const std::vector<checkpoint_result>& checkpoints,
                                  const analysis_options& options, const coverage& covered);

/// file,layer,expert,step,rho,residual,angle: one line for each iterate.
[[nodiscard]] std::string to_csv(const std::vector<checkpoint_result>& checkpoints);

}  // namespace verify
