// All layers of all checkpoints in one table.
#pragma once

#include "table.hpp"
#include "table_style.hpp"

#include <string>
#include <vector>

namespace verify {

/// A line for each layer: means over its experts, the range of steps, how many rows are proven, and which are
/// not.
[[nodiscard]] std::string glance(const std::vector<checkpoint_result>& checkpoints,
                                 const table_options& options, const painter& paint);

}  // namespace verify
