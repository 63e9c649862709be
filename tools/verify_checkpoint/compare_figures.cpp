#include "compare_figures.hpp"

#include "layer_numbers.hpp"
#include "report_artist.hpp"
#include "report_heat_map.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace verify {

namespace {

using compared_layers = std::vector<const layer_comparison*>;

/// Columns of the numbers of the figures, from 1 as gnuplot counts.
enum expert_column : int {
  row_cosine = 3,
  direction_cosine,
  place,
  partner,
  change,
  sigma_1,
  sigma_2,
  angle,
  wedin
};

double in_degrees(double radians) { return radians * degrees_per_radian; }

number_rows rows_of(const compared_layers& layers) {
  const auto numbers = numbers_of(layers);
  number_rows rows;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    for (const auto& e : layers[l]->pairs) {
      rows.push_back({static_cast<double>(numbers[l]), static_cast<double>(e.a.expert), e.row.cosine,
                      e.direction.cosine, static_cast<double>(l), static_cast<double>(e.b.expert),
                      relative_change(e), moved_by(e.a.sigma_1, e.b.sigma_1, e.a.sigma_1),
                      moved_by(e.a.sigma_2, e.b.sigma_2, e.a.sigma_1), in_degrees(e.direction.angle),
                      is_proven(e.wedin) ? in_degrees(e.wedin.angle) : unknown});
    }
  }
  return rows;
}

/// Of the values of a column, without the unknown ones and, where asked, those that a logarithm has not.
column range_of(const number_rows& rows, int which, bool positive = false) {
  return summarise(rows, [&](const auto& row) {
    const double x = row[static_cast<std::size_t>(which - 1)];
    return positive && !(x > 0) ? unknown : x;
  });
}

void draw_cosines(artist& draw, const compared_layers& layers, const number_rows& rows) {
  std::size_t most = 0;
  for (const auto* layer : layers) {
    most = std::max(most, static_cast<std::size_t>(layer->a->num_experts));
  }
  for (const auto& [name, which, what] : {std::tuple{"rows", +row_cosine, "router rows"},
                                          {"directions", +direction_cosine, "principal directions"}}) {
    const double low = range_of(rows, which).low;
    draw_heat_map(
        draw,
        {.name = name,
         .title = fmt::format("Cosine between the {}", what),
         .caption = fmt::format("Each cell is one expert of A and its counterpart in B: 1 where "
                                "their {} point the same way. The scale begins at the least cosine, "
                                "or at 0. Empty cells have no counterpart, or no direction.",
                                what),
         .data = "experts",
         .column = which,
         .low = std::isfinite(low) ? std::clamp(low, 0.0, 0.999999) : 0.0},
        numbers_of(layers), most);
  }
}

struct dots {
  int column;
  std::string_view title;
  std::string_view colour;
};

/// Measured numbers over what bounds them, both on logarithmic axes: all are below the diagonal.
void draw_bounded(artist& draw, const report_figure& about, const std::string& name, const std::string& axes,
                  const number_rows& rows, int bound, const std::vector<dots>& measured,
                  const char* nothing) {
  const auto x = range_of(rows, bound, true);
  if (!std::isfinite(x.low)) {
    draw.leave_out(about.title, nothing);
    return;
  }
  const double floor = x.low / 1000;
  std::string plots;
  for (const auto& [column, title, colour] : measured) {
    plots += fmt::format(
        "\"{0}\" using {1}:(${2} > {3:.6g} ? ${2} : {3:.6g}) with points pt 7 ps 0.5 lc rgb "
        "\"{4}\" title \"{5}\", ",
        draw.data("experts"), bound, column, floor, colour, title);
  }
  draw.draw(name, 380, about.title, about.caption,
            fmt::format(R"gp({0}
set logscale xy
set format xy "10^{{%T}}"
set xrange [{1:.6g}:{2:.6g}]
set yrange [{3:.6g}:{2:.6g}]
plot {4}x with lines dt 2 lw 2 lc rgb "{5}" title "the bound"
)gp",
                        axes, x.low / 1.5, x.high * 1.5, floor / 1.5, plots, figures::palette::grey));
}

/// Shares of choices, in percent.
number_rows flips_of(const compared_layers& layers) {
  const auto numbers = numbers_of(layers);
  number_rows shares;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const auto& layer = *layers[l];
    shares.push_back({static_cast<double>(l), static_cast<double>(numbers[l]), 100 * layer.stored.flipped,
                      100 * layer.step.flipped, 100 * layer.stored.lost});
  }
  return shares;
}

void draw_flips(artist& draw, const compared_layers& layers, const comparison_result& result) {
  const std::string title = "Choices that flip";
  const auto shares = flips_of(layers);
  draw.csv("layers", "place,layer,flips_stored_percent,flips_step_percent,lost_percent", shares);
  const double most = std::max(range_of(shares, 3).high, range_of(shares, 4).high);
  if (!std::isfinite(most)) {
    const bool of_layers = result.top_k && !layers.empty();
    draw.leave_out(title,
                   "Left out: " + (of_layers ? layers.front()->no_share : describe_flips(result)) + ".");
    return;
  }
  draw.draw("flips", 340, title,
            fmt::format("Of the choices of A those that B does not make: {}. By x · r alone, without biases "
                        "and groups.",
                        describe_flips(result)),
            fmt::format(R"gp(set xlabel "layer"
set ylabel "choices of A that flip (%)"
set xrange [-0.6:{0}]
set yrange [0:{5:.6g}]
set xtics ({1})
set boxwidth 0.35
plot "{2}" using ($1-0.2):3 with boxes fs solid 0.9 noborder lc rgb "{3}" title "stored rows", \
  "" using ($1+0.2):4 with boxes fs solid 0.9 noborder lc rgb "{4}" title "after one step"
)gp",
                        static_cast<double>(layers.size()) - 0.4, layer_tics(numbers_of(layers)),
                        draw.data("layers"), figures::palette::orange, figures::palette::blue,
                        std::max(0.1, 1.05 * most)));
}

}  // namespace

std::vector<index_t> numbers_of(const compared_layers& layers) {
  std::vector<const moe_layer*> of_a;
  for (const auto* layer : layers) {
    of_a.push_back(layer->a);
  }
  return layer_numbers(of_a);
}

report_figures draw_comparison(const std::filesystem::path& folder, const compared_layers& layers,
                               const comparison_result& result) {
  artist draw(folder, "comparison-");
  const auto rows = rows_of(layers);
  draw.csv("experts",
           "layer,expert,row_cosine,direction_cosine,place,partner,change_over_sigma_1,sigma_1_moved,"
           "sigma_2_moved_over_sigma_1,angle_deg,wedin_deg",
           rows);
  draw_cosines(draw, layers, rows);
  draw_bounded(
      draw,
      {"How far σ₁ and σ₂ moved, and the bound ‖ΔA‖",
       "No singular value moves by more than ‖ΔA‖, the largest singular value of B − A (Weyl). All over "
       "σ₁ of A. Dots at the lower edge moved less than that, or not at all.",
       {}},
      "sigma", "set xlabel \"‖ΔA‖ / σ₁\"\nset ylabel \"moved, / σ₁\"", rows, change,
      {{sigma_1, "σ₁", figures::palette::orange}, {sigma_2, "σ₂", figures::palette::blue}},
      "Left out: no matrix changed, or none has as many neurons in both.");
  draw_bounded(
      draw,
      {"Angle of the principal directions, and what ‖ΔA‖ allows",
       "Where the certificates prove a gap, the direction turns by no more than the dashed line says "
       "(Wedin). Dots at the lower edge turned less than that, or not at all.",
       {}},
      "angle", "set xlabel \"allowed (degrees)\"\nset ylabel \"angle (degrees)\"", rows, wedin,
      {{angle, "v₁", figures::palette::purple}}, "Left out: no matrix changed, or no gap is proven.");
  draw_flips(draw, layers, result);
  return std::move(draw).result();
}

}  // namespace verify
