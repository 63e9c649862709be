// The largest eigenvalues of a symmetric tridiagonal matrix, and a vector to each: what a Krylov space is
// asked for after every few steps.
#pragma once

#include <mpi_router/core/config.hpp>
#include <mpi_router/verify/decompositions.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

/// T of n rows, with its diagonal and what lies beside it, n and n − 1 elements.
struct tridiagonal {
  Eigen::Ref<const Eigen::VectorXd> diagonal;
  Eigen::Ref<const Eigen::VectorXd> beside;

  [[nodiscard]] Eigen::Index rows() const { return diagonal.size(); }
  [[nodiscard]] bool is_finite() const { return diagonal.allFinite() && beside.allFinite(); }
};

/// An upper bound on all eigenvalues.
[[nodiscard]] inline double gershgorin(const tridiagonal& t) {
  double right = 0;
  for (Eigen::Index k = 0; k < t.rows(); ++k) {
    right =
        std::max(right, t.diagonal[k] + (k > 0 ? t.beside[k - 1] : 0) + (k + 1 < t.rows() ? t.beside[k] : 0));
  }
  return right;
}

/// The largest eigenvalue of a finite T ≥ 0 with nothing negative beside the diagonal. Laguerre's method on
/// det(xI − T) from Gershgorin's bound: from the right of all roots, which are real, it falls monotonically
/// to the largest, and cubically at the end. O(n), a tenth of the time of all eigenvalues by QR.
[[nodiscard]] inline double largest_eigenvalue(const tridiagonal& t) {
  double x = gershgorin(t);
  const auto n = static_cast<double>(t.rows());
  for (int iteration = 0; iteration < 60; ++iteration) {
    // Pivots of xI − T, their first and second derivatives; g = Σ 1/(x − λ), h = Σ 1/(x − λ)².
    double pivot = x - t.diagonal[0], first = 1, second = 0;
    bool positive = pivot > 0;
    double g = 1 / pivot;
    double h = g * g;
    for (Eigen::Index k = 1; k < t.rows(); ++k) {
      const double b = t.beside[k - 1] / pivot;
      const double slope = first / pivot;
      second = b * b * (second - 2 * first * slope);
      first = 1 + b * b * first;
      pivot = x - t.diagonal[k] - b * t.beside[k - 1];
      positive = positive && pivot > 0;
      g += first / pivot;
      h += (first / pivot) * (first / pivot) - second / pivot;
    }
    const double step = n / (g + std::sqrt(std::max(0.0, (n - 1) * (n * h - g * g))));
    // A pivot that is not positive says that x has reached the eigenvalue, to rounding.
    if (!positive || !(step > 2 * std::numeric_limits<double>::epsilon() * x)) {
      break;
    }
    x -= step;
  }
  return x;
}

/// The `count` largest eigenvalues, or all if there are fewer, the largest first. O(n²).
[[nodiscard]] inline std::vector<double> largest_eigenvalues(const tridiagonal& t, Eigen::Index count) {
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
  solver.computeFromTridiagonal(t.diagonal, t.beside, Eigen::EigenvaluesOnly);
  const Eigen::VectorXd falling = solver.eigenvalues().reverse();
  return {falling.begin(), falling.begin() + std::min(count, falling.size())};
}

/// The unit eigenvector of an eigenvalue that is known to rounding: T − θI is eliminated from both ends, and
/// the vector grows from where the two leave least (the twisted factorisation of Parlett and Dhillon, 1997).
/// Small elements are right to many digits too. O(n).
[[nodiscard]] inline Eigen::VectorXd eigenvector(const tridiagonal& t, double theta) {
  const Eigen::Index n = t.rows();
  const double least = std::numeric_limits<double>::min() + 1e-30 * std::abs(theta);
  const auto pivot = [&](Eigen::Index k, double taken) {
    const double left = t.diagonal[k] - theta - taken;
    return std::abs(left) > least ? left : least;
  };
  Eigen::VectorXd down(n), up(n), y(n);
  for (Eigen::Index k = 0; k < n; ++k) {
    down[k] = pivot(k, k > 0 ? t.beside[k - 1] / down[k - 1] * t.beside[k - 1] : 0);
  }
  for (Eigen::Index k = n - 1; k >= 0; --k) {
    up[k] = pivot(k, k + 1 < n ? t.beside[k] / up[k + 1] * t.beside[k] : 0);
  }
  Eigen::Index twist = 0;
  (down + up - (t.diagonal.array() - theta).matrix()).cwiseAbs().minCoeff(&twist);
  y[twist] = 1;
  for (Eigen::Index k = twist; k > 0; --k) {
    y[k - 1] = -t.beside[k - 1] / down[k - 1] * y[k];
  }
  for (Eigen::Index k = twist; k + 1 < n; ++k) {
    y[k + 1] = -t.beside[k] / up[k + 1] * y[k];
  }
  return y.stableNormalized();
}

}  // namespace detail

MPIROUTER_END
