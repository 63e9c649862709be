// The page on two checkpoints: figures and sortable tables.
#pragma once

#include "compare_results.hpp"

#include <mpi_router/io/atomic_file.hpp>

#include <filesystem>
#include <string>

namespace verify {

/// Writes it as write_report() writes the page on one. Returns a line for the user, empty where all went
/// well. Throws std::runtime_error where something cannot be written.
std::string write_comparison(mpi_router::atomic_file& page, const std::filesystem::path& data,
                             const comparison_result& result, const std::string& command);

}  // namespace verify
