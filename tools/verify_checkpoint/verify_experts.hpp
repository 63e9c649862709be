// The main work: all experts that were asked for, by all ranks, with the files that are written meanwhile.
#pragma once

#include "analyse.hpp"
#include "arguments.hpp"
#include "outputs.hpp"

#include <deque>
#include <vector>

namespace verify {

/// Opens the outputs, reads the file of --lines where there is one to resume, and fills the results of
/// `checkpoints`. On the first rank alone: the others have a share of the work, and no outputs. Throws on all
/// ranks where one of them cannot begin, or would do other work than the first.
[[nodiscard]] outputs verify_experts(const arguments& a, const std::deque<mpi_router::checkpoint>& models,
                                     const analysis_options& options,
                                     std::vector<checkpoint_result>& checkpoints, ranks& all);

}  // namespace verify
