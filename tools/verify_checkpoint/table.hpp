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
};

/// All of it, as it goes to the standard output.
[[nodiscard]] std::string format_table(const std::vector<checkpoint_result>& checkpoints,
                                       const table_options& options);

/// One line: "name: reason", for each thing that could not be used. With the path of the checkpoint, the
/// command lines too that would use it.
[[nodiscard]] std::string format_unmatched(const std::vector<omission>& omissions, bool colour,
                                           const std::string& path = "");

/// What a checkpoint holds and how it would be read.
[[nodiscard]] std::string format_list(const std::vector<checkpoint_result>& checkpoints, bool colour);

}  // namespace verify
