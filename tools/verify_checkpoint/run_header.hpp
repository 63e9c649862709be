// What a run reads and does, as far as its numbers depend on it: two runs of one header find the same.
#pragma once

#include "analyse.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <nlohmann/json.hpp>

#include <deque>
#include <optional>
#include <string>
#include <vector>

namespace verify {

/// The version, the kernels, the options that decide numbers, the files with their sizes and times, and each
/// layer as it is read. `checkpoints` need no results.
[[nodiscard]] nlohmann::ordered_json header_of(const std::vector<checkpoint_result>& checkpoints,
                                               const std::deque<mpi_router::checkpoint>& models,
                                               const analysis_options& options,
                                               std::optional<index_t> sample);

/// The header without the times of the files: copies of a model on several hosts differ in them.
[[nodiscard]] nlohmann::ordered_json without_times(nlohmann::ordered_json header);

/// The first difference, such as "tolerance was 1e-06 and is 1e-05"; empty where there is none.
[[nodiscard]] std::string difference(const nlohmann::ordered_json& was, const nlohmann::ordered_json& is);

}  // namespace verify
