// verify_checkpoint: how far each router row of an MoE checkpoint is from its expert's principal singular
// direction.
#include "html_report.hpp"
#include "outputs.hpp"
#include "progress.hpp"
#include "recondition.hpp"
#include "records.hpp"
#include "report.hpp"
#include "signals.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

#ifndef VERIFY_CHECKPOINT_DATA
#define VERIFY_CHECKPOINT_DATA "examples/data"
#endif

namespace {

using namespace verify;
using mpi_router::io::printable;

constexpr std::size_t longest_line = 8192;  // of an error; names in it come from files

/// Bad input or usage: exit status 2 and this one line.
class input_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct arguments {
  std::vector<std::string> inputs;
  std::string router;
  std::string gate;
  std::string how;
  std::string json;
  std::string trace;
  std::string report;
  std::string command;  ///< all of it, for the report
  double tolerance = 1e-6;
  index_t max_steps = 10000;
  std::optional<double> require_angle;
  bool no_svd = false;
  bool worst_first = false;
  bool experts = false;
  bool summary = false;
  std::string colour = "auto";

  std::string source;
  std::string target;
  recondition_options recondition;
  std::optional<double> radius;
  std::optional<double> c_prime;
  bool keep_norm = false;
};

/// Breaks a help text into lines that fit beside the option names.
std::string wrapped(const std::string& text) {
  constexpr std::size_t width = 70;
  std::string out;
  std::size_t line = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find(' ', begin), text.size());
    if (line > 0 && line + 1 + (end - begin) > width) {
      out += '\n';
      line = 0;
    }
    out += line > 0 ? " " : "";
    out += text.substr(begin, end - begin);
    line += (line > 0 ? 1 : 0) + (end - begin);
    begin = end + 1;
  }
  return out;
}

void add_naming_options(CLI::App& app, arguments& a) {
  app.add_option("--router", a.router,
                 "Name of the router tensors, [N, D]. {layer} stands for any text, the same in --gate")
      ->type_name("PATTERN");
  app.add_option("--gate", a.gate,
                 "Name of the gate tensors; {expert} is the expert's number where each has its own tensor")
      ->type_name("PATTERN");
  app.add_option("--layout", a.how,
                 "How the gate tensors are stored (see below). With --router the default is nfd")
      ->type_name("LAYOUT");
}

std::string describe_layouts() {
  std::string all =
      "\nLayouts (N experts, F neurons each, D hidden dimensions; the tensor of one expert lacks N):\n";
  for (const auto& name : layout_names) {
    all += fmt::format("  {:<18}  {}\n", name.flag, name.meaning);
  }
  return all;
}

std::string footer() {
  return fmt::format(R"({}
Known families (… is any prefix, E the number of an expert):
{}
JSON: {{"version", "tolerance", "max_steps", "exact", "layers": […], "unmatched": […]}}. A layer has "file", "name"
  (the prefix that its router and experts share), "num_experts", "ffn_dim", "hidden_dim" and "experts", each of them
  with "expert", "sigma1", "sigma2", "cosine_stored", "cosine_step", "lambda_stored", "lambda_step", "rayleigh",
  "residual", "angle_bound", "certificate" (rigorous, probabilistic, heuristic, none), "steps" and "status" (ok,
  zero_row, zero_image, non_finite). Angles are in radians. What is not known is null: steps beyond --max-steps, sigma2
  with --no-svd, the numbers of degenerate rows. lambda is relative to sigma1.

Exit status: 0 done; 1 done, but a row could not be certified to --require-angle; 2 bad input or usage, in which case
  neither JSON nor trace nor page is written.

Examples:
  verify_checkpoint                                       the two small models that come with the project
  verify_checkpoint model-folder --summary --json out.json
  verify_checkpoint model-folder --report pages           then open pages/index.html
  verify_checkpoint model.safetensors --no-svd --require-angle 0.01
  verify_checkpoint m.safetensors --router 'blk.{{layer}}.route' --gate 'blk.{{layer}}.ffn.{{expert}}.gate' --layout nfd
  verify_checkpoint recondition model-folder new-folder --steps 20
)",
                     describe_layouts(), describe_families());
}

void define(CLI::App& app, CLI::App& rewrite, arguments& a) {
  app.add_option("checkpoint", a.inputs,
                 "A .safetensors file, a folder of shards, or an index file; without one, the models in "
                 "examples/data")
      ->type_name("PATH");
  app.add_option("--json", a.json,
                 "Write all numbers as JSON; - writes them to the standard output instead of the table")
      ->type_name("FILE");
  app.add_option(
         "--trace", a.trace,
         "Write file,layer,expert,step,rho,residual,angle (radians) for each step from the stored row as CSV")
      ->type_name("FILE");
  app.add_option("--report", a.report,
                 "Write DIR/index.html, a page with figures and sortable tables, and its data; gnuplot draws "
                 "the figures")
      ->type_name("DIR");
  app.add_option("--tolerance", a.tolerance, "Sine of the angle at which a row counts as arrived, for steps")
      ->capture_default_str();
  app.add_option("--max-steps", a.max_steps, "Steps to try at most")->capture_default_str();
  app.add_option("--require-angle", a.require_angle,
                 "In radians: exit with 1 unless every row is certified, rigorously or but for a probability "
                 "of 1e-6, to "
                 "be no farther than this from the principal direction");
  app.add_flag("--no-svd", a.no_svd,
               "Certificates alone, for experts too large to decompose: all is measured against a direction "
               "found by power "
               "iteration, which is certified to be as near as angle_bound says; steps are an upper bound");
  app.add_flag("--worst-first", a.worst_first, "Sort the experts of a layer by their cosine after one step");
  auto* experts = app.add_flag("--experts", a.experts, "A line for each expert, however many there are");
  app.add_flag("--summary", a.summary, "A line for each layer only (the default above 128 experts)")
      ->excludes(experts);
  app.add_option("--color", a.colour, "auto, always or never; auto also heeds NO_COLOR")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
  add_naming_options(app, a);

  rewrite.add_option("source", a.source, "A .safetensors file, a folder of shards, or an index file")
      ->type_name("PATH")
      ->required();
  rewrite.add_option("target", a.target, "The file or, for shards, the folder to write; neither must exist")
      ->type_name("PATH")
      ->required();
  rewrite.add_option("--steps", a.recondition.steps, "Power steps to take from each stored row")
      ->capture_default_str();
  auto* keep = rewrite.add_flag("--keep-norm", a.keep_norm, "Each row keeps its length (the default)");
  auto* radius = rewrite.add_option("--radius", a.radius, "Length of each row, C of Eq. 5")->excludes(keep);
  rewrite.add_option("--c-prime", a.c_prime, "Length C'/sqrt(N), Eq. 7; the paper's C' is about 4")
      ->excludes(keep)
      ->excludes(radius);
  add_naming_options(rewrite, a);

  for (auto* some : {&app, &rewrite}) {
    some->get_formatter()->column_width(30);
    for (auto* option : some->get_options()) {
      option->description(wrapped(option->get_description()));
    }
  }
  app.footer(footer);
  rewrite.footer(describe_layouts);
}

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw input_error(message);
  }
}

void flush_output() { require(std::fflush(stdout) == 0, "the standard output cannot be written"); }

void check(const arguments& a) {
  require(std::isfinite(a.tolerance) && a.tolerance > 0 && a.tolerance < 1,
          "--tolerance must lie between 0 and 1");
  constexpr index_t most = 1'000'000'000;
  require(a.max_steps >= 0 && a.max_steps <= most,
          fmt::format("--max-steps must lie between 0 and {}", most));
  require(!a.require_angle || (std::isfinite(*a.require_angle) && *a.require_angle > 0),
          "--require-angle must be positive");
  require(a.recondition.steps >= 0 && a.recondition.steps <= most,
          fmt::format("--steps must lie between 0 and {}", most));
  for (const auto& length : {a.radius, a.c_prime}) {
    require(!length || (std::isfinite(*length) && *length > 0), "--radius and --c-prime must be positive");
  }
  require(a.router.empty() == a.gate.empty(), "--router and --gate go together");
  require(a.how.empty() || layout_from_flag(a.how).has_value(),
          fmt::format("there is no layout '{}'; --help lists them", a.how));
  require((a.router.find("{layer}") == std::string::npos) == (a.gate.find("{layer}") == std::string::npos),
          "{layer} must stand in both --router and --gate, or in neither");
  require(a.router.find("{expert}") == std::string::npos,
          "{expert} belongs into --gate: a router has all experts' rows");
}

search_options naming(const arguments& a) {
  search_options options;
  if (!a.router.empty()) {
    options.patterns = name_patterns{a.router, a.gate};
  }
  options.how = layout_from_flag(a.how);
  return options;
}

/// The layers of a checkpoint; throws where there are none, with the first thing that nearly was one.
search_result find_some(const mpi_router::checkpoint& model, const search_options& options) {
  auto found = find_layers(model, options);
  if (found.layers.empty()) {
    const auto& others = found.others;
    const std::string more = others.size() > 1 ? fmt::format(" (and {} more)", others.size() - 1) : "";
    throw input_error(
        others.empty()
            ? fmt::format(
                  "{}: no MoE layer found among its {} tensors; --router, --gate and --layout name them",
                  model.path().string(), model.tensors().size())
            : fmt::format("{}: no MoE layer can be used: {}: {}{}", model.path().string(), others[0].name,
                          others[0].reason, more));
  }
  return found;
}

bool wants_colour(const std::string& choice) {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool plain = (no_colour != nullptr && *no_colour != '\0') ||
                     (terminal != nullptr && std::string_view(terminal) == "dumb");
  return choice == "always" || (choice == "auto" && !plain && ::isatty(STDOUT_FILENO) != 0);
}

int run_verify(const arguments& a) {
  std::vector<std::string> inputs = a.inputs;
  if (inputs.empty()) {
    for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
      inputs.push_back(std::string(VERIFY_CHECKPOINT_DATA) + "/" + name);
    }
  }
  std::deque<mpi_router::checkpoint> models;
  std::deque<search_result> found;
  std::vector<const moe_layer*> layers;
  index_t num_experts = 0;
  for (const auto& path : inputs) {
    found.push_back(find_some(models.emplace_back(path), naming(a)));
    for (const auto& layer : found.back().layers) {
      layers.push_back(&layer);
      num_experts += layer.num_experts;
    }
  }
  require(a.trace != "-", "--trace needs a file");
  const auto files = open_outputs({a.json == "-" ? "" : a.json, a.trace, a.report}, models);

  const analysis_options options{
      .tolerance = a.tolerance, .max_steps = a.max_steps, .exact = !a.no_svd, .trace = !a.trace.empty()};
  std::vector<layer_report> reports;
  {
    progress_bar bar("verifying");
    reports = analyse(layers, options, [&bar](index_t done, index_t all) { bar(done, all); });
  }
  std::vector<checkpoint_report> checkpoints;
  auto next = reports.begin();
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const auto end = next + static_cast<std::ptrdiff_t>(found[i].layers.size());
    checkpoints.push_back(
        {inputs[i], &found[i], {std::make_move_iterator(next), std::make_move_iterator(end)}});
    next = end;
  }

  std::string problem;
  if (files.page) {
    problem = write_html_report(*files.page, a.report, checkpoints, {options, a.command});
  }
  if (files.json) {
    files.json->write(to_json(checkpoints, options));
  }
  if (files.trace) {
    files.trace->write(to_csv(checkpoints));
  }
  const bool colour = wants_colour(a.colour);
  if (a.json == "-") {
    fmt::print("{}", to_json(checkpoints, options));
  } else {
    fmt::print("{}", format_report(checkpoints, {.experts = a.experts || (!a.summary && num_experts <= 128),
                                                 .worst_first = a.worst_first,
                                                 .colour = colour,
                                                 .tolerance = a.tolerance,
                                                 .max_steps = a.max_steps,
                                                 .exact = options.exact}));
  }
  flush_output();
  files.commit();
  if (files.page) {
    fmt::print(stderr, "{}{}report: {}/index.html\n", problem, problem.empty() ? "" : "\n",
               printable(a.report, 4096));
  }
  if (!a.require_angle) {
    return 0;
  }
  index_t short_of_it = 0;
  for (const auto& c : checkpoints) {
    for (const auto& layer : c.layers) {
      for (const auto& e : layer.experts) {
        short_of_it += is_certified(e, *a.require_angle) ? 0 : 1;
      }
    }
  }
  fmt::print(stderr, "{} of {} rows are certified to be within {:g} rad of the principal direction\n",
             num_experts - short_of_it, num_experts, *a.require_angle);
  return short_of_it == 0 ? 0 : 1;
}

int run_recondition(arguments a) {
  using length = recondition_options::length;
  a.recondition.rule = a.radius ? length::radius : a.c_prime ? length::c_prime : length::keep;
  a.recondition.value = a.radius ? *a.radius : a.c_prime.value_or(0);
  const mpi_router::checkpoint model(a.source);
  const auto found = find_some(model, naming(a));
  recondition_result result;
  {
    progress_bar bar("reconditioning");
    result = recondition(model, found.layers, a.target, a.recondition,
                         [&bar](index_t done, index_t all) { bar(done, all); });
  }
  for (const auto& kept : result.kept) {
    fmt::print("kept as it was: {}\n", printable(kept, 300));
  }
  fmt::print("{}", format_unmatched(found.others, wants_colour("auto")));
  fmt::print("{}: {} router rows in {} layer{}, {} step{} on; all else as in {}\n", printable(a.target, 4096),
             result.rows - static_cast<index_t>(result.kept.size()), found.layers.size(),
             found.layers.size() == 1 ? "" : "s", a.recondition.steps, a.recondition.steps == 1 ? "" : "s",
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
  return *rewrite ? run_recondition(a) : run_verify(a);
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
