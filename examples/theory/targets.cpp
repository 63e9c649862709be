// Rival targets: what else a row could stand for, beside v₁, in the two models that come with the project.
#include "demonstration.hpp"
#include "real_models.hpp"

#include <mpi_router/verify/null_model.hpp>
#include <mpi_router/verify/singular.hpp>

using namespace theory;

int main(int argc, char** argv) {
  return run(argc, argv, "targets", [](const demonstration& demo) {
    table experts;
    table layers;
    for (const auto& e : real_experts()) {
      const singular_spectrum spectrum(e.a);
      const VectorXd v = spectrum.principal_direction();
      const VectorXd mean = e.a.colwise().mean();  // of the neurons, a row of A each
      const VectorXd next = stepped(e.a, e.row);
      const auto lambda = [&](const VectorXd& row) {
        return std::sqrt(quotient(e.a, row)) / spectrum.sigma_1();
      };
      const auto cosine = [](const VectorXd& x, const VectorXd& y) {
        return std::abs(x.dot(y)) / (x.norm() * y.norm());
      };
      experts.push_back({e.mpi ? 1.0 : 0.0, static_cast<double>(e.layer), lambda(e.row), lambda(next),
                         lambda(mean), cosine(next, v), cosine(mean, v), cosine(next, mean),
                         std::pow(spectrum.sigma_1(), 2) / e.a.squaredNorm()});
      if (experts.size() % 8 == 0) {  // a layer is complete
        std::vector<double> means(experts.back().size(), 0);
        for (auto i = experts.end() - 8; i != experts.end(); ++i) {
          for (std::size_t c = 0; c < means.size(); ++c) {
            means[c] += (*i)[c] / 8;
          }
        }
        layers.push_back(std::move(means));
      }
    }
    const std::string header =
        "mpi,layer,lambda_stored,lambda_step,lambda_mean,cos_step_v1,cos_mean_v1,cos_step_mean,rank_one_"
        "share";
    demo.csv("experts", header, experts);
    demo.csv("layers", header, layers);

    const auto null = null_model(128, 256);
    fmt::print(
        "λ, means over the 8 experts of a layer; the null of an untrained matrix is {:.3f}, after a step "
        "{:.3f}\n"
        "{:<16} {:>9} {:>9} {:>11} {:>9} {:>9} {:>11}\n",
        null.stored, null.one_step, "", "stored r", "r′", "mean neuron", "cos r′,v₁", "mean,v₁",
        "σ₁²/‖A‖_F²");
    for (const auto& l : layers) {
      fmt::print("{:<16} {:>9.2f} {:>9.2f} {:>11.2f} {:>9.2f} {:>9.2f} {:>11.3f}\n",
                 fmt::format("{}, layer {:.0f}", l[0] > 0 ? "MPI" : "usual", l[1]), l[2], l[3], l[4], l[5],
                 l[6], l[8]);
    }
    demo.figure("targets",
                "the two models of examples/data, F = 128, D = 256, means over 8 experts; "
                "row r′ after one step");
  });
}
