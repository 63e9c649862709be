// One slider: η from Oja's rule through MPI (η = 1/ρ) to steps that are too long, and how fast each
// converges.
#include "demonstration.hpp"

#include <array>

using namespace theory;

namespace {

/// With η = t/ρ the step is a power step shifted by s = ρ(1 − 1/t). Near the principal direction it
/// multiplies the component along vᵢ by (σᵢ² − s)/(σ₁² − s) = 1 − t(1 − σᵢ²/σ₁²).
double predicted_rate(const VectorXd& sigma, double t) {
  double worst = 0;
  for (index_t i = 1; i < sigma.size(); ++i) {
    worst = std::max(worst, std::abs(1 - t * (1 - std::pow(sigma[i] / sigma[0], 2))));
  }
  return worst;
}

/// One step with η = t/ρ.
template <class Op>
void relative_step(const Op& op, VectorXd& row, double t) {
  VectorXd next(row.size());
  const double rho = rayleigh(op, view(row), view(next)).rayleigh;
  steepest_ascent_step(op, view(row), view(next), 1.0, t / rho);
  row = next;
}

/// tan θ shrinks by this factor a step once the row is near: seen over the steps between 1e-5 and 1e-11.
template <class Op>
double measured_rate(const Op& op, const VectorXd& start, const VectorXd& principal, double t) {
  VectorXd row = start;
  double from = 0;
  int first_step = 0;
  for (int k = 0; k < 20000; ++k) {
    const double tangent = std::tan(angle_between(row, principal));
    if (from == 0 && tangent < 1e-5) {
      from = tangent;
      first_step = k;
    } else if (from > 0 && tangent < 1e-11) {
      return std::pow(tangent / from, 1.0 / (k - first_step));
    }
    relative_step(op, row, t);
  }
  return std::numeric_limits<double>::quiet_NaN();  // it does not arrive
}

/// The largest distance between the ascent with η = 1/ρ and the power step, over random experts and rows.
double largest_difference() {
  double worst = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const MatrixXd a = gaussian(20, 30, 100 + seed);
    const VectorXd row = gaussian(30, 1, 200 + seed);
    VectorXd by_power(30);
    VectorXd by_ascent(30);
    VectorXd g(30);
    const auto op = gram(a);
    power_step(op, view(row), view(by_power), 1.0);
    const double eta = adaptive_step(rayleigh(op, view(row), view(g)).rayleigh);
    steepest_ascent_step(op, view(row), view(by_ascent), 1.0, eta);
    worst = std::max(worst, (by_power - by_ascent).norm());
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "eta", [](const demonstration& demo) {
    VectorXd sigma(12);
    for (index_t i = 0; i < sigma.size(); ++i) {
      sigma[i] = i == 0 ? 1 : 0.8 - 0.05 * static_cast<double>(i - 1);  // 0.8 … 0.3
    }
    const known_expert expert(sigma, 7);
    const auto op = gram(expert.a);
    const VectorXd start = (expert.principal() + 0.3 * gaussian(12, 1, 9).normalized()).normalized();
    const double kappa_squared = std::pow(sigma[1], 2);
    const double smallest = std::pow(sigma[11], 2);
    const double best = 2 / ((1 - kappa_squared) + (1 - smallest));
    const double limit = 2 / (1 - smallest);

    std::vector<std::vector<double>> rates;
    for (double t = 0.05; t < 2.6; t *= 1.08) {
      rates.push_back({t, predicted_rate(sigma, t), measured_rate(op, start, expert.principal(), t)});
    }
    rates.push_back({1, predicted_rate(sigma, 1), measured_rate(op, start, expert.principal(), 1)});
    rates.push_back({best, predicted_rate(sigma, best), measured_rate(op, start, expert.principal(), best)});
    std::sort(rates.begin(), rates.end());
    demo.csv("rates", "t,predicted,measured", rates);

    const std::array<double, 5> shown{0.1, 0.4, 1, best, 1.1 * limit};
    std::vector<VectorXd> rows(shown.size(), start);
    std::vector<std::vector<double>> angles;
    for (int k = 0; k <= 60; ++k) {
      angles.push_back({static_cast<double>(k)});
      for (std::size_t i = 0; i < shown.size(); ++i) {
        angles.back().push_back(angle_between(rows[i], expert.principal()) / degree);
        relative_step(op, rows[i], shown[i]);
      }
    }
    demo.csv("angles", "step,t_0_1,t_0_4,t_1,t_best,t_over", angles);
    const double difference = largest_difference();
    demo.csv("equality", "largest_difference", {{difference}});

    fmt::print(
        "One family of steps, r̂ + ηg with η = t/ρ: each is a power step with M shifted by s = ρ(1 − 1/t).\n"
        "  t → 0        Oja's rule: many short steps\n"
        "  t = 1        MPI: tan θ shrinks by κ² = {:.2f} a step, and nothing has to be chosen\n"
        "  t = {:.3f}    the best for this spectrum: by {:.3f} a step; to choose it one must know the "
        "spectrum\n"
        "  t > {:.3f}    over-shifted: the smallest singular direction grows instead, nothing arrives\n"
        "Over 50 random experts the ascent with η = 1/ρ and the power step differ by {:.1e} at most: "
        "rounding.\n",
        kappa_squared, best, predicted_rate(sigma, best), limit, difference);
    demo.figure(900, 400,
                fmt::format(R"gp(
set datafile columnheaders
set multiplot layout 1,2
set xlabel "t = ηρ (dimensionless)"
set ylabel "factor on tan θ, a step"
set logscale x
set xrange [0.05:3]
set yrange [0:1.3]
set xtics (0.05,0.1,0.2,0.5,1,2)
set arrow 1 from 1,0 to 1,1.3 nohead dt 2 lc rgb "#808080"
set label 1 "MPI" at 1,0.04 left rotate by 90 offset -0.7,0
set arrow 2 from {0},0 to {0},1.3 nohead dt 2 lc rgb "#808080"
set label 2 "too long beyond" at {0},0.04 left rotate by 90 offset -0.7,0
plot "eta-rates.csv" using 1:2 with lines lw 2 lc rgb "#d0660a" title "theory", \
  "" using 1:3 with points pt 7 ps 0.6 lc rgb "#3b7fd4" title "measured"
unset arrow
unset label
unset logscale x
set logscale y
set format y "10^{{%T}}"
set xrange [0:60]
set yrange [1e-12:200]
set xtics 10
set xlabel "step"
set ylabel "angle to v₁ (degrees)"
plot "eta-angles.csv" using 1:2 with lines lw 2 lc rgb "#808080" title "t = 0.1 (nearly Oja)", \
  "" using 1:3 with lines lw 2 lc rgb "#2a9058" title "t = 0.4", \
  "" using 1:4 with lines lw 2 lc rgb "#3b7fd4" title "t = 1 (MPI)", \
  "" using 1:5 with lines lw 2 lc rgb "#a05ac8" title "t = {1:.2f} (best)", \
  "" using 1:6 with lines lw 2 lc rgb "#dd4048" title "t = {2:.2f} (too long)"
unset multiplot
)gp",
                            limit, best, 1.1 * limit));
  });
}
