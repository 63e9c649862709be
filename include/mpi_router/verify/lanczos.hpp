// The Krylov space of M from one start: what a verifier in a hurry searches and probes in.
#pragma once

#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Eigenvalues>

#include <limits>
#include <utility>

MPIROUTER_BEGIN

/// Lanczos tridiagonalisation of a symmetric positive semidefinite operator, in the space orthogonal to given
/// vectors. After k steps QᵀMQ is tridiagonal, and its largest eigenvalue, the Ritz value, is the largest
/// Rayleigh quotient in the Krylov space span{q, Mq, …, M^{k−1}q}. Every new vector is made orthogonal to all
/// before it, so that no eigenvalue appears twice. Owns (capacity + deflated) · D elements. One application
/// of M a step.
template <Accumulator S>
class lanczos {
 public:
  using column = Eigen::Matrix<S, Eigen::Dynamic, 1>;

  /// The largest Ritz value, how far its vector is from an eigenvector, ‖Mx − θx‖, and its coordinates in the
  /// basis.
  struct ritz_pair {
    double value = 0;
    double residual = 0;
    Eigen::VectorXd coordinates;
  };

  /// `scale` is a number of the size of the eigenvalues, ρ say.
  lanczos(index_t dimension, index_t capacity, double scale = 1)
      : basis_(dimension, capacity + 2), diagonal_(capacity), off_diagonal_(capacity), scale_(scale) {}

  /// Excludes a unit vector from the space. At most one, before start().
  void deflate(const column& v) {
    basis_.col(0) = v;
    first_ = 1;
  }

  /// Begins anew from x, which needs no norm. False if nothing of x is left, or it is not finite.
  bool start(column x) {
    steps_ = 0;
    return append(x, static_cast<double>(x.stableNorm())) > 0;
  }

  /// One more application. False once the space is exhausted: then the Ritz values are eigenvalues.
  template <GramOperator Op>
  bool step(Op& op) {
    image_.resize(basis_.rows());
    const auto newest = basis_.col(first_ + steps_);
    diagonal_[steps_] = static_cast<double>(op.apply(view(newest), view(image_))) / scale_;
    ++steps_;
    off_diagonal_[steps_ - 1] = append(image_, static_cast<double>(image_.stableNorm())) / scale_;
    return off_diagonal_[steps_ - 1] > 0;
  }

  [[nodiscard]] index_t steps() const noexcept { return steps_; }
  [[nodiscard]] index_t capacity() const noexcept { return diagonal_.size(); }

  /// O(k²).
  [[nodiscard]] ritz_pair top() const {
    Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
    solver.computeFromTridiagonal(diagonal_.head(steps_), off_diagonal_.head(steps_ - 1),
                                  Eigen::EigenvaluesOnly);
    const double theta = solver.eigenvalues()[steps_ - 1];
    // The coordinates fall off toward the last one; upward from there the recurrence is stable.
    Eigen::VectorXd y = Eigen::VectorXd::Zero(steps_);
    y[steps_ - 1] = 1;
    for (index_t k = steps_ - 1; k > 0; --k) {
      const double after = k + 1 < steps_ ? off_diagonal_[k] * y[k + 1] : 0;
      y[k - 1] = ((theta - diagonal_[k]) * y[k] - after) / off_diagonal_[k - 1];
      if (std::abs(y[k - 1]) > 1e100) {
        y *= 1e-100;
      }
    }
    y.normalize();
    return {scale_ * theta, scale_ * off_diagonal_[steps_ - 1] * std::abs(y[steps_ - 1]), y};
  }

  /// The Ritz vector, in double, unit norm.
  [[nodiscard]] Eigen::VectorXd vector(const ritz_pair& pair) const {
    return (basis_.middleCols(first_, steps_).template cast<double>() * pair.coordinates).normalized();
  }

 private:
  // Makes x orthogonal to the basis and appends it, normalised. Returns its norm; 0 if only rounding was left
  // of `before`.
  double append(column& x, double before) {
    const auto known = basis_.leftCols(first_ + steps_);
    x.noalias() -= known * (known.transpose() * x).eval();
    double norm = static_cast<double>(x.stableNorm());
    if (norm < 0.1 * before) {  // much was taken away, and its rounding is still there
      x.noalias() -= known * (known.transpose() * x).eval();
      norm = static_cast<double>(x.stableNorm());
    }
    constexpr double epsilon = std::numeric_limits<S>::epsilon();
    if (!(norm > 4 * epsilon * before) || !is_finite(norm) || steps_ + first_ >= basis_.rows()) {
      return 0;
    }
    basis_.col(first_ + steps_) = x / static_cast<S>(norm);
    return norm;
  }

  Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic> basis_;
  Eigen::VectorXd diagonal_;
  Eigen::VectorXd off_diagonal_;
  column image_;
  double scale_;
  index_t first_ = 0;
  index_t steps_ = 0;
};

MPIROUTER_END
