// The figures of the page: their numbers, gnuplot's scripts, and the words beside them.
#pragma once

#include "analyse.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace verify {

struct report_figure {
  std::string title;
  std::string caption;
  std::string svg;  ///< empty where it was not drawn
};

struct report_figures {
  std::vector<report_figure> figures;
  std::string problem;  ///< why some are not drawn; empty where all are
};

/// The figures of one checkpoint; `prefix` begins the names of their files in `folder`.
[[nodiscard]] report_figures draw_figures(const std::filesystem::path& folder, const std::string& prefix,
                                          const checkpoint_result& checkpoint,
                                          const analysis_options& options);

}  // namespace verify
