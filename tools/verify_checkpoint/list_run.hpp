// --list: what the checkpoints hold, without a look at a weight.
#pragma once

#include "arguments.hpp"
#include "ranks.hpp"

namespace verify {

/// Tells what is there and how it would be read. Returns the exit status.
[[nodiscard]] int run_list(const arguments& a, const ranks& all);

}  // namespace verify
