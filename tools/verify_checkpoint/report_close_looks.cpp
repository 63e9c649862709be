#include "report_close_looks.hpp"

#include "layer_numbers.hpp"
#include "weights.hpp"

#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/verify/expert_direction.hpp>

#include <algorithm>
#include <array>
#include <cmath>

namespace verify {

namespace {

using mpi_router::status;

constexpr std::array<std::string_view, 4> colours{figures::palette::red, figures::palette::orange,
                                                  figures::palette::purple, figures::palette::blue};

/// An expert that the figures look at more closely.
struct chosen {
  std::size_t layer = 0;
  const expert_result* expert = nullptr;
};

/// Four at most: the farthest row, the nearest one, and two between.
std::vector<chosen> choose(const checkpoint_result& checkpoint) {
  std::vector<chosen> all;
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    for (const auto& e : checkpoint.layers[l].experts) {
      if (e.state == status::ok && std::isfinite(e.angle)) {
        all.push_back({l, &e});
      }
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.expert->angle > b.expert->angle; });
  if (all.size() <= colours.size()) {
    return all;
  }
  std::vector<chosen> some;
  for (std::size_t i = 0; i < colours.size(); ++i) {
    some.push_back(all[i * (all.size() - 1) / (colours.size() - 1)]);
  }
  return some;
}

/// The course of one expert, the rate that bounds it, and its singular values where they are wanted.
struct close_look {
  index_t layer = 0;  ///< by its number
  index_t expert = 0;
  number_rows course;  ///< step, angle in degrees, bound in degrees
  Eigen::VectorXd sigma;

  [[nodiscard]] std::string name() const { return fmt::format("layer {}, expert {}", layer, expert); }
  /// The columns that its lines of data begin with.
  [[nodiscard]] std::vector<double> key(std::size_t place) const {
    return {static_cast<double>(place), static_cast<double>(layer), static_cast<double>(expert)};
  }
};

close_look look_at(const moe_layer& layer, index_t number, index_t expert, const analysis_options& options) {
  using namespace mpi_router;
  close_look look{number, expert, {}, {}};
  const auto a = read_gate(layer, expert);
  Eigen::VectorXd row = read_row(layer, expert);
  row.stableNormalize();
  const auto principal =
      find_expert_direction(a, view(std::as_const(row)),
                            decomposes(options.spectrum, a.rows(), a.cols()) ? direction_source::svd
                                                                             : direction_source::certificate,
                            kernels{});
  if (principal.spectrum) {
    look.sigma = principal.spectrum->sigma();
  }
  constexpr index_t most_steps = 400;
  double start = unknown;
  Eigen::VectorXd workspace(row.size());
  power_iteration(gate_operator(a), view(row), view(workspace), {.max_steps = most_steps},
                  [&](const iteration_record<double>& at, vector_view<const double> iterate) {
                    const double theta = principal.angle(iterate);
                    if (at.step == 0) {
                      start = std::tan(std::min(theta + principal.uncertainty, std::numbers::pi / 2));
                    }
                    const double bound = std::atan(std::pow(principal.rate(), at.step) * start);
                    look.course.push_back({static_cast<double>(at.step), theta * degrees_per_radian,
                                           bound * degrees_per_radian});
                    return std::sin(theta) > std::max(options.tolerance, principal.uncertainty);
                  });
  return look;
}

void draw_convergence(artist& draw, const std::vector<close_look>& looks) {
  number_rows courses;
  std::string plots;
  for (std::size_t i = 0; i < looks.size(); ++i) {
    for (const auto& at : looks[i].course) {
      courses.push_back(looks[i].key(i));
      courses.back().insert(courses.back().end(), at.begin(), at.end());
    }
    plots += fmt::format(
        "{0}\"{1}\" using ($1=={2} ? $4 : NaN):5 with linespoints pt 7 ps 0.3 lw 2 lc rgb \"{3}\" title "
        "\"{4}\", "
        "\"\" using ($1=={2} ? $4 : NaN):6 with lines dt 2 lw 1.2 lc rgb \"{3}\" notitle",
        i > 0 ? ", " : "", draw.data("convergence"), i, colours[i], looks[i].name());
  }
  draw.csv("convergence", "chosen,layer,expert,step,angle_deg,bound_deg", courses);
  draw.draw(
      "convergence", 380, "Convergence of chosen experts, and the bound κ²ᵏ",
      "Solid: the angle between the row and the principal direction. Dashed, in the same colour: the bound "
      "tan θₖ ≤ κ²ᵏ tan θ₀, with κ = σ₂/σ₁. From the farthest row to the nearest.",
      R"gp(set xlabel "step"
set ylabel "angle to the principal direction (degrees)"
set logscale y
set format y "10^{%T}"
set xrange [0:*]
plot )gp" +
          plots + "\n");
}

/// The plot of one spectrum, with its gap from σ₂ up to σ₁ beside the curve.
std::string spectrum_plot(const artist& draw, const close_look& look, std::size_t i) {
  const auto& sigma = look.sigma;
  const bool has_gap = sigma.size() > 1;
  std::string plot = fmt::format(
      "{0}\"{1}\" using ($1=={2} ? $4 : NaN):5 with linespoints pt 7 ps 0.3 lw 1 lc rgb \"{3}\" title "
      "\"{4}{5}\"",
      i > 0 ? ", " : "", draw.data("spectra"), i, colours[i], look.name(),
      has_gap ? fmt::format(": κ = {:.3f}", sigma[1] / sigma[0]) : "");
  if (has_gap) {
    plot += fmt::format(
        ", \"{}\" using ($1=={} ? $2 : NaN):($3-$4):(0):(2*$4) with vectors nohead lw 5 lc rgb \"{}\" "
        "notitle",
        draw.data("gaps"), i, colours[i]);
  }
  return plot;
}

void draw_spectra(artist& draw, const std::vector<close_look>& looks) {
  number_rows spectra;
  number_rows gaps;  // where the thick bars stand
  std::string plots;
  double last_index = 1;
  for (std::size_t i = 0; i < looks.size(); ++i) {
    const auto& sigma = looks[i].sigma;
    for (index_t k = 0; k < sigma.size(); ++k) {
      spectra.push_back(looks[i].key(i));
      spectra.back().insert(spectra.back().end(), {static_cast<double>(k + 1), sigma[k] / sigma[0]});
    }
    if (sigma.size() > 1) {
      const auto id = static_cast<double>(i);
      gaps.push_back({id, 0.55 * std::pow(1.15, id), (sigma[0] + sigma[1]) / (2 * sigma[0]),
                      (sigma[0] - sigma[1]) / (2 * sigma[0])});
    }
    last_index = std::max(last_index, static_cast<double>(sigma.size()));
    plots += spectrum_plot(draw, looks[i], i);
  }
  draw.csv("spectra", "chosen,layer,expert,index,sigma_over_sigma_1", spectra);
  draw.csv("gaps", "chosen,x,middle,half", gaps);
  draw.draw("spectra", 380, "Singular spectra, with the gap",
            "Singular values of the gate matrices, from the largest down. The thick bars at the left mark "
            "the gap from σ₂ to σ₁: the longer, the fewer steps are needed.",
            fmt::format(R"gp(set xlabel "index of the singular value"
set ylabel "σ / σ₁ (dimensionless)"
set logscale x
set xrange [0.5:{}]
set yrange [0:1.05]
plot )gp",
                        std::max(2.0, 1.1 * last_index)) +
                plots + "\n");
}

}  // namespace

void draw_close_looks(artist& draw, const checkpoint_result& checkpoint, const analysis_options& options) {
  const auto numbers = layer_numbers(checkpoint);
  std::vector<close_look> looks;
  for (const auto& [layer, expert] : choose(checkpoint)) {
    looks.push_back(look_at(*checkpoint.layers[layer].layer, numbers[layer], expert->expert, options));
  }
  if (looks.empty()) {
    draw.leave_out("Convergence and singular spectra",
                   "No row of this checkpoint has a direction to follow.");
    return;
  }
  draw_convergence(draw, looks);
  if (std::ranges::any_of(looks, [](const auto& look) { return look.sigma.size() > 0; })) {
    draw_spectra(draw, looks);
  } else {
    draw.leave_out("Singular spectra", "Left out: with --no-svd nothing is decomposed.");
  }
}

}  // namespace verify
