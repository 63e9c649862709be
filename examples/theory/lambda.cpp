// λ rises, the angle does not: what one step does to an untrained Gaussian matrix, which has nothing to find.
#include "demonstration.hpp"

#include <mpi_router/verify/null_model.hpp>

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
  constexpr int count = 24;
  const auto [v, sigma_1] = principal(a, seed);
  const double norm = a.norm();
  table course(static_cast<std::size_t>(steps) + 1, {0, 0, 0});
  for (int i = 0; i < count; ++i) {
    VectorXd row = gaussian(a.cols(), 1, 1000 + static_cast<std::uint64_t>(i));
    for (auto& at : course) {
      const double rho = quotient(a, row);
      at[0] += alignment_spectral(rho, sigma_1) / count;
      at[1] += std::abs(std::cos(angle_between(row, v))) / count;
      at[2] += alignment_frobenius(rho, norm) / count;
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
    for (std::size_t k = 0; k < course.size(); ++k) {
      steps.push_back({static_cast<double>(k), course[k][0], course[k][1]});
    }
    demo.csv("steps", "step,lambda,cosine", steps);

    table shapes;
    for (const auto& [f, d] : {std::pair{2048, 256},
                               {1024, 256},
                               {1024, 512},
                               {512, 512},
                               {512, 1024},
                               {256, 1024},
                               {256, 2048},
                               {352, 1024}}) {
      const auto null = null_model(f, d);
      const auto seen = mean_course(gaussian(f, d, 13), 1, 14);
      shapes.push_back({static_cast<double>(d) / f, null.stored, seen[0][0], null.one_step, seen[1][0],
                        seen[1][1], static_cast<double>(f), static_cast<double>(d), seen[0][2], seen[1][2]});
    }
    demo.csv("shapes",
             "q,null_stored,lambda_stored,null_one_step,lambda_one_step,cosine_one_step,F,D,frobenius_stored,"
             "frobenius_one_step",
             shapes);

    const auto null = null_model(1024, 1024);
    fmt::print(
        "A Gaussian matrix, [F, D] = [1024, 1024], never trained: there is nothing to align with.\n"
        "One step lifts λ from {:.3f} to {:.3f} (limits for large matrices: {:.3f} and {:.3f}),\n"
        "yet the cosine to v₁ goes from {:.3f} to {:.3f} only: still nearly orthogonal.\n"
        "So λ alone is no certificate. Read it beside its null, the angle and the gap.\n",
        course[0][0], course[1][0], null.stored, null.one_step, course[0][1], course[1][1]);
    demo.figure("lambda", "a Gaussian matrix, F = D = 1024; means over 24 random rows");
    demo.figure("lambda-shapes", "Gaussian matrices, F·D from 2¹⁸ to 2¹⁹; means over 24 random rows");
  });
}
