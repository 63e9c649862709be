// What a person reads: what was found, a table for each layer, and all layers at a glance.
#pragma once

#include "analyse.hpp"

#include <string>
#include <vector>

namespace verify {

struct report_options {
  bool experts = true;  ///< a line for each expert, not only for each layer
  bool worst_first = false;
  bool colour = false;
  double tolerance = 1e-6;
  index_t max_steps = 10000;
  bool exact = true;
};

/// A checkpoint with what was found in it; `layers` are the reports of found.layers, in their order.
struct checkpoint_report {
  std::string path;
  const search_result* found = nullptr;
  std::vector<layer_report> layers;
};

[[nodiscard]] std::string format_report(const std::vector<checkpoint_report>& checkpoints,
                                        const report_options& options);

/// One line: "name: reason", for each thing that could not be used.
[[nodiscard]] std::string format_unmatched(const std::vector<unmatched>& others, bool colour);

/// Whether the cosines of an expert mean something: without a certificate there may be no one direction to
/// measure against. Those that do not are marked, and enter no mean.
[[nodiscard]] bool has_direction(const expert_report& e);

/// Whether the angle of the row is certified, rigorously or but for a stated probability, to be at most
/// `angle`.
[[nodiscard]] bool is_certified(const expert_report& e, double angle);

}  // namespace verify
