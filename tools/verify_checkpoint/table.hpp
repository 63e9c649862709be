// What a person reads: what was found, a table for each layer, and all layers at a glance.
#pragma once

#include "results.hpp"

#include <string>
#include <vector>

namespace verify {

struct table_options {
  bool experts = true;  ///< a line for each expert, not only for each layer
  bool worst_first = false;
  bool colour = false;
  double tolerance = 1e-6;
  index_t max_steps = 10000;
  bool exact = true;
  std::vector<std::string> again = {};  ///< for the command lines that settle doubts
};

/// All of it, as it goes to the standard output.
[[nodiscard]] std::string format_table(const std::vector<checkpoint_result>& checkpoints,
                                       const table_options& options);

/// A line for each, and the command lines that settle it.
[[nodiscard]] std::string format_left_out(const std::vector<left_out>& all, bool colour);

/// The same of what a search left out. Without `again` no command lines.
[[nodiscard]] std::string format_unmatched(const std::vector<omission>& omissions, bool colour,
                                           const std::vector<std::string>& again = {},
                                           const std::string& path = "");

/// What a checkpoint holds and how it would be read.
[[nodiscard]] std::string format_list(const std::vector<checkpoint_result>& checkpoints, bool colour,
                                      const std::vector<std::string>& again);

}  // namespace verify
