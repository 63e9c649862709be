// The vectors of a Krylov space in memory of the host, and a step of Lanczos among them.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/lanczos_step.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <limits>

MPIROUTER_BEGIN

/// Up to `columns` vectors of D elements of S, the deflated ones first, each orthogonal to all before it.
/// What lanczos asks of a basis, vector() and vectors() apart, without which two starts of a probe share no
/// read; an operator that computes elsewhere keeps its vectors there and gives one of its own,
/// `op.make_basis(columns)`.
template <Accumulator S>
class krylov_basis {
 public:
  using column = Eigen::Matrix<S, Eigen::Dynamic, 1>;

  krylov_basis(index_t dimension, index_t columns) : basis_(dimension, columns) {}

  [[nodiscard]] index_t dimension() const noexcept { return basis_.rows(); }

  /// Begins anew beside orthonormal columns.
  template <class Columns>
  void deflate(const Eigen::MatrixBase<Columns>& v) {
    first_ = v.cols();
    basis_.leftCols(first_) = v.template cast<S>();
  }
  /// Vector k of the space.
  void set(index_t k, const Eigen::VectorXd& x) { basis_.col(first_ + k) = x.template cast<S>(); }

  [[nodiscard]] auto vector(index_t k) const { return basis_.col(first_ + k); }
  /// The first `count` vectors, in double.
  [[nodiscard]] Eigen::MatrixXd vectors(index_t count) const {
    return basis_.middleCols(first_, count).template cast<double>();
  }

  /// Makes x the first vector. Returns what was left of its norm, as a step does.
  double start(column x) { return append(x, 0, 0); }

  /// Step number `steps`, from vector `steps` to the next. before: what the step before left.
  template <GramOperator Op>
  lanczos_step step(Op& op, index_t steps, double scale, double before) {
    image_.resize(basis_.rows());
    const auto newest = basis_.col(first_ + steps);
    const double along = static_cast<double>(op.apply(view(newest), view(image_))) / scale;
    // The recurrence first: what is left of it is all but orthogonal, and one pass over the basis makes it
    // so.
    image_ -= newest * static_cast<S>(along * scale);
    if (steps > 0) {
      image_ -= basis_.col(first_ + steps - 1) * static_cast<S>(before * scale);
    }
    return {along, append(image_, steps + 1, scale) / scale};
  }

  /// Σ y_k times vector `from` + k, in double.
  [[nodiscard]] Eigen::VectorXd combine(index_t from, const Eigen::VectorXd& y) const {
    return basis_.middleCols(first_ + from, y.size()).template cast<double>() * y;
  }

 private:
  static double norm_of(const column& x) {
    const auto norm = static_cast<double>(x.norm());
    constexpr auto least =
        static_cast<double>(std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon());
    return norm * norm > least && is_finite(norm) ? norm : static_cast<double>(x.stableNorm());
  }

  // Makes x orthogonal to the deflated and the first `count` vectors and appends it, normalised. Returns its
  // norm; 0 if what was left is the rounding error of x, or of numbers of size `scale`; NaN if x is not
  // finite.
  double append(column& x, index_t count, double scale) {
    const auto known = basis_.leftCols(first_ + count);
    const double before = norm_of(x);
    const auto make_orthogonal = [&] {
      coefficients_.noalias() = known.transpose() * x;
      x.noalias() -= known * coefficients_;
      return norm_of(x);
    };
    double norm = make_orthogonal();
    if (norm < core::little_left * before) {
      const double once = norm;
      norm = make_orthogonal();
      if (norm < core::only_rounding * once) {
        return 0;
      }
    }
    const double rounding =
        static_cast<double>(std::numeric_limits<S>::epsilon()) * static_cast<double>(basis_.rows());
    if (!is_finite(norm)) {
      return std::numeric_limits<double>::quiet_NaN();
    }
    if (norm <= rounding * std::max(before, scale) || count + first_ >= basis_.rows()) {
      return 0;
    }
    basis_.col(first_ + count) = x / static_cast<S>(norm);
    return norm;
  }

  Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic> basis_;
  column image_;
  column coefficients_;
  index_t first_ = 0;
};

MPIROUTER_END
