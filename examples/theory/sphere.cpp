// The sphere: where the ascent of Eq. 9 walks on the landscape of ρ, how its steps depend on η, and MPI,
// which has no η to choose.
#include "demonstration.hpp"

#include <mpi_router/manifold/steepest_ascent.hpp>

using namespace theory;

namespace {

constexpr int patience = 1000;   // steps, after which a row is taken never to arrive
constexpr double mpi = 0;        // in place of an η: the power step
constexpr double adaptive = -1;  // in place of an η: 1/ρ

const VectorXd start = VectorXd{{0.12, 0.35, 0.93}}.normalized();

/// σ = 1, 0.75, 0.4 times `scale`; v₁, v₂, v₃ are the axes, so that the picture has a top.
MatrixXd expert(double scale = 1) { return scale * VectorXd{{1, 0.75, 0.4}}.asDiagonal().toDenseMatrix(); }

double angle_of(const VectorXd& row) { return angle_between(row, VectorXd::Unit(3, 0)) / degree; }

/// The rows from the start until one is within 1° of v₁, by r̂ + ηg, retracted (Eq. 9).
std::vector<VectorXd> walk(const MatrixXd& a, double eta) {
  std::vector<VectorXd> rows{start};
  while (angle_of(rows.back()) >= 1 && rows.size() <= patience) {
    const VectorXd& row = rows.back();
    rows.push_back(eta == mpi ? stepped(a, row)
                              : ascended(a, row, eta == adaptive ? adaptive_step(quotient(a, row)) : eta));
  }
  return rows;
}

/// No number where the row does not arrive.
double steps_of(const std::vector<VectorXd>& rows) {
  return angle_of(rows.back()) < 1 ? static_cast<double>(rows.size() - 1) : no_number;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "sphere", [](const demonstration& demo) {
    demo.csv("landscape", "v1,v2,v3,rho", landscape(expert(), 10));
    table path;
    fmt::print("Steps from {:.0f}° until within 1° of v₁; and with doubled weights (nan: never):\n",
               angle_of(start));
    for (double rule = 0; const double eta : {mpi, adaptive, 0.05, 0.5, 1.5, 2.0, 2.5}) {
      const auto rows = walk(expert(), eta);
      for (double k = 0; const VectorXd& row : rows) {
        path.push_back({rule, k++, row[0], row[1], row[2], quotient(expert(), row), angle_of(row)});
      }
      const auto name = eta == mpi ? "MPI" : eta == adaptive ? "η = 1/ρ" : fmt::format("η = {}", eta);
      fmt::print("  {:<10} {:>5.0f} {:>5.0f}\n", name, steps_of(rows), steps_of(walk(expert(2), eta)));
      ++rule;
    }
    demo.csv("path", "rule,step,v1,v2,v3,rho,angle_deg", path);
    table steps;
    for (double eta = 0.02; eta < 4; eta *= 1.04) {
      steps.push_back({eta, steps_of(walk(expert(), eta)), steps_of(walk(expert(2), eta)),
                       steps_of(walk(expert(), mpi)), steps_of(walk(expert(2), mpi))});
    }
    demo.csv("steps", "eta,steps,steps_doubled,mpi,mpi_doubled", steps);
    fmt::print("A fixed η is faster, slower, or never arrives, by σ₁; MPI is η = 1/ρ and needs neither.\n");
    const auto parameters = fmt::format("σ = 1, 0.75, 0.4 (D = 3); start {:.0f}° from v₁", angle_of(start));
    demo.figure("sphere", parameters);
    demo.figure("sphere-steps", parameters + "; doubled weights keep their η");
  });
}
