// Directions beside a principal one whose images are known: what a probe need not look for.
#pragma once

#include <mpi_router/verify/lanczos.hpp>
#include <mpi_router/verify/widened.hpp>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

MPIROUTER_BEGIN

/// Directions near which M is known already: W, orthonormal and orthogonal to v̂. With B' = PMP, P = I − v̂v̂ᵀ,
/// split into W and the rest, λ_max(B') is at most the larger eigenvalue of [top, coupling; coupling, b], b
/// that of the rest: what is left to a probe is a matrix whose largest eigenvalues are known and gone.
struct neighbours {
  Eigen::MatrixXd directions;  ///< W, [D, m]
  double top = 0;              ///< at least λ_max(WᵀMW)
  double coupling = 0;         ///< at least ‖(I − v̂v̂ᵀ − WWᵀ)MW‖

  [[nodiscard]] bool exist() const { return directions.cols() > 0; }
  /// The bound for all beside v̂ from a bound b for the rest.
  [[nodiscard]] double bound(double b) const {
    return exist() ? (top + b) / 2 + std::hypot((top - b) / 2, coupling) : b;
  }
  /// The b for which that is `alpha`: −∞ where there is none.
  [[nodiscard]] double rest(double alpha) const {
    if (!exist()) {
      return alpha;
    }
    return alpha > top ? alpha - coupling / (alpha - top) * coupling
                       : -std::numeric_limits<double>::infinity();
  }
};

namespace detail {

/// The Ritz vectors of a Krylov space below its first that are worth the application of M, in double, that
/// each costs: those near an eigenvector, compared with the gap, whose removal saves a probe more than that.
template <class Krylov>
[[nodiscard]] Eigen::MatrixXd worthwhile(const Krylov& krylov, const Eigen::VectorXd& direction) {
  constexpr std::size_t most = 8;
  const auto pairs = krylov.all();
  const double first = pairs.empty() ? 0 : pairs.front().value;
  const auto steps = [&](std::size_t k) {
    return 10 / std::sqrt(std::max(1e-12, 1 - pairs[k].value / first));
  };
  std::vector<Eigen::VectorXd> found;
  for (std::size_t k = 1; k + 1 < pairs.size() && k <= most; ++k) {
    const bool is_near = pairs[k].residual <= 0.1 * (first - pairs[1].value);
    if (!is_near || (k > 1 && steps(k) - steps(k + 1) < 2)) {
      break;
    }
    found.push_back(krylov.vector(pairs[k]));
  }
  Eigen::MatrixXd w(direction.size(), 0);
  for (auto& x : found) {
    for (int twice = 0; twice < 2; ++twice) {
      x -= direction * direction.dot(x);
      x -= w * (w.transpose() * x);
      x.normalize();
    }
    w.conservativeResize(Eigen::NoChange, w.cols() + 1);
    w.rightCols(1) = x;
  }
  return w;
}

/// What M does to orthonormal directions beside v̂, with `slack` for the rounding error of each image. In
/// units of ρ: squares of what M does may leave the range of double.
template <GramOperator Op>
[[nodiscard]] neighbours measure(Op& op, const Eigen::VectorXd& direction, Eigen::MatrixXd w, double rayleigh,
                                 double slack) {
  neighbours beside;
  if (w.cols() == 0) {
    return beside;
  }
  Eigen::MatrixXd image = images_of(op, w) / rayleigh;
  const Eigen::MatrixXd inside = w.transpose() * image;
  image -= direction * (direction.transpose() * image) + w * inside;
  const auto largest = [](const Eigen::MatrixXd& symmetric) {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric, Eigen::EigenvaluesOnly);
    return solver.eigenvalues()[symmetric.rows() - 1];
  };
  const double error = slack * std::sqrt(static_cast<double>(w.cols()));
  beside.top = rayleigh * largest((inside + inside.transpose()) / 2) + error;
  beside.coupling = rayleigh * std::sqrt(std::max(0.0, largest(image.transpose() * image))) + error;
  beside.directions = std::move(w);
  return beside;
}

}  // namespace detail

MPIROUTER_END
