// One slider: η from Oja's rule through MPI (η = 1/ρ) to steps that are too long, and how fast each
// converges.
#include "demonstration.hpp"

#include <algorithm>

using namespace theory;

namespace {

const VectorXd sigma{{1, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3}};
const MatrixXd a = sigma.asDiagonal();  // the axes are the singular directions
const VectorXd start = (VectorXd(12) << 1, VectorXd::Constant(11, 0.3 / std::sqrt(11.0))).finished();

double angle_of(const VectorXd& row) { return angle_between(row, VectorXd::Unit(12, 0)); }

/// With η = t/ρ the step is a power step shifted by s = ρ(1 − 1/t). Near v₁ it multiplies the component along
/// vᵢ by (σᵢ² − s)/(σ₁² − s) = 1 − t(1 − σᵢ²/σ₁²); σ₁ = 1 here.
double predicted_rate(double t) { return (1 - t * (1 - sigma.tail(11).array().square())).abs().maxCoeff(); }

VectorXd relative_step(const VectorXd& row, double t) { return ascended(a, row, t / quotient(a, row)); }

/// tan θ shrinks by this factor a step once the row is near: seen over the steps between 1e-5 and 1e-11.
double measured_rate(double t) {
  VectorXd row = start;
  std::vector<double> near;  // tan θ
  for (int k = 0; k < 40000 && (near.empty() || near.back() >= 1e-11); ++k) {
    if (const double tangent = std::tan(angle_of(row)); tangent < 1e-5) {
      near.push_back(tangent);
    }
    row = relative_step(row, t);
  }
  const bool arrives = !near.empty() && near.back() < 1e-11;
  return arrives ? std::pow(near.back() / near.front(), 1 / (static_cast<double>(near.size()) - 1))
                 : no_number;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "eta", [](const demonstration& demo) {
    const double limit = 2 / (1 - std::pow(sigma[11], 2));
    const double best = 2 / ((1 - std::pow(sigma[1], 2)) + (1 - std::pow(sigma[11], 2)));
    std::vector<double> sizes{1, best};
    for (double t = 0.05; t < 2.6; t *= 1.08) {
      sizes.push_back(t);
    }
    std::sort(sizes.begin(), sizes.end());
    table rates;
    for (const double t : sizes) {
      rates.push_back({t, predicted_rate(t), measured_rate(t)});
    }
    demo.csv("rates", "t,predicted,measured", rates);

    const std::vector<double> shown{0.1, 0.4, 1, best, 1.1 * limit};
    std::vector<VectorXd> rows(shown.size(), start);
    table angles;
    for (int k = 0; k <= 60; ++k) {
      angles.push_back({static_cast<double>(k)});
      for (std::size_t i = 0; i < shown.size(); ++i) {
        angles.back().push_back(angle_of(rows[i]) / degree);
        rows[i] = relative_step(rows[i], shown[i]);
      }
    }
    demo.csv("angles", "step,t_0_1,t_0_4,t_1,t_best,t_over", angles);
    fmt::print(
        "Each η = t/ρ is a power step with M shifted by ρ(1 − 1/t). t → 0: Oja's rule. t = 1, MPI: tan θ\n"
        "shrinks by κ² = {:.2f} a step, with nothing to choose. t = {:.3f}: the best here, by {:.3f}; that "
        "needs\nthe spectrum. t > {:.3f}: the smallest singular direction grows, nothing arrives.\n",
        std::pow(sigma[1], 2), best, predicted_rate(best), limit);
    const auto values = fmt::format("limit = {}\nbest = {}\nover = {}", limit, best, shown.back());
    for (const char* picture : {"eta", "eta-angles"}) {
      demo.figure(picture, "σ = 1, 0.8, 0.75 … 0.3 (D = 12), κ² = 0.64; start 17° from v₁; t = ηρ", values);
    }
  });
}
