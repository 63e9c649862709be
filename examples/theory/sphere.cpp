// The sphere: where Manifold Power Iteration, Oja's rule and the ascent of Eq. 9 walk on the landscape of ρ.
#include "demonstration.hpp"

#include <array>

using namespace theory;

namespace {

/// A rule, named by t = ηρ where the step adapts (t = 1 is MPI) or by a fixed η.
struct rule {
  const char* name;
  double relative_step;  ///< t; 0 where η is fixed
  double fixed_step;     ///< η in units of 1/σ₁²
};

constexpr std::array<rule, 4> rules{{{"MPI", 1, 0},
                                     {"Oja's rule, η = 0.05/σ₁²", 0, 0.05},
                                     {"Eq. 9, η = 0.5/σ₁²", 0, 0.5},
                                     {"Eq. 9, η = 1/ρ", 1, 0}}};

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "sphere", [](const demonstration& demo) {
    const VectorXd sigma{{1, 0.75, 0.4}};  // v₁, v₂, v₃ are the axes, so that the picture has a top
    const MatrixXd a = sigma.asDiagonal();
    const auto op = gram(a);
    const VectorXd start = VectorXd{{0.12, 0.35, 0.93}}.normalized();
    const VectorXd principal = VectorXd::Unit(3, 0);

    std::vector<std::vector<double>> path;
    std::array<int, rules.size()> steps{};
    double apart = 0;  // between MPI and Eq. 9 with η = 1/ρ
    std::vector<VectorXd> mpi_path;
    for (std::size_t i = 0; i < rules.size(); ++i) {
      VectorXd row = start;
      VectorXd next(3);
      VectorXd g(3);
      for (int k = 0; k <= 400; ++k) {
        const double rho = rayleigh(op, view(row), view(g)).rayleigh;
        const double theta = angle_between(row, principal);
        path.push_back(
            {static_cast<double>(i), static_cast<double>(k), row[0], row[1], row[2], rho, theta / degree});
        if (i == 0) {
          mpi_path.push_back(row);
        } else if (i == 3 && static_cast<std::size_t>(k) < mpi_path.size()) {
          apart = std::max(apart, (row - mpi_path[static_cast<std::size_t>(k)]).norm());
        }
        if (theta < 1 * degree) {
          break;
        }
        ++steps[i];
        if (i == 0) {
          power_step(op, view(row), view(next), 1.0);
        } else {
          const double eta = rules[i].fixed_step > 0 ? rules[i].fixed_step : adaptive_step(rho);
          steepest_ascent_step(op, view(row), view(next), 1.0, eta);
        }
        row = next;
      }
    }
    demo.csv("path", "rule,step,v1,v2,v3,rho,angle_deg", path);

    std::vector<std::vector<double>> landscape;
    for (int latitude = -90; latitude <= 90; latitude += 10) {
      for (int longitude = 0; longitude <= 360; longitude += 10) {
        const double cosine = std::cos(latitude * degree);
        const VectorXd row{{std::sin(latitude * degree), cosine * std::cos(longitude * degree),
                            cosine * std::sin(longitude * degree)}};
        VectorXd g(3);
        landscape.push_back({row[0], row[1], row[2], rayleigh(op, view(row), view(g)).rayleigh});
      }
      landscape.emplace_back();  // gnuplot's sign that a line of the grid ends
    }
    demo.csv("landscape", "v1,v2,v3,rho", landscape);

    fmt::print(
        "The Rayleigh quotient ρ on the unit sphere; its top is the principal direction v₁ (σ = 1, 0.75, "
        "0.4).\n"
        "From one start, {:.0f}° away, the steps until the row is within 1° of v₁:\n",
        angle_between(start, principal) / degree);
    for (std::size_t i = 0; i < rules.size(); ++i) {
      fmt::print("  {:<26} {:>4}\n", rules[i].name, steps[i]);
    }
    fmt::print(
        "MPI and Eq. 9 with η = 1/ρ are one path: their iterates differ by {:.0e} at most.\n"
        "Oja's rule walks along the slope in small steps and needs many times as many of them.\n",
        apart);

    demo.figure(900, 430, R"gp(
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
  "sphere-path.csv" using (lift*$4):(lift*$5):($1==2 ? lift*$3 : NaN) with linespoints lw 2 pt 4 ps 0.7 lc rgb "#2a9058" notitle, \
  "" using (lift*$4):(lift*$5):($1==1 ? lift*$3 : NaN) with linespoints lw 1 pt 7 ps 0.25 lc rgb "#d0660a" notitle, \
  "" using (lift*$4):(lift*$5):($1==0 ? lift*$3 : NaN) with linespoints lw 2 pt 7 ps 0.8 lc rgb "#3b7fd4" notitle, \
  "" using (lift*$4):(lift*$5):($1==3 ? lift*$3 : NaN) with points lw 1.5 pt 6 ps 1.4 lc rgb "#a05ac8" notitle
unset label
set size 0.48,1
set origin 0.52,0
set border 3
set xtics nomirror out
set ytics nomirror out
set grid
set autoscale
set logscale x
set xrange [1:400]
set yrange [0:90]
set ytics 15 nomirror
unset hidden3d
set xlabel "step + 1"
set ylabel "angle to v₁ (degrees)"
plot "sphere-path.csv" using ($1==1 ? $2+1 : NaN):7 with linespoints lw 1 pt 7 ps 0.25 lc rgb "#d0660a" title "Oja's rule, η = 0.05/σ₁²", \
  "" using ($1==2 ? $2+1 : NaN):7 with linespoints lw 2 pt 4 ps 0.7 lc rgb "#2a9058" title "Eq. 9, η = 0.5/σ₁²", \
  "" using ($1==0 ? $2+1 : NaN):7 with linespoints lw 2 pt 7 ps 0.8 lc rgb "#3b7fd4" title "MPI", \
  "" using ($1==3 ? $2+1 : NaN):7 with points lw 1.5 pt 6 ps 1.4 lc rgb "#a05ac8" title "Eq. 9, η = 1/ρ"
unset multiplot
)gp");
  });
}
