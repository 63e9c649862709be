// The figures of the page on two checkpoints.
#pragma once

#include "compare_results.hpp"
#include "report_page.hpp"

#include <filesystem>
#include <vector>

namespace verify {

/// What the page calls its layers: those that could be compared.
[[nodiscard]] std::vector<index_t> numbers_of(const std::vector<const layer_comparison*>& layers);

/// Their numbers, scripts and drawings go to `folder`.
[[nodiscard]] report_figures draw_comparison(const std::filesystem::path& folder,
                                             const std::vector<const layer_comparison*>& layers,
                                             const comparison_result& result);

}  // namespace verify
