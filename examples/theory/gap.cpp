// The gap 1 − κ: why a repeated σ₁ has no direction to find, and what the certificate says then.
#include "demonstration.hpp"

#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/trace_ladder.hpp>

#include <Eigen/QR>

using namespace theory;

namespace {

MatrixXd random_orthogonal(index_t size, std::uint64_t seed) {
  return Eigen::HouseholderQR<MatrixXd>(gaussian(size, size, seed)).householderQ();
}

struct outcome {
  VectorXd direction;
  certificate proof;
};

/// Iterates from a start until the residual has vanished or patience has, and certifies what is there.
outcome search(const MatrixXd& a, const second_eigenvalue_bound& bound, VectorXd row) {
  VectorXd workspace(row.size());
  power_iteration(gram(a), view(row), view(workspace), {.max_steps = 3000, .residual_tolerance = 1e-12});
  const auto at = rayleigh(gram(a), view(row), view(workspace));
  constexpr double slack = 1e-14;  // rounding of ‖g‖, for σ₁ = 1 and 10 dimensions
  return {row, certify(at, bound, slack)};
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "gap", [](const demonstration& demo) {
    const MatrixXd left = random_orthogonal(10, 18);
    const MatrixXd right = random_orthogonal(10, 17);  // v₁, v₂, …: turned, so that there is rounding
    const VectorXd one = right * VectorXd{{0.3, 0.5, 0.4, -0.3, 0.2, 0.4, -0.2, 0.1, 0.3, -0.3}};
    const VectorXd other = right * VectorXd{{0.4, -0.2, 0.3, 0.3, -0.4, 0.2, 0.5, -0.1, 0.2, 0.3}};
    table certificates;
    double nearest = 1;
    for (int exponent = 1; exponent <= 31; ++exponent) {
      const double gap = exponent == 31 ? 0 : std::pow(10.0, -0.5 * exponent);
      VectorXd sigma = VectorXd::Constant(10, 0.3);
      sigma.head(2) << 1, 1 - gap;
      const MatrixXd a = left * sigma.asDiagonal() * right.transpose();
      const auto bound = trace_ladder(a).bound;
      const auto first = search(a, bound, one);
      const auto second = search(a, bound, other);
      const bool proven = first.proof.label == certainty::rigorous;
      nearest = proven && gap > 0 ? gap : nearest;
      certificates.push_back({gap, angle_between(first.direction, second.direction) / degree,
                              gap > 0 ? angle_between(first.direction, right.col(0)) / degree : no_number,
                              first.proof.angle_bound / degree, proven ? 1.0 : 0.0, first.proof.sigma_low,
                              proven ? first.proof.sigma_high : no_number});
    }
    demo.csv("certificates", "gap,apart_deg,angle_deg,bound_deg,rigorous,sigma_low,sigma_high", certificates);

    const auto& last = certificates.back();
    fmt::print(
        "σ₁ = 1, so κ = σ₂, and the gap is 1 − κ. Two starts, up to 3000 steps each, and a certificate "
        "without an SVD.\n"
        "Down to a gap of about {:.0e} the proof says how near to v₁ the row is. Below, the bound on σ₂ "
        "cannot be told\n"
        "from σ₁ by rounding, and the certificate claims nothing of the angle: label '{}', bound 90°.\n"
        "At σ₂ = σ₁ the two starts end {:.0f}° apart, each with no residual: every direction of that plane "
        "is\n"
        "principal, so there is no one direction to find. What is still proven is σ₁ ≥ {:.6f}.\n",
        nearest, to_string(certainty::none), last[1], last[5]);
    demo.figure("gap", "σ₁ = 1, σ₂ = κ, the others 0.3 (D = F = 10); two starts, at most 3000 steps each");
  });
}
