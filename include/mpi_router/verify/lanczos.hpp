// The Krylov space of M from one start, in which directions are searched and probed.
#pragma once

#include <mpi_router/verify/krylov_basis.hpp>

#include <mpi_router/verify/tridiagonal.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <array>
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
/// before it, so that no eigenvalue appears twice. Owns (capacity + 1 + deflated) · D elements, where `Basis`
/// keeps them. One application of M a step.
template <Accumulator S, class Basis = krylov_basis<S>>
class lanczos {
 public:
  using column = typename Basis::column;

  /// `scale` is a number of the size of the eigenvalues, ρ say.
  lanczos(index_t dimension, index_t capacity, double scale = 1, index_t deflated = 1)
      : lanczos(Basis(dimension, capacity + 1 + deflated), capacity, scale) {}
  /// In a basis with room for capacity + 1 vectors beside the deflated ones.
  lanczos(Basis basis, index_t capacity, double scale)
      : basis_(std::move(basis)), diagonal_(capacity), off_diagonal_(capacity), scale_(scale) {}

  /// Excludes orthonormal columns from the space, no more than the constructor was told of, before start().
  template <class Columns>
  void deflate(const Eigen::MatrixBase<Columns>& v) {
    basis_.deflate(v);
    deflated_ = v.cols();
  }

  /// Begins anew from x, which needs no norm. False if nothing of x is left, or it is not finite.
  bool start(column x) {
    steps_ = 0;
    return basis_.start(std::move(x)) > 0;
  }
  /// Begins anew with the first step done, from a unit x and Mx = ρx + g, ⟨g, x⟩ = 0, in double: S may be
  /// coarse then, for what is small beside x is all that it holds. `scale` is ρ from here on. Nothing is
  /// deflated. False where g is zero or not finite.
  bool start(const Eigen::VectorXd& x, const Eigen::VectorXd& g, double rayleigh) {
    const double norm = g.stableNorm();
    const bool more = norm > 0 && is_finite(norm / rayleigh) && basis_.dimension() > 1;
    basis_.deflate(Eigen::MatrixXd(x.size(), 0));
    deflated_ = 0;
    steps_ = 1;
    scale_ = rayleigh;
    basis_.set(0, x);
    diagonal_[0] = 1;
    off_diagonal_[0] = more ? norm / rayleigh : 0;
    if (more) {
      basis_.set(1, g / norm);
    }
    return more;
  }

  /// One more application. False once the space is exhausted, as far as S can tell: then the Ritz values are
  /// eigenvalues to within ε·D of `scale`, of which their residuals tell.
  template <GramOperator Op>
  bool step(Op& op) {
    const auto [along, left] = basis_.step(op, steps_, scale_, steps_ > 0 ? off_diagonal_[steps_ - 1] : 0);
    diagonal_[steps_] = along;
    off_diagonal_[steps_++] = left;
    return off_diagonal_[steps_ - 1] > 0;
  }

  /// What the next step multiplies, where the basis lies in memory.
  [[nodiscard]] auto newest() const
    requires requires(const Basis& basis) { basis.vector(index_t{}); }
  {
    return basis_.vector(steps_);
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

  /// The basis, [D, steps], in double.
  [[nodiscard]] Eigen::MatrixXd vectors() const {
    if constexpr (requires { basis_.vector(index_t{}); }) {
      return basis_.vectors(steps_);
    } else {
      Eigen::MatrixXd q(basis_.dimension(), steps_);
      for (index_t k = 0; k < steps_; ++k) {
        q.col(k) = basis_.combine(0, Eigen::VectorXd::Unit(steps_, k));
      }
      return q;
    }
  }
  /// The diagonal of T/scale, and what each step left: T beside its diagonal and, last, what couples the
  /// space to the rest.
  [[nodiscard]] auto diagonal() const { return diagonal_.head(steps_); }
  [[nodiscard]] auto off_diagonal() const { return off_diagonal_.head(steps_); }
  [[nodiscard]] double scale() const noexcept { return scale_; }
  /// What couples the space to the rest, relative to `scale`, at most: what the last step left or, where that
  /// was nothing but rounding to S, that. 0 where the space is all there is.
  [[nodiscard]] double left_outside() const {
    const double left = off_diagonal_[steps_ - 1];
    return left == 0 && deflated_ + steps_ < basis_.dimension() ? rounding() : left;
  }

  /// log(|det(xI − T)| / Πβ_k) for an x above all Ritz values, β_k the norms that the steps left (see
  /// probe.hpp). O(k).
  [[nodiscard]] double log_level(double x) const {
    x /= scale_;
    const double least = rounding();
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
    return basis_.combine(0, pair.coordinates).normalized();
  }
  /// The same where the space began at `first`, of which the basis holds what S can.
  [[nodiscard]] Eigen::VectorXd vector(const ritz_pair& pair, const Eigen::VectorXd& first) const {
    const auto& y = pair.coordinates;
    return (y[0] * first + basis_.combine(1, y.tail(steps_ - 1))).normalized();
  }

 private:
  /// What a step cannot tell from nothing, relative to `scale`.
  [[nodiscard]] double rounding() const {
    return static_cast<double>(std::numeric_limits<S>::epsilon()) * static_cast<double>(basis_.dimension());
  }
  /// T/scale.
  [[nodiscard]] detail::tridiagonal matrix() const {
    return {diagonal_.head(steps_), off_diagonal_.head(steps_ - 1)};
  }
  [[nodiscard]] ritz_pair pair_at(double theta) const {
    Eigen::VectorXd y = detail::eigenvector(matrix(), theta);
    const double outside = scale_ * left_outside() * std::abs(y[steps_ - 1]);
    return {scale_ * theta, outside, std::move(y)};
  }

  Basis basis_;
  Eigen::VectorXd diagonal_;
  Eigen::VectorXd off_diagonal_;
  double scale_;
  index_t deflated_ = 0;
  index_t steps_ = 0;
};

namespace detail {

/// The operator of a step whose image is known.
template <Accumulator S>
struct known_image {
  using scalar = S;
  vector_view<const S> image;
  S energy;
  [[nodiscard]] index_t dimension() const { return image.size(); }
  S apply(vector_view<const S> /*x*/, vector_view<S> u) const {
    map(u) = map(image);
    return energy;
  }
};

}  // namespace detail

/// A step of both spaces, in one read of M where the operator has it. images: [D, 2] for scratch. Whether
/// they can go on, as step().
template <class Op, class Krylov, class Images>
[[nodiscard]] std::array<bool, 2> step_two(Op& op, Krylov& first, Krylov& second, Images& images) {
  using S = scalar_of<Op>;
  const auto energies =
      op.apply_two({view(first.newest()), view(second.newest())}, {view(images.col(0)), view(images.col(1))});
  detail::known_image<S> image_0{view(std::as_const(images).col(0)), energies[0]};
  detail::known_image<S> image_1{view(std::as_const(images).col(1)), energies[1]};
  return {first.step(image_0), second.step(image_1)};
}

/// An empty Krylov space of an operator, in a basis of the operator's own where it has `make_basis(columns)`.
template <GramOperator Op>
[[nodiscard]] auto krylov_space(Op& op, index_t capacity, double scale = 1, index_t deflated = 1) {
  using S = scalar_of<Op>;
  if constexpr (requires { op.make_basis(capacity); }) {
    using basis = decltype(op.make_basis(capacity));
    return lanczos<S, basis>(op.make_basis(capacity + 1 + deflated), capacity, scale);
  } else {
    return lanczos<S>(static_cast<index_t>(op.dimension()), capacity, scale, deflated);
  }
}
/// The Krylov space of an operator.
template <GramOperator Op>
using krylov_of = decltype(krylov_space(std::declval<std::remove_cvref_t<Op>&>(), index_t{}));

namespace detail {

/// Whether Ritz value k is an eigenvalue to some 2e-6 of ρ: it is within its residual of one, and nearer,
/// quadratically, where the next is away.
[[nodiscard]] inline bool has_settled(const std::vector<ritz_pair>& pairs, std::size_t k, double rayleigh) {
  if (pairs.size() <= k) {
    return false;
  }
  const double gap = pairs[k].value - (pairs.size() > k + 1 ? pairs[k + 1].value : 0);
  const double residual = pairs[k].residual;
  const double error = gap > residual ? residual / gap * residual : residual;
  return error <= 2e-6 * rayleigh;
}

}  // namespace detail

MPIROUTER_END
