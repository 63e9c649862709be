#include "options.hpp"

#include "help.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <string_view>

namespace verify {

namespace {

void add_output_options(CLI::App& app, arguments& a) {
  app.add_option(
         "checkpoint", a.inputs,
         "A .safetensors or .gguf file, a folder of shards, or an index file; without one, the models in "
         "examples/data")
      ->type_name("PATH");
  add_common_options(app, a);
  app.add_option(
         "--trace", a.trace,
         "Write file,layer,expert,step,rho,residual,angle (radians) for each step from the stored row as CSV")
      ->type_name("FILE");
  auto* lines =
      app.add_option("--lines", a.lines,
                     "Write a line of JSON as each expert finishes, to a new file that --resume goes "
                     "on from")
          ->type_name("FILE");
  app.add_flag("--resume", a.resume,
               "Skip the experts that the file of --lines has from a run of the same options and files, and "
               "write the others to it; where there is no such file, begin it")
      ->needs(lines);
}

/// What of each expert its row is measured against, or turned to.
void add_part_options(CLI::App& app, arguments& a) {
  app.add_option("--of", a.of,
                 "The matrices of an expert that count: gate, up, down, or a sum such as gate+up+down or "
                 "gate+0.5*up, whose terms are AᵀA, UᵀU and WWᵀ")
      ->type_name("PARTS")
      ->capture_default_str();
  app.add_option("--down-layout", a.layout_of_down,
                 "With down in --of: ndf for down projections stored as [D, F], nfd for [F, D], where F = D "
                 "and nothing else tells")
      ->check(CLI::IsMember({"nfd", "ndf"}));
}

void add_analysis_options(CLI::App& app, arguments& a) {
  app.add_option("--tolerance", a.tolerance, "Sine of the angle at which a row counts as arrived, for steps")
      ->capture_default_str();
  app.add_option("--max-steps", a.max_steps, "Steps to try at most")->capture_default_str();
  app.add_option(
      "--require-angle", a.require_angle,
      "In radians: exit with 1 unless every row of every layer that the files hold or promise is certified, "
      "rigorously or with a failure probability of at most 1e-6, to be no farther than this from the "
      "principal direction");
  auto* svd =
      app.add_flag("--svd", a.svd,
                   "Decompose every expert. Without it those with min(F, D) of at most 512 are: a larger "
                   "one takes long");
  app.add_flag("--no-svd", a.no_svd,
               "Decompose none. What is not decomposed is measured against a direction found by power "
               "iteration, which is certified to be as near as angle_bound says; its steps are counted in a "
               "Krylov space, to "
               "about a percent")
      ->excludes(svd);
  svd->excludes(app.get_option("--gpu"));
  app.add_flag(
         "--list", a.list,
         "Say what the checkpoint holds and how it would be read, and compute nothing; with --json - as JSON")
      ->excludes(app.get_option("--lines"));
  app.add_option("--sample", a.sample, "Look at this many experts of each layer alone, evenly spread")
      ->type_name("N");
  app.add_flag("--worst-first", a.worst_first, "Sort the experts of a layer by their cosine after one step");
  add_part_options(app, a);
}

void add_rewrite_options(CLI::App& rewrite, arguments& a) {
  add_part_options(rewrite, a);
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
}

}  // namespace

void add_common_options(CLI::App& app, arguments& a) {
  app.add_option("--json", a.json,
                 "Write all numbers as JSON; - writes them to the standard output instead of the table")
      ->type_name("FILE");
  app.add_option("--report", a.report,
                 "Write a page with figures and sortable tables, DIR/index.html or FILE.html, and its data; "
                 "gnuplot draws the figures")
      ->type_name("DIR|FILE.html");
  app.add_option("--layers", a.layers, "Look at the layers of these numbers alone: 3,17-20")
      ->type_name("LIST");
  app.add_option("--threads", a.threads, "Threads to use; without it as many as the machine has")
      ->type_name("N");
  app.add_flag("--gpu", a.gpu,
               "Multiply on the GPU, in double: experts with min(F, D) above 512, an expert on each "
               "multiprocessor (--threads: so many under way at most). Small ones are done on the host, and "
               "packed weights "
               "decoded there. The same certificates, and the same numbers up to rounding");
  auto* experts = app.add_flag("--experts", a.experts, "A line for each expert, however many there are");
  app.add_flag("--summary", a.summary, "A line for each layer only (the default above 128 experts)")
      ->excludes(experts);
  app.add_option("--color", a.colour, "auto, always or never; auto also heeds NO_COLOR")
      ->check(CLI::IsMember({"auto", "always", "never"}))
      ->capture_default_str();
}

void add_naming_options(CLI::App& app, arguments& a) {
  app.add_option("--router", a.router,
                 "Name of the router tensors, [N, D]. {layer} stands for any text, the same in --gate")
      ->type_name("PATTERN");
  app.add_option("--gate", a.gate,
                 "Name of the gate tensors; {expert} is the expert's number where each has its own tensor")
      ->type_name("PATTERN");
  app.add_option("--layout", a.layout,
                 "How the gate tensors are stored (see below). With --router the default is nfd")
      ->type_name("LAYOUT");
  app.add_option(
         "--router-layout", a.layout_of_router,
         "nd for routers stored as [N, D], dn for [D, N]; without it as the family has them, or as the "
         "shapes force")
      ->check(CLI::IsMember({"nd", "dn"}));
}

void finish_options(CLI::App& app) {
  app.get_formatter()->column_width(30);
  for (auto* option : app.get_options()) {
    option->description(wrapped(option->get_description()));
    if (option->get_items_expected_max() > 0) {  // "" would pass for an option that was not given
      option->check([](const std::string& word) { return word.empty() ? "an empty word" : std::string(); },
                    "");
    }
  }
}

void define(CLI::App& app, CLI::App& rewrite, arguments& a) {
  add_output_options(app, a);
  add_analysis_options(app, a);
  add_naming_options(app, a);
  add_rewrite_options(rewrite, a);
  add_naming_options(rewrite, a);
  finish_options(app);
  finish_options(rewrite);
  app.footer(help_footer);
  rewrite.footer(describe_layouts);
}

std::vector<std::string> words_again(const CLI::App& app) {
  constexpr std::array<std::string_view, 11> others{"--help",   "--list",   "--json",         "--trace",
                                                    "--report", "--lines",  "--resume",       "--router",
                                                    "--gate",   "--layout", "--router-layout"};
  std::vector<std::string> words;
  if (app.get_parent() != nullptr) {
    words.push_back(app.get_name());
  } else {
    words.emplace_back();
  }
  for (const auto* option : app.get_options()) {
    const auto name = option->get_name();
    const bool is_ours = app.get_parent() != nullptr || !option->get_positional();
    if (option->count() == 0 || !is_ours || std::ranges::find(others, name) != others.end()) {
      continue;
    }
    if (!option->get_positional()) {
      words.push_back(name);
    }
    if (option->get_items_expected_max() > 0) {
      words.insert(words.end(), option->results().begin(), option->results().end());
    }
  }
  return words;
}

}  // namespace verify
