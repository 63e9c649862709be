// The layers of a checkpoint that a run is about.
#pragma once

#include "arguments.hpp"

#include <mpi_router/io/checkpoint.hpp>

namespace verify {

/// The layers of a checkpoint; throws input_error where there are none, with all that nearly was one.
[[nodiscard]] moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a);

}  // namespace verify
