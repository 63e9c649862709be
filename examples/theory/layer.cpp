// The step, as the first page shows it: where it stands in a layer of experts, and what it does to one row.
#include "demonstration.hpp"

using namespace theory;

namespace {

const VectorXd row = VectorXd{{0.35, 0.35, 0.87}}.normalized();

/// σ = 1, 0.75, 0.4; v₁, v₂, v₃ are the axes, so that the picture has a top.
MatrixXd expert() { return VectorXd{{1, 0.75, 0.4}}.asDiagonal(); }

double angle_of(const VectorXd& direction) { return angle_between(direction, VectorXd::Unit(3, 0)) / degree; }

std::vector<double> point(const VectorXd& at) { return {at[0], at[1], at[2]}; }

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "layer", [](const demonstration& demo) {
    const MatrixXd a = expert();
    demo.csv("landscape", "v1,v2,v3,rho", landscape(a, 15, 0));  // −r is the line of r

    const double rho = quotient(a, row);
    const VectorXd ascent = a.transpose() * (a * row) / rho;  // r̂ + g/ρ = r̂M/ρ, on the tangent at r̂
    const VectorXd next = stepped(a, row);
    demo.csv("points", "v1,v2,v3", {point(row), point(ascent), point(next)});
    table arc;
    for (int k = 0; k <= 12; ++k) {
      arc.push_back(point((row + k / 12.0 * (ascent - row)).normalized()));
    }
    demo.csv("arc", "v1,v2,v3", arc);

    fmt::print(
        "One step turns the row from {:.0f}° to {:.0f}° from v₁: ρ, how strongly the expert responds to "
        "tokens "
        "along it,\ngoes from {:.2f} to {:.2f} of σ₁². The ascent r̂ + g/ρ leaves the sphere, and the "
        "retraction "
        "brings it back\nalong its radius.\n",
        angle_of(row), angle_of(next), rho, quotient(a, next));
    demo.figure("layer",
                fmt::format("below: σ = 1, 0.75, 0.4 (D = 3), C = 1; from {:.0f}° to {:.0f}° from v₁",
                            angle_of(row), angle_of(next)));
  });
}
