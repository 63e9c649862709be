// Drift: W changes while the row follows. Stateless and stateful tracking, and the angle floor of the latter.
#include "demonstration.hpp"

using namespace theory;

namespace {

/// An expert with singular values 1, κ and smaller ones, whose v₁ and v₂ have turned by an angle.
MatrixXd turned_expert(double kappa, double angle) {
  const VectorXd sigma{{1, kappa, 0.5 * kappa, 0.3 * kappa, 0.2 * kappa, 0.1 * kappa}};
  return sigma.asDiagonal() * plane_rotation(6, angle).transpose();
}

double behind(const VectorXd& row, double angle) {
  return angle_between(row, plane_rotation(6, angle).col(0));
}

double floor_of(double kappa, double delta) { return kappa * kappa * delta / (1 - kappa * kappa); }

/// The angle that stays between a stateful row and v₁.
double measured_floor(double kappa, double delta) {
  VectorXd row = VectorXd::Unit(6, 0);
  for (int time = 1; time <= 2000; ++time) {
    row = stepped(turned_expert(kappa, delta * time), row);
  }
  return behind(row, delta * 2000);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "drift", [](const demonstration& demo) {
    constexpr double kappa = 0.8;
    constexpr double delta = 0.5 * degree;
    const VectorXd trained = VectorXd{{0.8, 0.2, 0.3, 0.3, 0.2, 0.3}}.normalized();
    VectorXd tracked = trained;
    table course;
    for (int time = 0; time <= 160; ++time) {
      const MatrixXd a = turned_expert(kappa, delta * time);
      tracked = stepped(a, tracked);  // r′ is written back; else r stays, and r′ is made anew
      course.push_back({static_cast<double>(time), behind(trained, delta * time) / degree,
                        behind(stepped(a, trained), delta * time) / degree,
                        behind(tracked, delta * time) / degree});
    }
    demo.csv("course", "time,stored_deg,stateless_deg,stateful_deg", course);

    table floors;
    for (const double k : {0.5, 0.8, 0.9, 0.95}) {
      for (double d = 0.01; d < 1.5; d *= 2) {
        floors.push_back({k, d, floor_of(k, d * degree) / degree, measured_floor(k, d * degree) / degree});
      }
    }
    demo.csv("floor", "kappa,delta_deg,theory_deg,measured_deg", floors);

    fmt::print(
        "W turns by δ = {:.1f}° a time step; κ = σ₂/σ₁ = {:.1f}.\n"
        "Stateless: the stored row stays, and one step from it helps less and less: {:.0f}° off after 160.\n"
        "Stateful: the row is written back and follows, at {:.2f}° behind; κ²δ/(1 − κ²) = {:.2f}°.\n"
        "(In training the stored row of the stateless form is moved by its own gradient; here nothing trains "
        "it.)\n",
        delta / degree, kappa, course.back()[2], course.back()[3], floor_of(kappa, delta) / degree);
    demo.figure("drift",
                fmt::format("κ = {}, D = F = 6; v₁ turns by δ = {:.1f}° a time step", kappa, delta / degree));
    demo.figure("drift-floor", "D = F = 6; after 2000 steps, one for each turn by δ");
  });
}
