// What a person reads of a comparison.
#pragma once

#include "compare_results.hpp"

#include <string>

namespace verify {

struct compare_table_options {
  bool experts = true;  ///< a line for each expert, not only for each layer
  bool colour = false;
};

/// All of it, as it goes to the standard output.
[[nodiscard]] std::string format_comparison(const comparison_result& result,
                                            const compare_table_options& options);

}  // namespace verify
