// Directions beside a principal one whose images are known: what a probe need not look for.
#pragma once

#include <mpi_router/verify/decompositions.hpp>
#include <mpi_router/verify/gram_in_double.hpp>
#include <mpi_router/verify/lanczos.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>
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
  constexpr index_t most = 8;
  const auto pairs = krylov.largest(most + 2);
  const double first = pairs.empty() ? 0 : pairs.front().value;
  const auto steps = [&](std::size_t k) {
    return 10 / std::sqrt(std::max(1e-12, 1 - pairs[k].value / first));
  };
  std::vector<Eigen::VectorXd> found;
  for (std::size_t k = 1; k + 1 < pairs.size(); ++k) {
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

/// Orthonormal directions and what M makes of them, in double: v̂ first, then its neighbours W. In units of ρ:
/// squares of what M does may leave the range of double.
struct known_images {
  Eigen::MatrixXd directions;  ///< [v̂ W], [D, 1 + m]
  Eigen::MatrixXd images;      ///< M of them / scale
  double scale = 1;            ///< ρ when they were taken

  /// Another v̂, of unit norm, with its image. What is left of the old span beside the part of v̂ in it are the
  /// neighbours, and their images follow.
  void turn_to(const Eigen::VectorXd& v, const Eigen::VectorXd& image) {
    // The reflection of e₁ to the coordinates of v̂: the other columns are orthogonal to them.
    Eigen::VectorXd reflection = (directions.transpose() * v).stableNormalized();
    const double sign = reflection[0] < 0 ? -1 : 1;
    reflection[0] += sign;
    const double half = reflection.squaredNorm() / 2;
    directions -= (directions * reflection / half) * reflection.transpose();
    images -= (images * reflection / half) * reflection.transpose();
    directions.col(0) = v;
    images.col(0) = image / scale;
    for (Eigen::Index k = 1; k < directions.cols(); ++k) {  // rounding
      for (Eigen::Index before = 0; before < k; ++before) {
        const double along = directions.col(before).dot(directions.col(k));
        directions.col(k) -= along * directions.col(before);
        images.col(k) -= along * images.col(before);
      }
      const double norm = directions.col(k).norm();
      directions.col(k) /= norm;
      images.col(k) /= norm;
    }
  }
  [[nodiscard]] Eigen::Index neighbours() const { return directions.cols() - 1; }
};

/// v̂ with its image, and W, orthogonal to it, with those it gets here: an application of M each.
template <GramOperator Op>
[[nodiscard]] known_images images_beside(Op& op, const Eigen::VectorXd& v, const Eigen::VectorXd& image,
                                         const Eigen::MatrixXd& w, double rayleigh) {
  known_images known{Eigen::MatrixXd(v.size(), 1 + w.cols()), Eigen::MatrixXd(v.size(), 1 + w.cols()),
                     rayleigh};
  known.directions << v, w;
  known.images.col(0) = image / rayleigh;
  if (w.cols() > 0) {
    known.images.rightCols(w.cols()) = images_of(op, w) / rayleigh;
  }
  return known;
}

/// The neighbours as a probe needs them, with `slack` for the rounding error of each image.
[[nodiscard]] inline neighbours measure(const known_images& known, double slack) {
  neighbours beside;
  const Eigen::Index m = known.neighbours();
  if (m <= 0) {
    return beside;
  }
  const auto w = known.directions.rightCols(m);
  const Eigen::MatrixXd inside = w.transpose() * known.images.rightCols(m);
  const Eigen::MatrixXd outside =
      known.images.rightCols(m) -
      known.directions * (known.directions.transpose() * known.images.rightCols(m));
  const auto largest = [](const Eigen::MatrixXd& symmetric) {
    const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(symmetric, Eigen::EigenvaluesOnly);
    return solver.eigenvalues()[symmetric.rows() - 1];
  };
  const double error = slack * std::sqrt(static_cast<double>(m));
  beside.top = known.scale * largest((inside + inside.transpose()) / 2) + error;
  beside.coupling = known.scale * std::sqrt(std::max(0.0, largest(outside.transpose() * outside))) + error;
  beside.directions = w;
  return beside;
}

}  // namespace detail

MPIROUTER_END
