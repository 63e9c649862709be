// What the names of the files and a config.json promise, and the files do not hold.
#pragma once

#include "remainder.hpp"

namespace verify {

/// Shards that the names of others promise, and files that the index leaves out.
void note_missing_files(const mpi_router::checkpoint& model, found_parts& found);

/// Layers and experts that config.json has and the files have not.
void note_config(const model_config& config, found_parts& found);

/// Rows of routers that have no expert.
void note_idle_rows(const std::optional<model_config>& config, found_parts& found);

}  // namespace verify
