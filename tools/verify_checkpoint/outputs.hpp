// The files that a run writes: kept apart from its inputs and from each other, opened before the work and put
// in place after it.
#pragma once

#include <mpi_router/io/atomic_file.hpp>
#include <mpi_router/io/checkpoint.hpp>

#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace verify {

/// Where the user wants what; empty where it is not wanted.
struct output_paths {
  std::filesystem::path json;
  std::filesystem::path trace;
  std::filesystem::path report;  ///< a folder, or FILE.html
  std::filesystem::path lines;   ///< not opened here, but kept apart like the others
};

/// The page of a report and the folder of the numbers, scripts and figures behind it: index.html and data in
/// a folder; FILE.html, and FILE-data beside it.
struct report_places {
  std::filesystem::path page;
  std::filesystem::path data;
};
[[nodiscard]] report_places places_of(const std::filesystem::path& report);

/// The paths of all files of a checkpoint, and what it was opened from.
[[nodiscard]] std::vector<std::filesystem::path> files_of(const mpi_router::checkpoint& model);

/// Null where it is not wanted. Without commit() none of these files appears.
struct outputs {
  std::unique_ptr<mpi_router::atomic_file> json;
  std::unique_ptr<mpi_router::atomic_file> trace;
  std::unique_ptr<mpi_router::atomic_file> page;  ///< of the report, whose folders there are from now on

  void commit() const;
};

/// Throws file_error, so that it is known before the work, if an output cannot be written, or is another
/// output or an input, by whatever name: a file of a model, or one of `others`.
[[nodiscard]] outputs open_outputs(const output_paths& paths,
                                   const std::deque<mpi_router::checkpoint>& models,
                                   const std::vector<std::filesystem::path>& others = {});

/// Says on the standard error where the page is, and what is wrong with its figures.
void tell_report(const outputs& files, const std::string& report, const std::string& problem);

}  // namespace verify
