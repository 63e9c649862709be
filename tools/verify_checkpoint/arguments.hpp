// The command line of verify_checkpoint: its options, their help, and what is wrong with them.
#pragma once

#include "recondition.hpp"
#include "selection.hpp"

#include <mpi_router/io/moe/search_options.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace verify {

/// Bad input or usage: exit status 2 and this one line.
class input_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws input_error unless `condition` holds.
void require(bool condition, const std::string& message);

struct arguments {
  std::vector<std::string> inputs;
  std::string router;
  std::string gate;
  std::string layout;
  std::string layout_of_router;
  std::string of = "gate";     ///< "gate+up+down"
  std::string layout_of_down;  ///< nfd or ndf
  std::string json;
  std::string trace;
  std::string report;
  std::string lines;
  bool resume = false;
  std::string command;             ///< all of it, for the report
  std::vector<std::string> again;  ///< words_again() of it
  double tolerance = 1e-6;
  index_t max_steps = 10000;
  std::optional<double> require_angle;
  bool no_svd = false;
  bool svd = false;
  bool list = false;
  std::string layers;  ///< "3,17-20"
  std::optional<index_t> sample;
  int threads = 0;  ///< 0: as many as there are
  bool gpu = false;
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

/// Adds all options, which write to `a`, to the program and to its subcommand `rewrite`.
void define(CLI::App& app, CLI::App& rewrite, arguments& a);

/// The options of whatever looks at experts: where numbers go, and which.
void add_common_options(CLI::App& app, arguments& a);

/// The options of whatever searches for layers: --router, --gate, --layout, --router-layout.
void add_naming_options(CLI::App& app, arguments& a);

/// Breaks the help texts of the options into lines that fit beside their names, and refuses empty words.
void finish_options(CLI::App& app);

/// What --layout may be, for the end of a help text.
[[nodiscard]] std::string describe_layouts();

/// The words, after the name of the program, of a command line that asks for the same, except for --list,
/// the files to write, and the names and layouts of tensors. An empty word stands for the checkpoint.
[[nodiscard]] std::vector<std::string> words_again(const CLI::App& app);

/// Throws input_error for what no option can mean.
void check(const arguments& a);

/// The layers and experts to look at.
[[nodiscard]] selection selected(const arguments& a);

/// The tensors to look for.
[[nodiscard]] mpi_router::moe_search naming(const arguments& a);

}  // namespace verify
