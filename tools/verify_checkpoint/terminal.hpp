// The standard output, whether it shows colours, and how long a line of an error may be.
#pragma once

#include "arguments.hpp"
#include "ranks.hpp"

#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

namespace verify {

inline constexpr std::size_t longest_line = 1U << 16U;  ///< names in it come from files

/// What --color asks for, and what the terminal and NO_COLOR say.
[[nodiscard]] inline bool wants_colour(const std::string& choice) {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool plain = (no_colour != nullptr && *no_colour != '\0') ||
                     (terminal != nullptr && std::string_view(terminal) == "dumb");
  return choice == "always" ||
         (choice == "auto" && !plain && !ranks::started_by_mpirun() && ::isatty(STDOUT_FILENO) != 0);
}

/// Throws input_error where what was printed does not arrive.
inline void flush_output() { require(std::fflush(stdout) == 0, "the standard output cannot be written"); }

}  // namespace verify
