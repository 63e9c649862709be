#include "verify_run.hpp"

#include "coverage.hpp"
#include "gpu_room.hpp"
#include "inputs.hpp"
#include "outputs.hpp"
#include "records.hpp"
#include "report.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "verify_experts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

namespace verify {

namespace {

using mpi_router::io::printable;

/// Whether all that is said of directions is from an SVD.
bool all_decomposed(const std::vector<checkpoint_result>& checkpoints) {
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      if (std::ranges::any_of(layer.experts, [](const auto& e) { return e.sigma_2_from == "none"; })) {
        return false;
      }
    }
  }
  return true;
}

/// The exit status, and on the standard error what it rests on.
int verdict(const arguments& a, const coverage& covered) {
  if (!a.require_angle) {
    return 0;
  }
  if (*a.require_angle >= std::numbers::pi / 2) {
    fmt::print(stderr,
               "every row is within 1.5708 rad of every direction: --require-angle {:g} asks nothing of "
               "the angle, which is in radians\n",
               *a.require_angle);
  }
  fmt::print(stderr, "{}\n", printable(describe_certified(covered, *a.require_angle), longest_line));
  return covered.is_complete() && covered.rows_certified + covered.rows_skipped == covered.rows ? 0 : 1;
}

/// Writes what was asked for; a report that could not be drawn is told, and is no failure.
void write_outputs(const arguments& a, const analysis_options& options, index_t num_experts,
                   const std::vector<checkpoint_result>& checkpoints, const coverage& covered,
                   const outputs& files) {
  std::string problem;
  if (files.page) {
    problem = write_report(*files.page, places_of(a.report).data, checkpoints, {options, a.command});
  }
  if (files.json) {
    files.json->write(to_json(checkpoints, options, covered));
  }
  if (files.trace) {
    files.trace->write(to_csv(checkpoints));
  }
  if (a.json == "-") {
    fmt::print("{}", to_json(checkpoints, options, covered));
  } else {
    fmt::print("{}", format_table(checkpoints, {.experts = a.experts || (!a.summary && num_experts <= 128),
                                                .worst_first = a.worst_first,
                                                .colour = wants_colour(a.colour),
                                                .tolerance = a.tolerance,
                                                .max_steps = a.max_steps,
                                                .exact = all_decomposed(checkpoints),
                                                .again = a.again}));
  }
  flush_output();
  files.commit();
  tell_report(files, a.report, problem);
}

}  // namespace

int run_verify(const arguments& a, ranks& all) {
  std::optional<gpu> device;
  if (a.gpu) {
    device.emplace(all.rank());
  }
  const auto inputs = open_inputs(a, all);
  require(a.trace != "-", "--trace needs a file");
  const analysis_options options{.tolerance = a.tolerance,
                                 .max_steps = a.max_steps,
                                 .spectrum = a.no_svd ? spectrum_choice::never
                                             : a.svd  ? spectrum_choice::always
                                                      : spectrum_choice::automatic,
                                 .trace = !a.trace.empty(),
                                 .device = device ? &*device : nullptr};
  if (device) {
    make_room(*device, a, options, inputs.layers());
  }
  auto checkpoints = without_results(inputs);
  const auto files = verify_experts(a, inputs.models, options, checkpoints, all);
  if (!all.is_first()) {
    return inputs.failed.empty() ? 0 : 2;
  }
  const auto covered = coverage_of(checkpoints, a.require_angle);
  write_outputs(a, options, inputs.num_experts, checkpoints, covered, files);
  const int status = verdict(a, covered);
  return inputs.failed.empty() ? status : 2;
}

}  // namespace verify
