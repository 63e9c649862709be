// The Krylov space of M from one start: what a verifier in a hurry searches and probes in.
#pragma once

#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Eigenvalues>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

MPIROUTER_BEGIN

/// A Ritz value, how far its vector x is from an eigenvector, ‖Mx − θx‖, and its coordinates in the basis.
/// NaN where the operator gave what is not finite.
struct ritz_pair {
  double value = 0;
  double residual = 0;
  Eigen::VectorXd coordinates;
};

/// Lanczos tridiagonalisation of a symmetric positive semidefinite operator, in the space orthogonal to given
/// vectors. After k steps QᵀMQ is tridiagonal, and its largest eigenvalue, the Ritz value, is the largest
/// Rayleigh quotient in the Krylov space span{q, Mq, …, M^{k−1}q}. Every new vector is made orthogonal to all
/// before it, so that no eigenvalue appears twice. Owns (capacity + 1 + deflated) · D elements. One
/// application of M a step.
template <Accumulator S>
class lanczos {
 public:
  using column = Eigen::Matrix<S, Eigen::Dynamic, 1>;

  /// `scale` is a number of the size of the eigenvalues, ρ say.
  lanczos(index_t dimension, index_t capacity, double scale = 1, index_t deflated = 1)
      : basis_(dimension, capacity + 1 + deflated),
        diagonal_(capacity),
        off_diagonal_(capacity),
        scale_(scale) {}

  /// Excludes orthonormal columns from the space, no more than the constructor was told of, before start().
  template <class Columns>
  void deflate(const Eigen::MatrixBase<Columns>& v) {
    first_ = v.cols();
    basis_.leftCols(first_) = v.template cast<S>();
  }

  /// Begins anew from x, which needs no norm. False if nothing of x is left, or it is not finite.
  bool start(column x) {
    steps_ = 0;
    return append(x, 0) > 0;
  }
  /// Begins anew with the first step done, from a unit x and Mx = ρx + g, ⟨g, x⟩ = 0, in double: S may be
  /// coarse then, for what is small beside x is all that it holds. `scale` is ρ from here on. Nothing is
  /// deflated. False where g is zero or not finite.
  bool start(const Eigen::VectorXd& x, const Eigen::VectorXd& g, double rayleigh) {
    const double norm = g.stableNorm();
    const bool more = norm > 0 && is_finite(norm / rayleigh) && basis_.rows() > 1;
    first_ = 0;
    steps_ = 1;
    scale_ = rayleigh;
    basis_.col(0) = x.template cast<S>();
    diagonal_[0] = 1;
    off_diagonal_[0] = more ? norm / rayleigh : 0;
    if (more) {
      basis_.col(1) = (g / norm).template cast<S>();
    }
    return more;
  }

  /// One more application. False once the space is exhausted: then the Ritz values are eigenvalues.
  template <GramOperator Op>
  bool step(Op& op) {
    image_.resize(basis_.rows());
    const auto newest = basis_.col(first_ + steps_);
    diagonal_[steps_] = static_cast<double>(op.apply(view(newest), view(image_))) / scale_;
    // The recurrence first: what is left of it is all but orthogonal, and one pass over the basis makes it
    // so.
    image_ -= newest * static_cast<S>(diagonal_[steps_] * scale_);
    if (steps_ > 0) {
      image_ -= basis_.col(first_ + steps_ - 1) * static_cast<S>(off_diagonal_[steps_ - 1] * scale_);
    }
    ++steps_;
    off_diagonal_[steps_ - 1] = append(image_, scale_) / scale_;
    return off_diagonal_[steps_ - 1] > 0;
  }

  [[nodiscard]] index_t steps() const noexcept { return steps_; }
  /// Whether step() has something to go on with.
  [[nodiscard]] bool can_grow() const {
    return steps_ < capacity() && (steps_ == 0 || off_diagonal_[steps_ - 1] > 0);
  }
  [[nodiscard]] index_t capacity() const noexcept { return diagonal_.size(); }

  /// The largest. O(k).
  [[nodiscard]] ritz_pair top() const {
    const double theta = largest_eigenvalue();
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

  /// The diagonal of T/scale, and what each step left: T beside its diagonal and, last, what couples the
  /// space to the rest.
  [[nodiscard]] auto diagonal() const { return diagonal_.head(steps_); }
  [[nodiscard]] auto off_diagonal() const { return off_diagonal_.head(steps_); }
  [[nodiscard]] double scale() const noexcept { return scale_; }

  /// All Ritz pairs, the largest first; none before the first step, or where the operator gave what is not
  /// finite. O(k³).
  [[nodiscard]] std::vector<ritz_pair> all() const {
    if (steps_ == 0 || !diagonal().allFinite() || !off_diagonal().allFinite()) {
      return {};
    }
    Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
    solver.computeFromTridiagonal(diagonal_.head(steps_), off_diagonal_.head(steps_ - 1));
    std::vector<ritz_pair> pairs;
    for (index_t k = steps_ - 1; k >= 0; --k) {
      const auto y = solver.eigenvectors().col(k);
      pairs.push_back({scale_ * solver.eigenvalues()[k],
                       scale_ * off_diagonal_[steps_ - 1] * std::abs(y[steps_ - 1]), y});
    }
    return pairs;
  }

  /// log(|det(xI − T)| / Πβ_k) for an x above all Ritz values, β_k the norms that the steps left (see
  /// probe.hpp). O(k).
  [[nodiscard]] double log_level(double x) const {
    x /= scale_;
    const double least =
        static_cast<double>(std::numeric_limits<S>::epsilon()) * static_cast<double>(basis_.rows());
    double level = 0;
    double pivot = 1;
    for (index_t k = 0; k < steps_; ++k) {
      pivot = x - diagonal_[k] - (k > 0 ? off_diagonal_[k - 1] / pivot * off_diagonal_[k - 1] : 0);
      level +=
          std::log(pivot / std::max(off_diagonal_[k], least));  // what is left after the last step may be 0
    }
    return level;
  }

  /// The Ritz vector, in double, unit norm.
  [[nodiscard]] Eigen::VectorXd vector(const ritz_pair& pair) const {
    return (basis_.middleCols(first_, steps_).template cast<double>() * pair.coordinates).normalized();
  }
  /// The same where the space began at `first`, of which the basis holds what S can.
  [[nodiscard]] Eigen::VectorXd vector(const ritz_pair& pair, const Eigen::VectorXd& first) const {
    const auto& y = pair.coordinates;
    return (y[0] * first +
            basis_.middleCols(first_ + 1, steps_ - 1).template cast<double>() * y.tail(steps_ - 1))
        .normalized();
  }

 private:
  // Laguerre's method on det(xI − T) from Gershgorin's bound: from the right of all roots, which are real, it
  // falls monotonically to the largest, and cubically at the end. A tenth of the time of all eigenvalues by
  // QR.
  [[nodiscard]] double largest_eigenvalue() const {
    double x = 0;
    for (index_t k = 0; k < steps_; ++k) {
      const double right =
          diagonal_[k] + (k > 0 ? off_diagonal_[k - 1] : 0) + (k + 1 < steps_ ? off_diagonal_[k] : 0);
      if (!is_finite(right) || !is_finite(off_diagonal_[k])) {
        return std::numeric_limits<double>::quiet_NaN();
      }
      x = std::max(x, right);
    }
    const auto n = static_cast<double>(steps_);
    for (int iteration = 0; iteration < 60; ++iteration) {
      // Pivots of xI − T, their first and second derivatives; g = Σ 1/(x − λ), h = Σ 1/(x − λ)².
      double pivot = x - diagonal_[0], first = 1, second = 0;
      bool positive = pivot > 0;
      double g = 1 / pivot;
      double h = g * g;
      for (index_t k = 1; k < steps_; ++k) {
        const double b = off_diagonal_[k - 1] / pivot;
        const double slope = first / pivot;
        second = b * b * (second - 2 * first * slope);
        first = 1 + b * b * first;
        pivot = x - diagonal_[k] - b * off_diagonal_[k - 1];
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

  static double norm_of(const column& x) {
    const auto norm = static_cast<double>(x.norm());
    constexpr auto least =
        static_cast<double>(std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon());
    return norm * norm > least && is_finite(norm) ? norm : static_cast<double>(x.stableNorm());
  }

  // Makes x orthogonal to the basis and appends it, normalised. Returns its norm; 0 if what was left is the
  // rounding error of x, or of numbers of size `scale`; NaN if x is not finite.
  double append(column& x, double scale) {
    const auto known = basis_.leftCols(first_ + steps_);
    const double before = norm_of(x);
    const auto make_orthogonal = [&] {
      coefficients_.noalias() = known.transpose() * x;
      x.noalias() -= known * coefficients_;
      return norm_of(x);
    };
    double norm = make_orthogonal();
    if (norm < 0.3 * before) {  // much was taken away: once more, and what shrinks again was rounding error
      const double once = norm;
      norm = make_orthogonal();
      if (norm < 0.5 * once) {
        return 0;
      }
    }
    const double rounding =
        static_cast<double>(std::numeric_limits<S>::epsilon()) * static_cast<double>(basis_.rows());
    if (!is_finite(norm)) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    if (norm <= rounding * std::max(before, scale) || steps_ + first_ >= basis_.rows()) {
      return 0;
    }
    basis_.col(first_ + steps_) = x / static_cast<S>(norm);
    return norm;
  }

  Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic> basis_;
  Eigen::VectorXd diagonal_;
  Eigen::VectorXd off_diagonal_;
  column image_;
  column coefficients_;
  double scale_;
  index_t first_ = 0;
  index_t steps_ = 0;
};

MPIROUTER_END
