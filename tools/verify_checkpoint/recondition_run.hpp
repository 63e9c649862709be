// The subcommand recondition: what it does, and what it says of it.
#pragma once

#include "arguments.hpp"

namespace verify {

/// Writes the checkpoint, and tells. Returns the exit status; throws what reading and writing throw.
[[nodiscard]] int run_recondition(arguments a);

}  // namespace verify
