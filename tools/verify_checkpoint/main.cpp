// verify_checkpoint: how far each router row of an MoE checkpoint is from its expert's principal singular
// direction.
#include "arguments.hpp"
#include "compare_run.hpp"
#include "heap.hpp"
#include "list_run.hpp"
#include "options.hpp"
#include "parallel.hpp"
#include "ranks.hpp"
#include "recondition_run.hpp"
#include "report.hpp"
#include "signals.hpp"
#include "terminal.hpp"
#include "verify_run.hpp"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <string>

namespace {

using namespace verify;
using mpi_router::io::printable;

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
