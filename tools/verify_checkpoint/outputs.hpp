// The files that a run writes: kept apart from its inputs and from each other, opened before the work and put
// in place after it.
#pragma once

#include <mpi_router/io/atomic_file.hpp>
#include <mpi_router/io/checkpoint.hpp>

#include <deque>
#include <filesystem>
#include <memory>
#include <vector>

namespace verify {

/// Where the user wants what; empty where it is not wanted.
struct output_paths {
  std::filesystem::path json;
  std::filesystem::path trace;
  std::filesystem::path report;  ///< a folder
  std::filesystem::path lines;   ///< not opened here, but kept apart like the others
};

/// The paths of all files of a checkpoint, and what it was opened from.
[[nodiscard]] std::vector<std::filesystem::path> files_of(const mpi_router::checkpoint& model);

/// Null where it is not wanted. Without commit() none of these files appears.
struct outputs {
  std::unique_ptr<mpi_router::atomic_file> json;
  std::unique_ptr<mpi_router::atomic_file> trace;
  std::unique_ptr<mpi_router::atomic_file> page;  ///< of the report, whose folder there is from now on

  void commit() const;
};

/// Throws file_error, so that it is known before the work, if an output cannot be written, or is an input or
/// another output, by whatever name.
[[nodiscard]] outputs open_outputs(const output_paths& paths,
                                   const std::deque<mpi_router::checkpoint>& models);

}  // namespace verify
