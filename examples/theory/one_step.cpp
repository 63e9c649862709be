// Why one step keeps up with weights that move, where the row is written back: the adaptive step of Eq. 10
// shrinks as the row aligns, until it is as long as the weights drift.
#include "demonstration.hpp"
#include "real_models.hpp"

#include <mpi_router/manifold/sphere.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>
#include <mpi_router/verify/singular.hpp>

using namespace theory;

namespace {

constexpr double kappa = 0.7;

/// A row that steps once each time its expert has turned by `delta` in the plane of v₁ and v₂.
table follow(double delta, int times) {
  const VectorXd sigma{{1, kappa, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1}};
  VectorXd row = VectorXd{{0.1, 0.5, -0.4, 0.4, 0.3, -0.4, 0.3, 0.3}}.normalized();
  VectorXd g(8);
  table course;
  for (int time = 0; time <= times; ++time) {
    const MatrixXd turn = plane_rotation(8, delta * time);
    const MatrixXd a = sigma.asDiagonal() * turn.transpose();
    const auto length = adaptive_step_length(rayleigh(gram(a), view(row), view(g)));
    const VectorXd next = stepped(a, row);
    course.push_back({delta / degree, static_cast<double>(time), angle_between(row, turn.col(0)) / degree,
                      length.tangential, length.geodesic / degree,
                      angle<double>(view(row), view(next)) / degree});
    row = next;
  }
  return course;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "one_step", [](const demonstration& demo) {
    table courses;
    for (const double delta : {0.0, 0.02, 0.5}) {
      const table course = follow(delta * degree, 80);
      courses.insert(courses.end(), course.begin(), course.end());
    }
    demo.csv("course", "delta_deg,time,angle_deg,tan_psi,psi_deg,moved_deg", courses);

    table real;
    for (const auto& e : real_experts()) {
      VectorXd g(e.row.size());
      const auto at = rayleigh(gram(e.a), view(e.row), view(g));
      real.push_back({e.mpi ? 1.0 : 0.0, singular_spectrum(e.a).angle(view(e.row)) / degree,
                      adaptive_step_length(at).geodesic / degree});
    }
    demo.csv("real", "mpi,angle_deg,psi_deg", real);

    const auto& settled = courses.back();
    fmt::print(
        "The step of Eq. 10 moves a row by the angle ψ with tan ψ = ‖g‖/ρ, with no step size to choose.\n"
        "Near v₁ it is (1 − κ²) of what is left: tan θ shrinks by κ² = {:.2f} a step.\n"
        "When the weights turn by δ = {:.2f}° between two steps and the row is written back (stateful), it "
        "settles\n"
        "{:.2f}° behind, and each step is {:.2f}° long: just what the weights moved. One step is enough to "
        "keep up;\n"
        "what stays behind is small as long as the weights change little between steps. The paper's router "
        "does not\n"
        "write back: there the gradient moves the row, and the step starts from it anew (theory_drift).\n",
        kappa * kappa, settled[0], settled[2], settled[4]);
    demo.figure("one_step",
                fmt::format("σ = 1, {}, 0.6 … 0.1 (D = F = 8); v₁ turns by δ between two steps", kappa));
    demo.figure("one_step-real",
                "the 32 stored rows of the two models of examples/data, D = 256; green: as in one_step");
  });
}
