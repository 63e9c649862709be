// verify_checkpoint: how far each router row of an MoE checkpoint is from its expert's principal singular
// direction.
#include "arguments.hpp"
#include "compare_run.hpp"
#include "coverage.hpp"
#include "find_layers.hpp"
#include "gpu_room.hpp"
#include "heap.hpp"
#include "outputs.hpp"
#include "parallel.hpp"
#include "progress.hpp"
#include "recondition.hpp"
#include "records.hpp"
#include "report.hpp"
#include "signals.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "verify_experts.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <numbers>
#include <optional>
#include <string>
#include <vector>

namespace {

using namespace verify;
using mpi_router::io::printable;

constexpr std::size_t longest_line = 1U << 16U;  // of an error; names in it come from files

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

/// A checkpoint of several that could not be read, as a result that has no layers and says why.
struct unread {
  std::string path;
  moe_layers nothing;
};

/// The checkpoints of a run and their layers.
struct opened {
  std::vector<std::string> paths;  ///< of those that could be read
  std::deque<mpi_router::checkpoint> models;
  std::deque<moe_layers> found;
  std::vector<chosen_layers> chosen;  ///< of each
  std::deque<unread> failed;
  index_t num_experts = 0;

  [[nodiscard]] std::vector<const moe_layer*> layers() const {
    std::vector<const moe_layer*> all;
    for (const auto& some : chosen) {
      all.insert(all.end(), some.asked.begin(), some.asked.end());
    }
    return all;
  }
};

/// Adds the checkpoint and its layers. Throws where it cannot be read, or has none.
void add_input(const std::string& path, const arguments& a, opened& inputs) {
  const auto& model = inputs.models.emplace_back(path);
  try {
    inputs.found.push_back(find_some(model, a));
  } catch (...) {
    inputs.models.pop_back();
    throw;
  }
  inputs.paths.push_back(path);
  for (const auto* layer : inputs.chosen.emplace_back(choose(inputs.found.back(), selected(a))).asked) {
    inputs.num_experts += layer->num_experts;
  }
}

/// Notes, and tells once, that a checkpoint of several could not be read.
void note_unread(const std::string& path, std::string reason, const ranks& all, opened& inputs) {
  if (all.is_first()) {
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fmt::print(stderr, "verify_checkpoint: {}\n", printable(reason, longest_line));
  }
  if (reason.starts_with(path + ": ")) {
    reason.erase(0, path.size() + 2);
  }
  auto& failed = inputs.failed.emplace_back(unread{path, {}});
  failed.nothing.omissions.push_back({path, "could not be read: " + reason, omission_kind::missing});
}

/// One checkpoint must be readable; of several, in one process, those that are not are noted and the others
/// done.
opened open_inputs(const arguments& a, const ranks& all) {
  auto paths = a.inputs;
  if (paths.empty()) {
    for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
      paths.push_back((own_models() / name).string());
    }
  }
  opened inputs;
  for (const auto& path : paths) {
    try {
      add_input(path, a, inputs);
    } catch (const std::exception& error) {
      if (paths.size() == 1 || all.size() > 1) {  // processes must not differ in what they could read
        throw;
      }
      note_unread(path, error.what(), all, inputs);
    }
  }
  if (inputs.models.empty()) {
    throw told_already();
  }
  require(!inputs.layers().empty(), fmt::format("no layer has a number of --layers {}", a.layers));
  return inputs;
}

/// The checkpoints and the layers that were asked for, without results.
std::vector<checkpoint_result> without_results(const opened& inputs) {
  std::vector<checkpoint_result> checkpoints;
  for (std::size_t i = 0; i < inputs.paths.size(); ++i) {
    auto& c = checkpoints.emplace_back(
        checkpoint_result{inputs.paths[i], &inputs.found[i], {}, inputs.chosen[i].skipped});
    for (const auto* layer : inputs.chosen[i].asked) {
      c.layers.push_back({layer, {}});
    }
  }
  for (const auto& failed : inputs.failed) {
    checkpoints.push_back(checkpoint_result{failed.path, &failed.nothing, {}, {}});
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

/// The word that says what is done comes first, its options behind it.
void check_order(const CLI::App& app, const arguments& a) {
  if (app.get_subcommands().empty()) {
    return;
  }
  const std::string& word = app.get_subcommands().front()->get_name();
  require(a.inputs.empty(), fmt::format("{} comes first, before the {}", word,
                                        word == "compare" ? "checkpoints" : "checkpoint"));
  for (const auto* option : app.get_options()) {
    require(option->count() == 0,
            fmt::format("{} before {} is not heeded: options come after it", option->get_name(), word));
  }
}

/// Parses the arguments and does what they say. Throws what main turns into one line.
int run(int argc, char** argv, ranks& all) {
  all.join();
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
  auto* versions = app.add_subcommand(
      "compare", "How far the experts of one checkpoint have moved in another: quantised, pruned, trained");
  compare_arguments c;
  define_compare(*versions, a, c);
  a.command = quoted_command(argc, argv);
  app.set_version_flag("--version", fmt::format("mpi_router {}.{}.{}", MPIROUTER_VERSION_MAJOR,
                                                MPIROUTER_VERSION_MINOR, MPIROUTER_VERSION_PATCH));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      return all.is_first() ? app.exit(e) : 0;  // --help, --version
    }
    throw input_error(fmt::format("{} (--help explains)", e.what()));
  }
  a.again = words_again(app.get_subcommands().empty() ? app : *app.get_subcommands().front());
  check(a);
  check_order(app, a);
  require(all.size() == 1 || (app.get_subcommands().empty() && !a.list),
          "only the verification itself is spread over processes: run this without mpirun");
  use_threads(a.threads > 0 ? a.threads : all.threads());
  return *rewrite    ? run_recondition(a)
         : *versions ? run_compare(a, c)
         : a.list    ? run_list(a, all)
                     : run_verify(a, all);
}

}  // namespace

int main(int argc, char** argv) {
  verify::install_signal_handlers();
  verify::keep_freed_memory();
  verify::ranks all;
  try {
    return run(argc, argv, all);
  } catch (const verify::told_already&) {
    return 2;
  } catch (const std::exception& e) {
    std::string line = e.what();
    std::replace(line.begin(), line.end(), '\n', ' ');
    return all.fail(printable(line, longest_line));
  }
}
