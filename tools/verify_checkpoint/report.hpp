// What a person looks at: one page with figures and sortable tables, which needs no network.
#pragma once

#include "analyse.hpp"

#include <mpi_router/io/atomic_file.hpp>

#include <filesystem>
#include <string>
#include <vector>

namespace verify {

struct report_options {
  analysis_options analysis;
  std::string command;  ///< the command that makes the page, as a shell reads it
};

/// Writes the page, with all that it shows inside, to `page`, which the caller commits, and into the folder
/// `data`, which must be there, the numbers of the figures (CSV), gnuplot's scripts and the figures (SVG).
/// Without gnuplot the page has the tables and says what is missing. Returns a line for the user, empty where
/// all went well. Throws std::runtime_error where something cannot be written.
std::string write_report(mpi_router::atomic_file& page, const std::filesystem::path& data,
                         const std::vector<checkpoint_result>& checkpoints, const report_options& options);

/// The command line as a shell reads it: arguments are quoted where they must be.
[[nodiscard]] std::string quoted_command(int argc, const char* const* argv);

}  // namespace verify
