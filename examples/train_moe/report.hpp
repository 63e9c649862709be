// What comes out: a table with the spread over seeds, traces as CSV, checkpoints as safetensors.
#pragma once

#include "experiment.hpp"

#include <cstdio>

namespace train {

/// The table of the last records, one line a router: mean ± standard deviation over seeds.
void print_summary(std::FILE* out, const std::vector<run_result>& runs, index_t experts, index_t top_k);

/// One line a record of every run. Throws std::runtime_error if it cannot be written.
void write_traces(const std::filesystem::path& path, const std::vector<run_result>& runs);

/// All parameters in float, with the settings as metadata: verify_checkpoint reads its routers and gate
/// matrices.
void write_checkpoint(const std::filesystem::path& path, const run_result& run, const settings& s);

}  // namespace train
