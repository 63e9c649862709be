// The subcommand compare: its options, and what it does.
#pragma once

#include "arguments.hpp"

#include <optional>
#include <string>

namespace CLI {
class App;
}

namespace verify {

struct compare_arguments {
  std::string a;
  std::string b;
  std::string tokens;
  std::optional<index_t> top_k;
  std::optional<double> require_cosine;
};

/// Adds its options to the subcommand: those that it shares with the program write to `a`.
void define_compare(CLI::App& app, arguments& a, compare_arguments& c);

/// Compares, and tells. Returns the exit status; throws input_error, and what reading throws.
[[nodiscard]] int run_compare(const arguments& a, const compare_arguments& c);

}  // namespace verify
