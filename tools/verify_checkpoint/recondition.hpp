// Writes a checkpoint again with each router row some power steps further, and nothing else changed.
#pragma once

#include <mpi_router/io/moe/layer.hpp>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

MPIROUTER_BEGIN
class checkpoint;
MPIROUTER_END

namespace verify {

using mpi_router::index_t;
using mpi_router::moe_layer;

struct recondition_options {
  index_t steps = 1;
  enum class length { keep, radius, c_prime } rule = length::keep;
  double value = 0;  ///< the radius C, or C′ of C = C′/√N
};

struct recondition_result {
  index_t rows = 0;
  std::vector<std::string>
      kept;  ///< rows without a step, which stay as they were: "NAME, expert E: zero_row"
};

/// Copies `model` to `out`, byte for byte except for the rows of the routers in `layers`. `out` is a file if
/// the model is one, and else a folder, made here: the shards keep their names, and the index is copied.
/// Throws file_error, and leaves nothing under the name `out`, if it is part of the input by whatever name,
/// is a folder that exists, or cannot be written.
recondition_result recondition(const mpi_router::checkpoint& model, const std::vector<moe_layer>& layers,
                               const std::filesystem::path& out, const recondition_options& options,
                               const std::function<void(index_t, index_t)>& progress);

}  // namespace verify
