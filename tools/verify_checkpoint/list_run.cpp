#include "list_run.hpp"

#include "coverage.hpp"
#include "inputs.hpp"
#include "outputs.hpp"
#include "records.hpp"
#include "table.hpp"
#include "terminal.hpp"

#include <fmt/format.h>

namespace verify {

int run_list(const arguments& a, const ranks& all) {
  const auto inputs = open_inputs(a, all);
  const auto checkpoints = without_results(inputs);
  const auto files = open_outputs({a.json == "-" ? "" : a.json, "", "", ""}, inputs.models);
  if (files.json) {
    files.json->write(to_json(checkpoints, {}, coverage_of(checkpoints)));
  }
  fmt::print("{}", a.json == "-" ? to_json(checkpoints, {}, coverage_of(checkpoints))
                                 : format_list(checkpoints, wants_colour(a.colour), a.again));
  flush_output();
  files.commit();
  return inputs.failed.empty() ? 0 : 2;
}

}  // namespace verify
