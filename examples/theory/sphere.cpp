// The sphere: where the ascent of Eq. 9 walks on the landscape of ρ, how its steps depend on η, and MPI,
// which has no η to choose.
#include "demonstration.hpp"

#include <functional>

using namespace theory;

namespace {

constexpr int patience = 1000;  // steps, after which a row is taken never to arrive
constexpr double near = 1 * degree;

const VectorXd start = VectorXd{{0.12, 0.35, 0.93}}.normalized();
const VectorXd principal = VectorXd::Unit(3, 0);

/// σ = 1, 0.75, 0.4 times `scale`; v₁, v₂, v₃ are the axes, so that the picture has a top.
MatrixXd expert(double scale = 1) { return scale * VectorXd{{1, 0.75, 0.4}}.asDiagonal().toDenseMatrix(); }

double quotient(const MatrixXd& a, const VectorXd& row) {
  VectorXd g(3);
  return rayleigh(gram(a), view(row), view(g)).rayleigh;
}

VectorXd mpi(const MatrixXd& a, const VectorXd& row) {
  VectorXd next(3);
  power_step(gram(a), view(row), view(next), 1.0);
  return next;
}

/// r̂ + ηg, retracted (Eq. 9).
VectorXd ascent(const MatrixXd& a, const VectorXd& row, double eta) {
  VectorXd next(3);
  steepest_ascent_step(gram(a), view(row), view(next), 1.0, eta);
  return next;
}

using stepper = std::function<VectorXd(const MatrixXd&, const VectorXd&)>;

stepper fixed_step(double eta) {
  return [eta](const MatrixXd& a, const VectorXd& row) { return ascent(a, row, eta); };
}

/// The rows from the start until one is within 1° of v₁.
std::vector<VectorXd> walk(const MatrixXd& a, const stepper& step) {
  std::vector<VectorXd> rows{start};
  while (angle_between(rows.back(), principal) >= near && rows.size() <= patience) {
    rows.push_back(step(a, rows.back()));
  }
  return rows;
}

/// NaN where the row does not arrive.
double steps_of(const std::vector<VectorXd>& rows) {
  return angle_between(rows.back(), principal) < near ? static_cast<double>(rows.size() - 1)
                                                      : std::numeric_limits<double>::quiet_NaN();
}

std::string in_words(double steps) {
  return std::isnan(steps) ? "never: too long" : fmt::format("{:.0f}", steps);
}

/// One rule with several η, and the power step.
struct rule {
  const char* name;
  stepper step;
};

const std::vector<rule> rules{
    {"MPI", mpi},
    {"η = 1/ρ",
     [](const MatrixXd& a, const VectorXd& row) { return ascent(a, row, adaptive_step(quotient(a, row))); }},
    {"η = 0.05/σ₁²", fixed_step(0.05)},
    {"η = 0.5/σ₁²", fixed_step(0.5)},
    {"η = 1.5/σ₁²", fixed_step(1.5)},
    {"η = 2/σ₁²", fixed_step(2)},
    {"η = 2.5/σ₁²", fixed_step(2.5)}};

void write_landscape(const demonstration& demo) {
  const MatrixXd a = expert();
  std::vector<std::vector<double>> landscape;
  for (int latitude = -90; latitude <= 90; latitude += 10) {
    for (int longitude = 0; longitude <= 360; longitude += 10) {
      const double cosine = std::cos(latitude * degree);
      const VectorXd row{{std::sin(latitude * degree), cosine * std::cos(longitude * degree),
                          cosine * std::sin(longitude * degree)}};
      landscape.push_back({row[0], row[1], row[2], quotient(a, row)});
    }
    landscape.emplace_back();  // gnuplot's sign that a line of the grid ends
  }
  demo.csv("landscape", "v1,v2,v3,rho", landscape);
}

void write_paths(const demonstration& demo, const std::vector<std::vector<VectorXd>>& paths) {
  const MatrixXd a = expert();
  std::vector<std::vector<double>> table;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    for (std::size_t k = 0; k < paths[i].size(); ++k) {
      const VectorXd& row = paths[i][k];
      table.push_back({static_cast<double>(i), static_cast<double>(k), row[0], row[1], row[2],
                       quotient(a, row), angle_between(row, principal) / degree});
    }
  }
  demo.csv("path", "rule,step,v1,v2,v3,rho,angle_deg", table);
}

/// Steps over η, for the expert and for the same with weights twice as large, where η keeps its value.
void write_steps(const demonstration& demo) {
  const double of_mpi = steps_of(walk(expert(), mpi));
  const double of_mpi_doubled = steps_of(walk(expert(2), mpi));
  std::vector<std::vector<double>> table;
  for (double eta = 0.02; eta < 4; eta *= 1.04) {
    table.push_back({eta, steps_of(walk(expert(), fixed_step(eta))),
                     steps_of(walk(expert(2), fixed_step(eta))), of_mpi, of_mpi_doubled});
  }
  demo.csv("steps", "eta,steps,steps_doubled,mpi,mpi_doubled", table);
}

double largest_distance(const std::vector<VectorXd>& one, const std::vector<VectorXd>& other) {
  double apart = 0;
  for (std::size_t k = 0; k < std::min(one.size(), other.size()); ++k) {
    apart = std::max(apart, (one[k] - other[k]).norm());
  }
  return apart;
}

constexpr const char* script = R"gp(
set datafile columnheaders
set multiplot
set size 0.52,1
set origin 0,0
set view 60,145,1.35
set view equal xyz
unset border
unset tics
unset grid
set cblabel "Rayleigh quotient ρ (units of σ₁²)"
set colorbox horizontal user origin 0.11,0.17 size 0.3,0.03
set cbtics 0.2 out
set palette defined (0 "#fbf8ee", 1 "#8db4e4")
set cbrange [0:1]
set hidden3d front
set pm3d depthorder border lc rgb "#c8d0da" lw 0.2
set xrange [-1.1:1.1]
set yrange [-1.1:1.1]
set zrange [-1.1:1.1]
set label 1 "v₁ (the top)" at 0,0,1.25 center front
set label 2 "v₂" at 1.25,0,0 center front
set label 3 "v₃" at 0,1.25,0 center front
lift = 1.06
splot "sphere-landscape.csv" using 2:3:1:4 with pm3d notitle, \
  "sphere-path.csv" using (lift*$4):(lift*$5):($1==3 ? lift*$3 : NaN) with linespoints lw 2 pt 4 ps 0.7 lc rgb "#2a9058" notitle, \
  "" using (lift*$4):(lift*$5):($1==5 ? lift*$3 : NaN) with linespoints lw 2 pt 8 ps 0.9 lc rgb "#dd4048" notitle, \
  "" using (lift*$4):(lift*$5):($1==0 ? lift*$3 : NaN) with linespoints lw 2 pt 7 ps 0.8 lc rgb "#3b7fd4" notitle, \
  "" using (lift*$4):(lift*$5):($1==1 ? lift*$3 : NaN) with points lw 1.5 pt 6 ps 1.4 lc rgb "#a05ac8" notitle
unset label
set size 0.48,1
set origin 0.52,0
set border 3
set xtics nomirror out
set ytics nomirror out
set grid
set autoscale
set logscale xy
set xrange [0.02:4]
set yrange [4:1000]
set xtics (0.02,0.05,0.1,0.2,0.5,1,2,4)
set ytics (5,10,20,50,100,200,500,1000)
unset hidden3d
set xlabel "fixed η (units of 1/σ₁²)"
set ylabel "steps until within 1° of v₁"
set label 1 "too long beyond" at 2.381,60 left rotate by 90 offset 0.8,0
set arrow 1 from 2.381,4 to 2.381,1000 nohead dt 2 lc rgb "#808080"
plot "sphere-steps.csv" using 1:2 with lines lw 2 lc rgb "#d0660a" title "Eq. 9 with this η", \
  "" using 1:3 with lines lw 2 dt 2 lc rgb "#d0660a" title "the same, weights doubled", \
  "" using 1:4 with lines lw 2 lc rgb "#3b7fd4" title "MPI, both weights", \
  NaN with points lw 1.5 pt 6 ps 1.4 lc rgb "#a05ac8" title "Eq. 9, η = 1/ρ (left)", \
  NaN with linespoints lw 2 pt 4 ps 0.7 lc rgb "#2a9058" title "η = 0.5/σ₁² (left)", \
  NaN with linespoints lw 2 pt 8 ps 0.9 lc rgb "#dd4048" title "η = 2/σ₁² (left)"
unset multiplot
)gp";

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "sphere", [](const demonstration& demo) {
    std::vector<std::vector<VectorXd>> paths;
    for (const auto& rule : rules) {
      paths.push_back(walk(expert(), rule.step));
    }
    write_paths(demo, paths);
    write_landscape(demo);
    write_steps(demo);

    fmt::print(
        "The Rayleigh quotient ρ on the unit sphere; its top is the principal direction v₁ (σ = 1, 0.75, "
        "0.4).\n"
        "From one start, {:.0f}° away, the steps of Eq. 9 until the row is within 1° of v₁, and those after\n"
        "the weights have doubled and η has not:\n",
        angle_between(start, principal) / degree);
    for (std::size_t i = 0; i < rules.size(); ++i) {
      fmt::print("  {:<14} {:>16} {:>16}\n", rules[i].name, in_words(steps_of(paths[i])),
                 in_words(steps_of(walk(expert(2), rules[i].step))));
    }
    fmt::print(
        "MPI is Eq. 9 with η = 1/ρ: their iterates differ by {:.0e} at most.\n"
        "A fixed η can be faster than MPI, slower, or never arrive, and which of them depends on σ₁, which\n"
        "differs from expert to expert and moves in training. MPI needs neither σ₁ nor a step size.\n",
        largest_distance(paths[0], paths[1]));
    demo.figure(900, 430, script);
  });
}
