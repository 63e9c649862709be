// A figure with a cell for each expert of each layer.
#pragma once

#include "report_artist.hpp"
#include "results.hpp"

#include <string>
#include <vector>

namespace verify {

/// One such figure. Its data has the expert in the second column and the place of the layer, 0, 1, 2, …, in
/// the fifth.
struct heat_map {
  std::string name;
  std::string title;
  std::string caption;
  std::string data;  ///< the part of the data's name: "cosine"
  int column = 3;    ///< of the values, cosines
  std::string values = "|cos| (dimensionless)";
  double low = 0;  ///< the value of the darkest colour, below 1, which is that of the brightest
};

/// Where an axis has the numbers of the layers, as gnuplot takes it: eight at most.
[[nodiscard]] std::string layer_tics(const std::vector<index_t>& layers);

/// `layers` are the numbers of the layers, in order; `experts` how many a layer has at most.
void draw_heat_map(artist& draw, const heat_map& map, const std::vector<index_t>& layers,
                   std::size_t experts);

}  // namespace verify
