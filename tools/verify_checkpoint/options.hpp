// The options of verify_checkpoint, and the words that they are given in.
#pragma once

#include "arguments.hpp"

#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace verify {

/// Adds all options, which write to `a`, to the program and to its subcommand `rewrite`.
void define(CLI::App& app, CLI::App& rewrite, arguments& a);

/// The options of whatever looks at experts: where numbers go, and which.
void add_common_options(CLI::App& app, arguments& a);

/// The options of whatever searches for layers: --router, --gate, --layout, --router-layout.
void add_naming_options(CLI::App& app, arguments& a);

/// Breaks the help texts of the options into lines that fit beside their names, and refuses empty words.
void finish_options(CLI::App& app);

/// The words, after the name of the program, of a command line that asks for the same, except for --list,
/// the files to write, and the names and layouts of tensors. An empty word stands for the checkpoint.
[[nodiscard]] std::vector<std::string> words_again(const CLI::App& app);

}  // namespace verify
