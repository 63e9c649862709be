// λ rises, the angle does not: what one step does to an untrained Gaussian matrix, which has nothing to find.
#include "demonstration.hpp"

#include <mpi_router/verify/null_model.hpp>

using namespace theory;

namespace {

struct gaussian_expert {
  MatrixXd a;
  VectorXd principal;
  double sigma_1 = 0;

  gaussian_expert(index_t ffn_dim, index_t hidden_dim, std::uint64_t seed)
      : a(gaussian(ffn_dim, hidden_dim, seed)), principal(gaussian(hidden_dim, 1, seed + 1)) {
    VectorXd workspace(2 * hidden_dim);
    const auto found = power_iteration(
        gram(a), view(principal), view(workspace),
        {.max_steps = 5000, .residual_tolerance = 1e-7, .acceleration = momentum<double>::estimated()});
    sigma_1 = std::sqrt(found.last.rayleigh);
  }
};

/// Means over rows: λ, and |cos| to the principal direction.
struct means {
  double lambda = 0;
  double cosine = 0;
};

std::vector<means> mean_course(const gaussian_expert& expert, int steps, int rows) {
  const auto op = gram(expert.a);
  const index_t hidden_dim = expert.a.cols();
  std::vector<means> course(static_cast<std::size_t>(steps) + 1);
  VectorXd next(hidden_dim);
  for (int i = 0; i < rows; ++i) {
    VectorXd row = gaussian(hidden_dim, 1, 1000 + static_cast<std::uint64_t>(i));
    for (auto& at : course) {
      const auto step = power_step(op, view(row), view(next), 1.0);
      at.lambda += alignment_spectral(step.rayleigh, expert.sigma_1) / rows;
      at.cosine += std::abs(std::cos(angle_between(row, expert.principal))) / rows;
      row = next;
    }
  }
  return course;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "lambda", [](const demonstration& demo) {
    const gaussian_expert square(1024, 1024, 11);
    const auto course = mean_course(square, 40, 24);
    std::vector<std::vector<double>> steps;
    for (std::size_t k = 0; k < course.size(); ++k) {
      steps.push_back({static_cast<double>(k), course[k].lambda, course[k].cosine});
    }
    demo.csv("steps", "step,lambda,cosine", steps);

    std::vector<std::vector<double>> shapes;
    for (const auto& [ffn_dim, hidden_dim] : {std::pair{2048, 256},
                                              {1024, 256},
                                              {1024, 512},
                                              {512, 512},
                                              {512, 1024},
                                              {256, 1024},
                                              {256, 2048}}) {
      const auto null = null_model(ffn_dim, hidden_dim);
      const auto seen = mean_course(gaussian_expert(ffn_dim, hidden_dim, 13), 1, 24);
      shapes.push_back({static_cast<double>(hidden_dim) / ffn_dim, null.stored, seen[0].lambda, null.one_step,
                        seen[1].lambda, seen[1].cosine});
    }
    demo.csv("shapes", "q,null_stored,lambda_stored,null_one_step,lambda_one_step,cosine_one_step", shapes);

    const auto null = null_model(1024, 1024);
    fmt::print(
        "A Gaussian matrix, [F, D] = [1024, 1024], never trained: there is nothing to align with.\n"
        "One step lifts λ from {:.3f} to {:.3f} (limits for large matrices: {:.3f} and {:.3f}),\n"
        "yet the cosine to the principal direction goes from {:.3f} to {:.3f} only: still nearly "
        "orthogonal.\n"
        "So λ alone is no certificate. Read it beside its null, the angle and the gap.\n",
        course[0].lambda, course[1].lambda, null.stored, null.one_step, course[0].cosine, course[1].cosine);
    demo.figure(900, 400, R"gp(
set datafile columnheaders
set multiplot layout 1,2
set xlabel "step"
set ylabel "mean over 24 random rows (dimensionless)"
set xrange [0:40]
set yrange [0:1]
plot "lambda-steps.csv" using 1:2 with linespoints pt 7 ps 0.5 lw 2 lc rgb "#3b7fd4" title "λ = ‖rW‖/(‖r‖σ₁)", \
  "" using 1:3 with linespoints pt 5 ps 0.5 lw 2 lc rgb "#dd4048" title "cosine to v₁"
set xlabel "q = D/F (dimensionless)"
set ylabel "λ, or cosine (dimensionless)"
set logscale x 2
set xrange [0.1:10]
set xtics ("1/8" 0.125, "1/4" 0.25, "1/2" 0.5, "1" 1, "2" 2, "4" 4, "8" 8)
stored(q) = 1/(1+sqrt(q))
one_step(q) = sqrt((1+3*q+q*q)/(1+q))/(1+sqrt(q))
plot one_step(x) with lines lw 2 lc rgb "#2a9058" title "limit of λ after one step", \
  stored(x) with lines lw 2 lc rgb "#d0660a" title "limit of λ before", \
  "lambda-shapes.csv" using 1:5 with points pt 7 lc rgb "#2a9058" title "λ after one step", \
  "" using 1:3 with points pt 7 lc rgb "#d0660a" title "λ before", \
  "" using 1:6 with points pt 5 lc rgb "#dd4048" title "cosine to v₁ after one step"
unset multiplot
)gp");
  });
}
