// verify_checkpoint: how far each router row of an MoE checkpoint is from its expert's principal singular
// direction.
#include "arguments.hpp"
#include "coverage.hpp"
#include "hints.hpp"
#include "outputs.hpp"
#include "parallel.hpp"
#include "progress.hpp"
#include "recondition.hpp"
#include "records.hpp"
#include "report.hpp"
#include "signals.hpp"
#include "table.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <iterator>
#include <numbers>
#include <string>
#include <vector>

namespace {

using namespace verify;
using mpi_router::io::printable;

constexpr std::size_t longest_line = 1U << 16U;  // of an error; names in it come from files

void flush_output() { require(std::fflush(stdout) == 0, "the standard output cannot be written"); }

/// The layers of a checkpoint; throws where there are none, with all that nearly was one.
moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a) {
  auto found = mpi_router::find_moe_layers(model, naming(a));
  if (found.empty()) {
    std::string reasons;
    for (const auto& other : found.omissions) {
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", other.name, other.reason);
      for (const auto& command : commands_for(model.path().string(), other)) {
        reasons += "; if it is so: " + command;
      }
    }
    throw input_error(
        reasons.empty()
            ? fmt::format(
                  "{}: no MoE layer found among its {} tensors; --router, --gate and --layout name them",
                  model.path().string(), model.weights().size())
            : fmt::format("{}: no MoE layer can be used: {}", model.path().string(), reasons));
  }
  return found;
}

/// The folder of the two models that come with the project: installed beside the program, or in the tree that
/// it was built from.
std::filesystem::path own_models() {
#ifdef VERIFY_CHECKPOINT_INSTALLED_MODELS
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto installed = (program.parent_path() / VERIFY_CHECKPOINT_INSTALLED_MODELS).lexically_normal();
  if (!error && std::filesystem::is_directory(installed, error)) {
    return installed;
  }
#endif
  return VERIFY_CHECKPOINT_MODELS;
}

bool wants_colour(const std::string& choice) {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool plain = (no_colour != nullptr && *no_colour != '\0') ||
                     (terminal != nullptr && std::string_view(terminal) == "dumb");
  return choice == "always" || (choice == "auto" && !plain && ::isatty(STDOUT_FILENO) != 0);
}

/// The checkpoints of a run and their layers.
struct opened {
  std::vector<std::string> paths;
  std::deque<mpi_router::checkpoint> models;
  std::deque<moe_layers> found;
  std::vector<chosen_layers> chosen;  ///< of each
  index_t num_experts = 0;

  [[nodiscard]] std::vector<const moe_layer*> layers() const {
    std::vector<const moe_layer*> all;
    for (const auto& some : chosen) {
      all.insert(all.end(), some.asked.begin(), some.asked.end());
    }
    return all;
  }
};

opened open_inputs(const arguments& a) {
  opened inputs{a.inputs, {}, {}, {}, 0};
  if (inputs.paths.empty()) {
    for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
      inputs.paths.push_back((own_models() / name).string());
    }
  }
  for (const auto& path : inputs.paths) {
    const auto& found = inputs.found.emplace_back(find_some(inputs.models.emplace_back(path), a));
    for (const auto* layer : inputs.chosen.emplace_back(choose(found, selected(a))).asked) {
      inputs.num_experts += layer->num_experts;
    }
  }
  require(!inputs.layers().empty(), fmt::format("no layer has a number of --layers {}", a.layers));
  return inputs;
}

/// Analyses all layers, and sorts the results by checkpoint.
std::vector<checkpoint_result> analyse_all(const opened& inputs, std::optional<index_t> sample,
                                           const analysis_options& options) {
  progress_bar bar("verifying");
  auto results =
      analyse(inputs.layers(), sample, options, [&bar](index_t done, index_t all) { bar(done, all); });
  std::vector<checkpoint_result> checkpoints;
  auto next = std::make_move_iterator(results.begin());
  for (std::size_t i = 0; i < inputs.paths.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(inputs.chosen[i].asked.size());
    checkpoints.push_back({inputs.paths[i], &inputs.found[i], {next, end}, inputs.chosen[i].skipped});
    next = end;
  }
  return checkpoints;
}

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

/// What is there and how it would be read; no weight is touched.
int run_list(const arguments& a) {
  const auto inputs = open_inputs(a);
  std::vector<checkpoint_result> checkpoints;
  for (std::size_t i = 0; i < inputs.paths.size(); ++i) {
    auto& c = checkpoints.emplace_back(
        checkpoint_result{inputs.paths[i], &inputs.found[i], {}, inputs.chosen[i].skipped});
    for (const auto* layer : inputs.chosen[i].asked) {
      c.layers.push_back({layer, {}});
    }
  }
  const auto files = open_outputs({a.json == "-" ? "" : a.json, "", ""}, inputs.models);
  if (files.json) {
    files.json->write(to_json(checkpoints, {}, coverage_of(checkpoints)));
  }
  fmt::print("{}", a.json == "-" ? to_json(checkpoints, {}, coverage_of(checkpoints))
                                 : format_list(checkpoints, wants_colour(a.colour)));
  flush_output();
  files.commit();
  return 0;
}

int run_verify(const arguments& a) {
  const auto inputs = open_inputs(a);
  require(a.trace != "-", "--trace needs a file");
  const auto files = open_outputs({a.json == "-" ? "" : a.json, a.trace, a.report}, inputs.models);

  const analysis_options options{.tolerance = a.tolerance,
                                 .max_steps = a.max_steps,
                                 .spectrum = a.no_svd ? spectrum_choice::never
                                             : a.svd  ? spectrum_choice::always
                                                      : spectrum_choice::automatic,
                                 .trace = !a.trace.empty()};
  const auto checkpoints = analyse_all(inputs, a.sample, options);
  const auto covered = coverage_of(checkpoints, a.require_angle);
  std::string problem;
  if (files.page) {
    problem = write_report(*files.page, a.report, checkpoints, {options, a.command});
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
    fmt::print("{}",
               format_table(checkpoints, {.experts = a.experts || (!a.summary && inputs.num_experts <= 128),
                                          .worst_first = a.worst_first,
                                          .colour = wants_colour(a.colour),
                                          .tolerance = a.tolerance,
                                          .max_steps = a.max_steps,
                                          .exact = all_decomposed(checkpoints)}));
  }
  flush_output();
  files.commit();
  if (files.page) {
    fmt::print(stderr, "{}{}report: {}/index.html\n", problem, problem.empty() ? "" : "\n",
               printable(a.report, 4096));
  }
  return verdict(a, covered);
}

int run_recondition(arguments a) {
  using length = recondition_options::length;
  a.recondition.rule = a.radius ? length::radius : a.c_prime ? length::c_prime : length::keep;
  a.recondition.value = a.radius ? *a.radius : a.c_prime.value_or(0);
  const mpi_router::checkpoint model(a.source);
  const auto found = find_some(model, a);
  recondition_result result;
  {
    progress_bar bar("reconditioning");
    result = recondition(model, found.layers, a.target, a.recondition,
                         [&bar](index_t done, index_t all) { bar(done, all); });
  }
  for (const auto& kept : result.kept) {
    fmt::print("kept as it was: {}\n", printable(kept, 300));
  }
  fmt::print("{}", format_unmatched(found.omissions, wants_colour("auto")));
  fmt::print("{}: {} router rows in {} layer{}, {} step{} on; all else as in {}\n", printable(a.target, 4096),
             result.rows - static_cast<index_t>(result.kept.size()), found.size(),
             found.size() == 1 ? "" : "s", a.recondition.steps, a.recondition.steps == 1 ? "" : "s",
             printable(a.source, 4096));
  return 0;
}

/// Parses the arguments and does what they say. Throws what main turns into one line.
int run(int argc, char** argv) {
  CLI::App app(
      "How far is each router row of a Mixture-of-Experts checkpoint from the principal right singular "
      "direction of its\n"
      "expert, how far does one step of Manifold Power Iteration bring it, and how much of that is "
      "certain?\n",
      "verify_checkpoint");
  arguments a;
  auto* rewrite = app.add_subcommand(
      "recondition",
      "Write a checkpoint with its router rows some power steps on, all else byte for byte unchanged");
  define(app, *rewrite, a);
  a.command = quoted_command(argc, argv);
  app.set_version_flag("--version", fmt::format("mpi_router {}.{}.{}", MPIROUTER_VERSION_MAJOR,
                                                MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      return app.exit(e);  // --help, --version
    }
    throw input_error(fmt::format("{} (--help explains)", e.what()));
  }
  check(a);
  require(!*rewrite || a.inputs.empty(), "recondition comes first, before the checkpoint");
  use_threads(a.threads);
  return *rewrite ? run_recondition(a) : a.list ? run_list(a) : run_verify(a);
}

}  // namespace

int main(int argc, char** argv) {
  verify::install_signal_handlers();
  try {
    return run(argc, argv);
  } catch (const std::exception& e) {
    std::string line = e.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    std::fputs(("verify_checkpoint: " + printable(line, longest_line) + "\n").c_str(), stderr);
    return 2;
  }
}
