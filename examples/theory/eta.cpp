// One slider: η from Oja's rule through MPI (η = 1/ρ) to steps that are too long, and how fast each
// converges.
#include "demonstration.hpp"

#include <array>

using namespace theory;

namespace {

/// With η = t/ρ the step is a power step shifted by s = ρ(1 − 1/t). Near v₁ it multiplies the component along
/// vᵢ by (σᵢ² − s)/(σ₁² − s) = 1 − t(1 − σᵢ²/σ₁²); σ₁ = 1 here.
double predicted_rate(const VectorXd& sigma, double t) {
  return (1 - t * (1 - sigma.tail(sigma.size() - 1).array().square())).abs().maxCoeff();
}

/// One step with η = t/ρ.
VectorXd relative_step(const MatrixXd& a, const VectorXd& row, double t) {
  VectorXd next(row.size());
  steepest_ascent_step(gram(a), view(row), view(next), 1.0, t / quotient(a, row));
  return next;
}

/// tan θ shrinks by this factor a step once the row is near: seen over the steps between 1e-5 and 1e-11.
double measured_rate(const MatrixXd& a, VectorXd row, double t) {
  double from = 0;
  int first_step = 0;
  for (int k = 0; k < 20000; ++k) {
    const double tangent = std::tan(angle_between(row, VectorXd::Unit(row.size(), 0)));
    if (from == 0 && tangent < 1e-5) {
      from = tangent;
      first_step = k;
    } else if (from > 0 && tangent < 1e-11) {
      return std::pow(tangent / from, 1.0 / (k - first_step));
    }
    row = relative_step(a, row, t);
  }
  return no_number;  // it does not arrive
}

/// The largest distance between the ascent with η = 1/ρ and the power step, over random experts and rows.
double largest_difference() {
  double worst = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    const MatrixXd a = gaussian(20, 30, 100 + seed);
    const VectorXd row = gaussian(30, 1, 200 + seed);
    worst = std::max(worst, (stepped(a, row) - relative_step(a, row, 1)).norm());
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "eta", [](const demonstration& demo) {
    const VectorXd sigma{{1, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3}};
    const MatrixXd a = sigma.asDiagonal();  // the axes are the singular directions
    VectorXd start = VectorXd::Constant(12, 0.3 / std::sqrt(11.0));
    start[0] = 1;
    const double best = 2 / ((1 - std::pow(sigma[1], 2)) + (1 - std::pow(sigma[11], 2)));
    const double limit = 2 / (1 - std::pow(sigma[11], 2));
    const double over = 1.1 * limit;

    std::vector<double> sizes{1, best};
    for (double t = 0.05; t < 2.6; t *= 1.08) {
      sizes.push_back(t);
    }
    std::sort(sizes.begin(), sizes.end());
    table rates;
    for (const double t : sizes) {
      rates.push_back({t, predicted_rate(sigma, t), measured_rate(a, start, t)});
    }
    demo.csv("rates", "t,predicted,measured", rates);

    const std::array<double, 5> shown{0.1, 0.4, 1, best, over};
    std::vector<VectorXd> rows(shown.size(), start);
    table angles;
    for (int k = 0; k <= 60; ++k) {
      angles.push_back({static_cast<double>(k)});
      for (std::size_t i = 0; i < shown.size(); ++i) {
        angles.back().push_back(angle_between(rows[i], VectorXd::Unit(12, 0)) / degree);
        rows[i] = relative_step(a, rows[i], shown[i]);
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
        std::pow(sigma[1], 2), best, predicted_rate(sigma, best), limit, difference);
    const std::string parameters = "σ = 1, 0.8, 0.75 … 0.3 (D = 12), κ² = 0.64; start 17° from v₁; t = ηρ";
    const auto values = fmt::format("limit = {}\nbest = {}\nover = {}", limit, best, over);
    demo.figure("eta", parameters, values);
    demo.figure("eta-angles", parameters, values);
  });
}
