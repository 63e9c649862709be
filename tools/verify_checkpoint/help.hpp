// The texts of --help that are no option's own.
#pragma once

#include <string>

namespace verify {

/// Breaks a help text into lines that fit beside the option names.
[[nodiscard]] std::string wrapped(const std::string& text);

/// What --layout may be, for the end of a help text.
[[nodiscard]] std::string describe_layouts();

/// The end of the help of the program.
[[nodiscard]] std::string help_footer();

/// The end of the help of compare.
[[nodiscard]] std::string compare_footer();

}  // namespace verify
