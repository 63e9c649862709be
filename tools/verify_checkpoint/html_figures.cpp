#include "html_figures.hpp"

#include "../figures/gnuplot.hpp"
#include "kernels.hpp"
#include "layer_numbers.hpp"

#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/verify/null_model.hpp>
#include <mpi_router/verify/singular.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numbers>
#include <optional>
#include <set>

namespace verify {

namespace {

using mpi_router::status;

constexpr double degrees_per_radian = 180 / std::numbers::pi;
constexpr std::array<std::string_view, 4> colours{figures::palette::red, figures::palette::orange,
                                                  figures::palette::purple, figures::palette::blue};

using rows = std::vector<std::vector<double>>;

/// Draws one figure after another into one folder, and remembers why one could not be drawn.
class artist {
 public:
  artist(std::filesystem::path folder, std::string prefix)
      : folder_(std::move(folder)), prefix_(std::move(prefix)) {}

  void csv(const std::string& part, const std::string& header, const rows& numbers) const {
    figures::write_csv(folder_ / data(part), header, numbers);
  }
  [[nodiscard]] std::string data(const std::string& part) const { return prefix_ + part + ".csv"; }

  void draw(const std::string& name, int height, const std::string& title, const std::string& caption,
            const std::string& script) {
    const std::string file = prefix_ + name;
    figures::write_file(folder_ / (file + ".gp"), figures::script_head(file + ".svg", 480, height, false) +
                                                      "set datafile columnheaders\n" + script);
    report_figure figure{title, caption, {}};
    const auto done =
        result_.problem.empty() ? figures::run_gnuplot(folder_, file + ".gp") : figures::drawn::no_gnuplot;
    if (done == figures::drawn::yes) {
      std::ifstream in(folder_ / (file + ".svg"), std::ios::binary);
      figure.svg.assign(std::istreambuf_iterator<char>(in), {});
    } else if (result_.problem.empty()) {
      result_.problem = done == figures::drawn::no_gnuplot ? std::string(figures::no_gnuplot_advice)
                                                           : "gnuplot could not draw " + file + ".gp";
    }
    result_.figures.push_back(std::move(figure));
  }
  void leave_out(const std::string& title, const std::string& why) {
    result_.figures.push_back({title, why, {}});
  }
  [[nodiscard]] report_figures result() && { return std::move(result_); }

 private:
  std::filesystem::path folder_;
  std::string prefix_;
  report_figures result_;
};

void draw_heat_maps(artist& draw, const checkpoint_report& checkpoint) {
  const auto numbers = layer_numbers(checkpoint);
  rows cells;
  std::size_t most = 0;
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    for (const auto& e : checkpoint.layers[l].experts) {
      cells.push_back({static_cast<double>(numbers[l]), static_cast<double>(e.expert), e.cosine_stored,
                       e.cosine_step, static_cast<double>(l)});
    }
    most = std::max(most, checkpoint.layers[l].experts.size());
  }
  draw.csv("cosine", "layer,expert,cosine_stored,cosine_step,place", cells);
  const auto layers = checkpoint.layers.size();
  const auto step = [](std::size_t count) { return std::max<std::size_t>(1, (count + 7) / 8); };
  std::string tics;
  for (std::size_t l = 0; l < layers; l += step(layers)) {
    tics += fmt::format("{}\"{}\" {}", l > 0 ? ", " : "", numbers[l], l);
  }
  for (const auto& [name, column, when] :
       {std::tuple{"before", 3, "as stored"}, {"after", 4, "after one step"}}) {
    draw.draw(name, 340, fmt::format("Cosine to the principal direction, {}", when),
              "Each cell is one expert: 1 where its router row points along the principal right singular "
              "direction of its "
              "gate matrix, 0 where it is orthogonal to it. Empty cells have no direction.",
              fmt::format(R"gp(set xlabel "expert"
set ylabel "layer"
set cblabel "|cos| (dimensionless)"
set xrange [-0.5:{0}]
set yrange [{1}:-0.5]
set xtics {2}
set ytics ({3})
unset grid
set cbrange [0:1]
set palette defined (0 "#440154", 0.25 "#3b528b", 0.5 "#21918c", 0.75 "#5ec962", 1 "#fde725")
plot "{4}" using 2:5:(0.5):(0.5):{5} with boxxyerror fs solid noborder lc palette notitle
)gp",
                          static_cast<double>(most) - 0.5, static_cast<double>(layers) - 0.5, step(most),
                          tics, draw.data("cosine"), column));
  }
}

void draw_lambda(artist& draw, const checkpoint_report& checkpoint) {
  const auto numbers = layer_numbers(checkpoint);
  rows points;
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

void draw_certificates(artist& draw, const checkpoint_report& checkpoint) {
  constexpr std::array<std::string_view, 4> labels{"rigorous", "probabilistic", "heuristic", "none"};
  std::array<double, 5> count{};
  for (const auto& layer : checkpoint.layers) {
    for (const auto& e : layer.experts) {
      const auto label = std::find(labels.begin(), labels.end(), e.certificate) - labels.begin();
      ++count[e.state != status::ok ? 4 : static_cast<std::size_t>(label)];
    }
  }
  rows table;
  for (std::size_t i = 0; i < count.size(); ++i) {
    table.push_back({static_cast<double>(i), count[i]});
  }
  draw.csv("certificates", "label,rows", table);
  draw.draw("certificates", 340, "Certificates by label",
            "Rigorous: proven, rounding allowed for. Probabilistic: true but for a chance of at most 1e-6. "
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

/// An expert that the figures look at more closely.
struct chosen {
  std::size_t layer = 0;
  const expert_report* report = nullptr;
};

/// Four at most: the farthest row, the nearest one, and two between.
std::vector<chosen> choose(const checkpoint_report& checkpoint) {
  std::vector<chosen> all;
  for (std::size_t l = 0; l < checkpoint.layers.size(); ++l) {
    for (const auto& e : checkpoint.layers[l].experts) {
      if (e.state == status::ok && std::isfinite(e.angle)) {
        all.push_back({l, &e});
      }
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.report->angle > b.report->angle; });
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
  rows course;  ///< step, angle in degrees, bound in degrees
  Eigen::VectorXd sigma;
};

close_look look_at(const checkpoint_report& checkpoint, const chosen& which,
                   const analysis_options& options) {
  using namespace mpi_router;
  close_look look;
  const auto& layer = *checkpoint.layers[which.layer].layer;
  const auto a = read_gate(layer.gates[static_cast<std::size_t>(which.report->expert)]);
  Eigen::VectorXd row = read_row(*layer.router, layer.router_how, which.report->expert);
  row.stableNormalize();
  Eigen::VectorXd principal;
  double rate = unknown;  // κ², or a bound on it
  double off = 0;         // of the direction found, at most
  if (options.exact) {
    const singular_spectrum spectrum(a);
    principal = spectrum.principal_direction();
    look.sigma = spectrum.sigma();
    rate = spectrum.kappa() * spectrum.kappa();
  } else {
    const auto found = find_direction(a, view(std::as_const(row)));
    principal = found.direction;
    off = found.proof.angle_bound;
    rate = found.proof.label >= certainty::probabilistic ? found.proof.alpha / found.at.rayleigh : unknown;
  }
  constexpr index_t most_steps = 400;
  double start = unknown;
  Eigen::VectorXd workspace(row.size());
  power_iteration(gate_operator(a), view(row), view(workspace), {.max_steps = most_steps},
                  [&](const iteration_record<double>& at, vector_view<const double> iterate) {
                    const double theta = line_angle<double>(iterate, view(principal));
                    start = at.step == 0 ? std::tan(std::min(theta + off, std::numbers::pi / 2)) : start;
                    look.course.push_back({static_cast<double>(at.step), theta * degrees_per_radian,
                                           std::atan(std::pow(rate, at.step) * start) * degrees_per_radian});
                    return std::sin(theta) > std::max(options.tolerance, off);
                  });
  return look;
}

void draw_close_looks(artist& draw, const checkpoint_report& checkpoint, const analysis_options& options) {
  const auto experts = choose(checkpoint);
  const std::string convergence_title = "Convergence of chosen experts, and the bound κ²ᵏ";
  if (experts.empty()) {
    draw.leave_out("Convergence and singular spectra",
                   "No row of this checkpoint has a direction to follow.");
    return;
  }
  const auto numbers = layer_numbers(checkpoint);
  rows courses;
  rows spectra;
  rows gaps;  // where the thick bars stand
  std::string course_plots;
  std::string spectrum_plots;
  double last_index = 1;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const auto look = look_at(checkpoint, experts[i], options);
    const auto id = static_cast<double>(i);
    const auto layer = static_cast<double>(numbers[experts[i].layer]);
    for (const auto& at : look.course) {
      courses.push_back({id, layer, static_cast<double>(experts[i].report->expert), at[0], at[1], at[2]});
    }
    for (index_t k = 0; k < look.sigma.size(); ++k) {
      spectra.push_back({id, layer, static_cast<double>(experts[i].report->expert),
                         static_cast<double>(k + 1), look.sigma[k] / look.sigma[0]});
    }
    last_index = std::max(last_index, static_cast<double>(look.sigma.size()));
    const std::string name =
        fmt::format("layer {}, expert {}", numbers[experts[i].layer], experts[i].report->expert);
    const auto separator = i > 0 ? ", " : "";
    course_plots += fmt::format(
        "{0}\"{1}\" using ($1=={2} ? $4 : NaN):5 with linespoints pt 7 ps 0.3 lw 2 lc rgb \"{3}\" title "
        "\"{4}\", "
        "\"\" using ($1=={2} ? $4 : NaN):6 with lines dt 2 lw 1.2 lc rgb \"{3}\" notitle",
        separator, draw.data("convergence"), i, colours[i], name);
    spectrum_plots += fmt::format(
        "{0}\"{1}\" using ($1=={2} ? $4 : NaN):5 with linespoints pt 7 ps 0.3 lw 1 lc rgb \"{3}\" title "
        "\"{4}{5}\"",
        separator, draw.data("spectra"), i, colours[i], name,
        look.sigma.size() > 1 ? fmt::format(": κ = {:.3f}", look.sigma[1] / look.sigma[0]) : "");
    if (look.sigma.size() > 1) {  // the gap: from σ₂ up to σ₁, beside the curve
      spectrum_plots += fmt::format(
          ", \"{}\" using ($1=={} ? $2 : NaN):($3-$4):(0):(2*$4) with vectors nohead lw 5 lc rgb \"{}\" "
          "notitle",
          draw.data("gaps"), i, colours[i]);
      gaps.push_back({id, 0.55 * std::pow(1.15, id), (look.sigma[0] + look.sigma[1]) / (2 * look.sigma[0]),
                      (look.sigma[0] - look.sigma[1]) / (2 * look.sigma[0])});
    }
  }
  draw.csv("convergence", "chosen,layer,expert,step,angle_deg,bound_deg", courses);
  draw.draw(
      "convergence", 380, convergence_title,
      "Solid: the angle between the row and the principal direction. Dashed, in the same colour: the bound "
      "tan θₖ ≤ κ²ᵏ tan θ₀, with κ = σ₂/σ₁. From the farthest row to the nearest.",
      R"gp(set xlabel "step"
set ylabel "angle to the principal direction (degrees)"
set logscale y
set format y "10^{%T}"
set xrange [0:*]
plot )gp" +
          course_plots + "\n");
  if (!options.exact) {
    draw.leave_out("Singular spectra", "Left out: with --no-svd nothing is decomposed.");
    return;
  }
  draw.csv("spectra", "chosen,layer,expert,index,sigma_over_sigma_1", spectra);
  draw.csv("gaps", "chosen,x,middle,half", gaps);
  draw.draw("spectra", 380, "Singular spectra, with the gap",
            "Singular values of the gate matrices, from the largest down. The thick bars at the left mark "
            "the gap from "
            "σ₂ to σ₁: "
            "the longer, the fewer steps are needed.",
            fmt::format(R"gp(set xlabel "index of the singular value"
set ylabel "σ / σ₁ (dimensionless)"
set logscale x
set xrange [0.5:{}]
set yrange [0:1.05]
plot )gp",
                        std::max(2.0, 1.1 * last_index)) +
                spectrum_plots + "\n");
}

}  // namespace

report_figures draw_figures(const std::filesystem::path& folder, const std::string& prefix,
                            const checkpoint_report& checkpoint, const analysis_options& options) {
  artist draw(folder, prefix);
  draw_heat_maps(draw, checkpoint);
  draw_lambda(draw, checkpoint);
  draw_certificates(draw, checkpoint);
  draw_close_looks(draw, checkpoint, options);
  return std::move(draw).result();
}

}  // namespace verify
