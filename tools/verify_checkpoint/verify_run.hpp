// The verification itself, from the files that it reads to those that it writes.
#pragma once

#include "arguments.hpp"
#include "ranks.hpp"

namespace verify {

/// Measures the experts that were asked for, and tells. Returns the exit status; throws input_error, and
/// what reading and writing throw.
[[nodiscard]] int run_verify(const arguments& a, ranks& all);

}  // namespace verify
