// The figures that follow a few experts: their course under the iteration, and their singular values.
#pragma once

#include "analyse.hpp"
#include "report_artist.hpp"

namespace verify {

/// Of four experts at most: the farthest row, the nearest one, and two between.
void draw_close_looks(artist& draw, const checkpoint_result& checkpoint, const analysis_options& options);

}  // namespace verify
