// The gap 1 − κ: why a repeated σ₁ has no direction to find, and what the certificate says then.
#include "demonstration.hpp"

#include <mpi_router/verify/trace_ladder.hpp>

using namespace theory;

namespace {

struct outcome {
  VectorXd direction;
  certificate proof;
};

/// Iterates from a start until the residual has vanished or patience has, and certifies what is there.
outcome search(const known_expert& expert, const second_eigenvalue_bound& bound, VectorXd row) {
  const auto op = gram(expert.a);
  VectorXd workspace(row.size());
  power_iteration(op, view(row), view(workspace), {.max_steps = 3000, .residual_tolerance = 1e-12});
  const auto at = rayleigh(op, view(row), view(workspace));
  constexpr double slack = 1e-14;  // rounding of ‖g‖, for σ₁ = 1 and 10 dimensions
  return {row, certify(at, bound, slack)};
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "gap", [](const demonstration& demo) {
    constexpr index_t dimension = 10;
    std::vector<std::vector<double>> table;
    double nearest = 1;
    for (int exponent = 1; exponent <= 31; ++exponent) {
      const bool repeated = exponent == 31;
      const double gap = repeated ? 0 : std::pow(10.0, -0.5 * exponent);
      VectorXd sigma = VectorXd::Constant(dimension, 0.3);
      sigma[0] = 1;
      sigma[1] = repeated ? 1 : 1 - gap;
      const known_expert expert(sigma, 17);
      const auto bound = trace_ladder(expert.a).bound;
      const auto first = search(expert, bound, gaussian(dimension, 1, 21));
      const auto second = search(expert, bound, gaussian(dimension, 1, 25));
      const double apart = angle_between(first.direction, second.direction) / degree;
      const double off = repeated ? std::numeric_limits<double>::quiet_NaN()
                                  : angle_between(first.direction, expert.principal()) / degree;
      const bool proven = first.proof.label == certainty::rigorous;
      if (proven && !repeated) {
        nearest = gap;
      }
      table.push_back({gap, apart, off, first.proof.angle_bound / degree, proven ? 1.0 : 0.0,
                       first.proof.sigma_low,
                       proven ? first.proof.sigma_high : std::numeric_limits<double>::quiet_NaN()});
    }
    demo.csv("certificates", "gap,apart_deg,angle_deg,bound_deg,rigorous,sigma_low,sigma_high", table);

    const auto& last = table.back();
    fmt::print(
        "σ₁ = 1, so κ = σ₂, and the gap is 1 − κ. Two random starts, up to 3000 steps each, and a "
        "certificate without an SVD.\n"
        "Down to a gap of about {:.0e} the proof says how near to v₁ the row is. Below, the bound on σ₂ "
        "cannot be told\n"
        "from σ₁ by rounding, and the certificate claims nothing of the angle: label '{}', bound 90°.\n"
        "At σ₂ = σ₁ the two starts end {:.0f}° apart, each with no residual: every direction of that plane "
        "is\n"
        "principal, so there is no one direction to find. What is still proven is σ₁ ≥ {:.6f}.\n",
        nearest, to_string(certainty::none), last[1], last[5]);
    demo.figure(760, 430, R"gp(
set datafile columnheaders
set xlabel "gap 1 − κ = (σ₁ − σ₂)/σ₁ (dimensionless; the right edge is 0)"
set ylabel "angle (degrees)"
set logscale xy
set format "10^{%T}"
set xrange [1:1e-17]
set xtics ("1" 1, "10^{-2}" 1e-2, "10^{-4}" 1e-4, "10^{-6}" 1e-6, "10^{-8}" 1e-8, "10^{-10}" 1e-10, "10^{-12}" 1e-12, "10^{-14}" 1e-14, "0" 1e-17)
set yrange [1e-14:1000]
at_gap(g) = g > 0 ? g : 1e-17
plot "gap-certificates.csv" using (at_gap($1)):4 with linespoints pt 7 lw 2 lc rgb "#3b7fd4" title "certificate: at most (90° claims nothing)", \
  "" using (at_gap($1)):3 with points pt 5 lc rgb "#2a9058" title "true angle to v₁", \
  "" using (at_gap($1)):2 with points pt 9 lc rgb "#dd4048" title "between the ends of two starts"
)gp");
  });
}
