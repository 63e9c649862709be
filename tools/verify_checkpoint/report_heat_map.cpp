#include "report_heat_map.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace verify {

namespace {
std::size_t step_of(std::size_t count) { return std::max<std::size_t>(1, (count + 7) / 8); }
}  // namespace

std::string layer_tics(const std::vector<index_t>& layers) {
  std::string tics;
  for (std::size_t l = 0; l < layers.size(); l += step_of(layers.size())) {
    tics += fmt::format("{}\"{}\" {}", l > 0 ? ", " : "", layers[l], l);
  }
  return tics;
}

void draw_heat_map(artist& draw, const heat_map& map, const std::vector<index_t>& layers,
                   std::size_t experts) {
  draw.draw(map.name, 340, map.title, map.caption,
            fmt::format(R"gp(set xlabel "expert"
set ylabel "layer"
set cblabel "{7}"
set xrange [-0.5:{0}]
set yrange [{1}:-0.5]
set xtics {2}
set ytics ({3})
unset grid
set cbrange [{6:.12g}:1]
set palette defined (0 "#440154", 0.25 "#3b528b", 0.5 "#21918c", 0.75 "#5ec962", 1 "#fde725")
plot "{4}" using 2:5:(0.5):(0.5):{5} with boxxyerror fs solid noborder lc palette notitle
)gp",
                        static_cast<double>(experts) - 0.5, static_cast<double>(layers.size()) - 0.5,
                        step_of(experts), layer_tics(layers), draw.data(map.data), map.column, map.low,
                        map.values));
}

}  // namespace verify
