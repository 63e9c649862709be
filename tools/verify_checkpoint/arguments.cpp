#include "arguments.hpp"

#include "text.hpp"

#include <mpi_router/io/moe/families.hpp>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

namespace verify {

namespace {

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

/// The families, a few lines each.
std::string describe_families() {
  std::string out;
  for (const auto& family : mpi_router::model_families()) {
    std::string layouts;
    for (const auto layout : family.layouts) {
      layouts += (layouts.empty() ? "" : " or ") + std::string(to_string(layout));
    }
    const auto router = replaced(std::string(family.router), "{layer}", "…");
    const auto gate = replaced(replaced(std::string(family.gate), "{layer}", "…"), "{expert}", "E");
    out += fmt::format("  {}\n      {}\n      {}  {}\n", family.name, router, gate, layouts);
  }
  return out;
}

std::string footer() {
  return fmt::format(R"({}
Known families (… is any prefix, E the number of an expert):
{}
Other names are read where what they look like and the shapes leave no doubt: a matrix [N, D] beside the matrices of N
  experts; the table then says "no known family". What stays in doubt is named, for --router, --gate and --layout.

A layout is never guessed: it is taken if the shapes leave no other (those of D = 2F and F = D do), if the weights are
  packed in groups along D or are GGUF's, whose rows are, if the config.json beside the checkpoint names an architecture
  that has but one, if torch's Linear leaves no choice (a "….weight" of one expert is [F, D]), or if --layout says so.
  What was taken, and why, stands with each layer.

Packed weights (FP8, MXFP4, NVFP4, int8, int4, MLX, AWQ, GPTQ, bitsandbytes, GGUF except its codebook, ternary, one- and two-bit types) are
  decoded to the products of codes and scales; experts of more than six million weights to floats, rounded once, as
  the formats' own decoders do. What is certified is certified of those numbers.

Where experts see a latent P x, A P is measured, rounded to floats where it has more than six million elements; where
  they have no gate, the up projection takes its place ("part").

With --of the numbers are of M = a AᵀA + b UᵀU + c WWᵀ, of gate A, up U and down projection W, [D, F]: those of the matrix
  of their rows one below the other, [√a A; √b U; √c Wᵀ]. A layer that lacks one of them, or whose W may lie both ways, is
  not looked at, and said so. Sums are read in double, all of an expert at a time.

Coverage: "n of m layers, r of s rows" counts all routers and experts that the files hold, and those that the names of
  shards (…-00002-of-00003), the index or the config.json beside promise. What is not looked at, or not there, is named,
  and so is what --layers and --sample leave out, which --require-angle then does not ask for.

JSON: {{"version", "tolerance", "max_steps", "exact", "coverage": {{…}}, "layers": […], "unmatched": […]}}, and with --gpu
  "device", its name. "coverage" has
  "layers", "layers_looked_at", "layers_certified", the same of "rows", "complete" and "summary", a sentence; certified
  means to the angle of --require-angle or, without it, to any. A layer has "file", "name" (the prefix that its router
  and experts share), "family", "router", "gate" (names of tensors), "router_dtype", "dtype", "router_layout",
  "layout", "layout_known_by", "router_rows", "num_experts", "ffn_dim" (null where experts differ, who then have one
  each), "hidden_dim" and "experts"; "first_expert" where names number the first not 0, and with --of "of" and "matrices",
  what is summed. What is "unmatched" has "file", "name", "reason", "what" (not looked at, missing,
  set aside), and the "layers" and "rows" that the answer lacks for it. An expert has "expert", "sigma1", "sigma2", "sigma2_from",
  "cosine_stored", "cosine_step", "lambda_stored", "lambda_step", "rayleigh", "residual", "angle_bound", "certificate"
  (rigorous, probabilistic, heuristic, none), "steps" and "status" (ok, zero_row, zero_image, non_finite). Angles are in
  radians. What is not known is null: steps beyond --max-steps, sigma2 without an SVD ("sigma2_from" says what it is from), the numbers of degenerate rows.
  lambda is relative to sigma1.

Lines: the first line of --lines is a header, what the numbers depend on; then an expert a line, in the order in which
  they finish, with the members that "experts" has in the JSON, "layer", its place among the layers of the header,
  "angle", and "trace", rows of step, rho, residual, angle. To resume, the header must be that of the new run.

mpirun -n N --bind-to none verify_checkpoint ...  spreads the experts over N processes, where this was built with MPI.
  With --gpu process k takes GPU k, or k modulo how many there are.

Exit status: 0 done; 1 done, but with --require-angle a row could not be certified, or something was not looked at or is
  missing; 2 bad input or usage, or no layer that can be read, in which case neither JSON nor trace nor page is written.
  Of several checkpoints those that can be read are done, and all is written; the others are named, and the status is 2.

Examples:
  verify_checkpoint                                       the two small models that come with the project
  verify_checkpoint model-folder --summary --json out.json
  verify_checkpoint model-folder --report pages           then open pages/index.html
  verify_checkpoint model-folder --json out.json --lines run.jsonl --resume    again after it was killed
  verify_checkpoint model.safetensors --no-svd --require-angle 0.01
  verify_checkpoint model-folder --gpu --json out.json --lines run.jsonl --resume
  verify_checkpoint m.safetensors --router 'blk.{{layer}}.route' --gate 'blk.{{layer}}.ffn.{{expert}}.gate' --layout nfd
  verify_checkpoint recondition model-folder new-folder --steps 20
  verify_checkpoint compare model-folder model-q4_k.gguf
)",
                     describe_layouts(), describe_families());
}

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

void require(bool condition, const std::string& message) {
  if (!condition) {
    throw input_error(message);
  }
}

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

std::string describe_layouts() {
  std::string all =
      "\nLayouts (N experts, F neurons each, D hidden dimensions; the tensor of one expert lacks N):\n";
  for (const auto& layout : mpi_router::gate_layout_table) {
    all += fmt::format("  {:<18}  {}\n", layout.name, layout.meaning);
  }
  return all;
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
  app.footer(footer);
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
  require(a.layers.empty() || numbers_of_list(a.layers).has_value(),
          fmt::format("--layers takes numbers, 3,17-20, not '{}'", a.layers));
  require(!a.sample || *a.sample >= 1, "--sample must be at least 1");
  require(a.threads >= 0 && a.threads <= 4096, "--threads must lie between 1 and 4096");
  require(a.router.empty() == a.gate.empty(), "--router and --gate go together");
  require(a.layout.empty() || mpi_router::gate_layout_from_string(a.layout).has_value(),
          fmt::format("there is no layout '{}'; --help lists them", a.layout));
  require(mpi_router::part_weights_from_string(a.of).has_value(),
          fmt::format("--of takes gate, up and down, each once, with + between them, not '{}'", a.of));
  require((a.router.find("{layer}") == std::string::npos) == (a.gate.find("{layer}") == std::string::npos),
          "{layer} must stand in both --router and --gate, or in neither");
  require(a.router.find("{expert}") == std::string::npos,
          "{expert} belongs into --gate: a router has all experts' rows");
}

selection selected(const arguments& a) {
  return {a.layers.empty() ? std::vector<index_t>() : *numbers_of_list(a.layers), a.sample};
}

mpi_router::moe_search naming(const arguments& a) {
  mpi_router::moe_search wanted;
  if (!a.router.empty()) {
    wanted.patterns = mpi_router::name_patterns{a.router, a.gate};
  }
  wanted.layout = mpi_router::gate_layout_from_string(a.layout);
  using mpi_router::router_layout;
  if (!a.layout_of_router.empty()) {
    wanted.layout_of_router = a.layout_of_router == "dn" ? router_layout::dn : router_layout::nd;
  }
  wanted.of = *mpi_router::part_weights_from_string(a.of);
  wanted.layout_of_down = mpi_router::gate_layout_from_string(a.layout_of_down);
  wanted.words = {.layout = "--layout",
                  .layout_of_router = "--router-layout",
                  .layout_of_down = "--down-layout",
                  .of = "--of",
                  .patterns = "--router and --gate",
                  .patterns_and_layout = "--router, --gate and --layout"};
  return wanted;
}

}  // namespace verify
