// What a person looks at: one page with figures and sortable tables, which needs no network.
#pragma once

#include "report.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace verify {

struct html_report_options {
  analysis_options analysis;
  std::string command;  ///< the command that makes the page, as a shell reads it
};

/// Writes folder/index.html, with all that it shows inside, and beside it, in folder/data, the numbers of the
/// figures (CSV), gnuplot's scripts and the figures (SVG). The folder is made where it is not there. Without
/// gnuplot the page has the tables and says what is missing. Returns a line for the user, empty where all
/// went well. Throws std::runtime_error where something cannot be written.
std::string write_html_report(const std::filesystem::path& folder,
                              const std::vector<checkpoint_report>& checkpoints,
                              const html_report_options& options);

/// The command line as a shell reads it: arguments are quoted where they must be.
[[nodiscard]] std::string quoted_command(int argc, const char* const* argv);

}  // namespace verify
