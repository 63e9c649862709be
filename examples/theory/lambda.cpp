// λ rises, the angle does not: what one step does to an untrained Gaussian matrix, which has nothing to find.
#include "demonstration.hpp"

#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/verify/null_model.hpp>

#include <array>

using namespace theory;

namespace {

/// v₁ and σ₁ of a matrix, by iteration.
std::pair<VectorXd, double> principal(const MatrixXd& a, std::uint64_t seed) {
  VectorXd v = gaussian(a.cols(), 1, seed);
  VectorXd workspace(2 * a.cols());
  const auto found = power_iteration(
      gram(a), view(v), view(workspace),
      {.max_steps = 5000, .residual_tolerance = 1e-7, .acceleration = momentum<double>::estimated()});
  return {v, std::sqrt(found.last.rayleigh)};
}

/// After 0, 1, … steps: λ, |cos| to v₁ and λ with ‖A‖_F, means over 24 random rows.
table mean_course(const MatrixXd& a, int steps, std::uint64_t seed) {
  const auto [v, sigma_1] = principal(a, seed);
  table course(static_cast<std::size_t>(steps) + 1, {0, 0, 0});
  for (std::uint64_t i = 0; i < 24; ++i) {
    VectorXd row = gaussian(a.cols(), 1, 1000 + i);
    for (auto& at : course) {
      const double rho = quotient(a, row);
      at[0] += alignment_spectral(rho, sigma_1) / 24;
      at[1] += std::abs(std::cos(angle_between(row, v))) / 24;
      at[2] += alignment_frobenius(rho, a.norm()) / 24;
      row = stepped(a, row);
    }
  }
  return course;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "lambda", [](const demonstration& demo) {
    const auto course = mean_course(gaussian(1024, 1024, 11), 40, 12);
    table steps;
    for (double k = 0; const auto& at : course) {
      steps.push_back({k++, at[0], at[1]});
    }
    demo.csv("steps", "step,lambda,cosine", steps);

    table shapes;
    using shape = std::array<index_t, 2>;  // F, D
    for (const auto& [f, d] : {shape{2048, 256}, shape{1024, 256}, shape{1024, 512}, shape{512, 512},
                               shape{512, 1024}, shape{256, 1024}, shape{256, 2048}, shape{352, 1024}}) {
      const auto [ff, dd] = std::pair(static_cast<double>(f), static_cast<double>(d));
      const auto null = null_model(f, d);
      const auto at = mean_course(gaussian(f, d, 13), 1, 14);
      shapes.push_back(
          {dd / ff, null.stored, at[0][0], null.one_step, at[1][0], at[1][1], ff, dd, at[0][2], at[1][2]});
    }
    demo.csv("shapes",
             "q,null_stored,lambda_stored,null_one_step,lambda_one_step,cosine_one_step,F,D,frobenius_stored,"
             "frobenius_one_step",
             shapes);
    const auto null = null_model(1024, 1024);
    fmt::print(
        "A Gaussian matrix, 1024 × 1024, has nothing to align with. One step lifts λ from {:.3f} to {:.3f}\n"
        "(limits {:.3f} and {:.3f}), the cosine to v₁ from {:.3f} to {:.3f} only: λ is no certificate.\n",
        course[0][0], course[1][0], null.stored, null.one_step, course[0][1], course[1][1]);
    demo.figure("lambda", "a Gaussian matrix, F = D = 1024; means over 24 random rows");
    demo.figure("lambda-shapes", "Gaussian matrices, F·D from 2¹⁸ to 2¹⁹; means over 24 random rows");
  });
}
