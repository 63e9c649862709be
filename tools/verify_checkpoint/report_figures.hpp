// The figures of the page: their numbers, gnuplot's scripts, and the words beside them.
#pragma once

#include "analyse.hpp"
#include "report_page.hpp"

#include <filesystem>
#include <string>

namespace verify {

/// The figures of one checkpoint; `prefix` begins the names of their files in `folder`.
[[nodiscard]] report_figures draw_figures(const std::filesystem::path& folder, const std::string& prefix,
                                          const checkpoint_result& checkpoint,
                                          const analysis_options& options);

}  // namespace verify
