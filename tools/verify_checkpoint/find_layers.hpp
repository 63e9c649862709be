// The layers of a checkpoint that a run is about.
#pragma once

#include "arguments.hpp"

#include <mpi_router/io/checkpoint.hpp>

#include <functional>
#include <string>
#include <vector>

namespace verify {

/// The layers of a checkpoint; throws input_error where there are none, with all that nearly was one.
[[nodiscard]] moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a);

/// The command lines that settle what is in doubt.
using command_maker = std::function<std::vector<std::string>(const omission&)>;

/// The same, with command lines that are not those of `a` for this checkpoint alone.
[[nodiscard]] moe_layers find_some(const mpi_router::checkpoint& model, const arguments& a,
                                   const command_maker& commands);

}  // namespace verify
