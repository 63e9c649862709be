// The Krylov space of M from one start: what a verifier in a hurry searches and probes in.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/verify/tridiagonal.hpp>

#include <Eigen/Core>

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
    const auto t = matrix();
    return pair_at(t.is_finite() && is_finite(off_diagonal_[steps_ - 1])
                       ? detail::largest_eigenvalue(t)
                       : std::numeric_limits<double>::quiet_NaN());
  }
  /// The `count` largest, or all if there are fewer, the largest first; none before the first step, or where
  /// the operator gave what is not finite. O(k²).
  [[nodiscard]] std::vector<ritz_pair> largest(index_t count) const {
    std::vector<ritz_pair> pairs;
    if (steps_ > 0 && diagonal().allFinite() && off_diagonal().allFinite()) {
      for (const double theta : detail::largest_eigenvalues(matrix(), count)) {
        pairs.push_back(pair_at(theta));
      }
    }
    return pairs;
  }

  /// The basis, [D, steps].
  [[nodiscard]] auto vectors() const { return basis_.middleCols(first_, steps_); }
  /// The diagonal of T/scale, and what each step left: T beside its diagonal and, last, what couples the
  /// space to the rest.
  [[nodiscard]] auto diagonal() const { return diagonal_.head(steps_); }
  [[nodiscard]] auto off_diagonal() const { return off_diagonal_.head(steps_); }
  [[nodiscard]] double scale() const noexcept { return scale_; }

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
    return (vectors().template cast<double>() * pair.coordinates).normalized();
  }
  /// The same where the space began at `first`, of which the basis holds what S can.
  [[nodiscard]] Eigen::VectorXd vector(const ritz_pair& pair, const Eigen::VectorXd& first) const {
    const auto& y = pair.coordinates;
    return (y[0] * first +
            basis_.middleCols(first_ + 1, steps_ - 1).template cast<double>() * y.tail(steps_ - 1))
        .normalized();
  }

 private:
  /// T/scale.
  [[nodiscard]] detail::tridiagonal matrix() const {
    return {diagonal_.head(steps_), off_diagonal_.head(steps_ - 1)};
  }
  [[nodiscard]] ritz_pair pair_at(double theta) const {
    Eigen::VectorXd y = detail::eigenvector(matrix(), theta);
    const double outside = scale_ * off_diagonal_[steps_ - 1] * std::abs(y[steps_ - 1]);
    return {scale_ * theta, outside, std::move(y)};
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

namespace detail {

/// Whether Ritz value k is an eigenvalue to some 2e-6 of ρ: it is within its residual of one, and nearer,
/// quadratically, where the next is away.
[[nodiscard]] inline bool has_settled(const std::vector<ritz_pair>& pairs, std::size_t k, double rayleigh) {
  if (pairs.size() <= k) {
    return false;
  }
  const double next = pairs.size() > k + 1 ? pairs[k + 1].value : 0;
  const double residual = pairs[k].residual;
  return std::min(residual, residual / (pairs[k].value - next) * residual) <= 2e-6 * rayleigh;
}

}  // namespace detail

MPIROUTER_END
