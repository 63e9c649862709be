#include "report_figures.hpp"

#include "layer_numbers.hpp"
#include "report_artist.hpp"
#include "report_close_looks.hpp"
#include "report_heat_map.hpp"

#include <mpi_router/verify/null_model.hpp>

#include <algorithm>
#include <array>
#include <set>

namespace verify {

namespace {

using mpi_router::status;

void draw_heat_maps(artist& draw, const checkpoint_result& checkpoint) {
  const auto numbers = layer_numbers(checkpoint);
  number_rows cells;
  std::size_t most = 0;
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    for (const auto& e : checkpoint.layers[l].experts) {
      cells.push_back({static_cast<double>(numbers[l]), static_cast<double>(e.expert), e.cosine_stored,
                       e.cosine_step, static_cast<double>(l)});
    }
    most = std::max(most, checkpoint.layers[l].experts.size());
  }
  draw.csv("cosine", "layer,expert,cosine_stored,cosine_step,place", cells);
  for (const auto& [name, column, when] :
       {std::tuple{"before", 3, "as stored"}, {"after", 4, "after one step"}}) {
    draw_heat_map(
        draw,
        {.name = name,
         .title = fmt::format("Cosine to the principal direction, {}", when),
         .caption = fmt::format("Each cell is one expert: 1 where its router row points along the principal "
                                "right singular direction of its {}, 0 where it is orthogonal to it. Empty "
                                "cells have no direction.",
                                measured_of(checkpoint)),
         .data = "cosine",
         .column = column},
        numbers, most);
  }
}

void draw_lambda(artist& draw, const checkpoint_result& checkpoint) {
  const auto numbers = layer_numbers(checkpoint);
  number_rows points;
  std::set<std::pair<double, double>> nulls;
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    const auto& layer = *checkpoint.layers[l].layer;
    const auto null = mpi_router::null_model(layer.ffn_dim, layer.hidden_dim);
    nulls.emplace(null.stored, null.one_step);
    for (const auto& e : checkpoint.layers[l].experts) {
      points.push_back({static_cast<double>(numbers[l]), static_cast<double>(e.expert), e.cosine_stored,
                        e.lambda_stored, e.cosine_step, e.lambda_step, null.stored, null.one_step});
    }
  }
  draw.csv("lambda",
           "layer,expert,cosine_stored,lambda_stored,cosine_step,lambda_step,null_stored,null_one_step",
           points);
  std::string lines;
  bool titled = false;
  for (const auto& [stored, one_step] : nulls) {
    lines +=
        fmt::format(", {} with lines dt 2 lw 2 lc rgb \"{}\" {}, {} with lines dt 2 lw 2 lc rgb \"{}\" {}",
                    stored, figures::palette::orange, titled ? "notitle" : "title \"its null\"", one_step,
                    figures::palette::blue, titled ? "notitle" : "title \"its null after one step\"");
    titled = true;
  }
  draw.draw(
      "lambda", 380, "λ against its null",
      "λ says how much of the strongest response a row gets; the dashed lines are what random rows of random "
      "matrices get. Points far to the left but high have a λ that looks good and a direction that is wrong: "
      "λ does not show the angle.",
      fmt::format(R"gp(set xlabel "|cos| to the principal direction (dimensionless)"
set ylabel "λ = ‖rW‖ / (‖r‖ σ₁) (dimensionless)"
set xrange [0:1]
set yrange [0:1.02]
plot "{0}" using 3:4 with points pt 5 ps {3} lc rgb "{1}" title "stored rows", \
  "" using 5:6 with points pt 7 ps {3} lc rgb "{2}" title "after one step"{4}
)gp",
                  draw.data("lambda"), figures::palette::orange, figures::palette::blue,
                  points.size() > 1000 ? 0.25 : 0.6, lines));
}

void draw_certificates(artist& draw, const checkpoint_result& checkpoint) {
  constexpr std::array<std::string_view, 4> labels{"rigorous", "probabilistic", "heuristic", "none"};
  std::array<double, 5> count{};
  for (const auto& layer : checkpoint.layers) {
    for (const auto& e : layer.experts) {
      const auto label = std::find(labels.begin(), labels.end(), e.certificate) - labels.begin();
      ++count[e.state != status::ok ? 4 : static_cast<std::size_t>(label)];
    }
  }
  number_rows table;
  for (std::size_t i = 0; i < count.size(); ++i) {
    table.push_back({static_cast<double>(i), count[i]});
  }
  draw.csv("certificates", "label,rows", table);
  draw.draw("certificates", 340, "Certificates by label",
            "Rigorous: proven, rounding allowed for. Probabilistic: false with a chance of at most 1e-6. "
            "Heuristic "
            "and none claim nothing that can be relied on. Degenerate rows or matrices have no direction.",
            fmt::format(R"gp(set xlabel "label of the certificate"
set ylabel "router rows (count)"
set xrange [-0.6:4.6]
set yrange [0:*]
set xtics ("rigorous" 0, "probabilistic" 1, "heuristic" 2, "none" 3, "degenerate" 4)
set xtics font ",11"
set boxwidth 0.7
plot "{0}" using 1:2 with boxes fs solid 0.9 noborder lc rgb "{1}" notitle, \
  "" using 1:2:(sprintf("%g", $2)) with labels offset 0,0.6 notitle
)gp",
                        draw.data("certificates"), figures::palette::blue));
}

}  // namespace

report_figures draw_figures(const std::filesystem::path& folder, const std::string& prefix,
                            const checkpoint_result& checkpoint, const analysis_options& options) {
  artist draw(folder, prefix);
  draw_heat_maps(draw, checkpoint);
  draw_lambda(draw, checkpoint);
  draw_certificates(draw, checkpoint);
  draw_close_looks(draw, checkpoint, options);
  return std::move(draw).result();
}

}  // namespace verify
