// The exact comparison, through Eigen's SVD.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/verify/decompositions.hpp>

#include <algorithm>
#include <cmath>
#include <optional>

MPIROUTER_BEGIN

namespace detail {

/// Singular values and right singular vectors.
[[nodiscard]] inline auto bdc_svd(const Eigen::MatrixXd& a) {
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
  return MPIROUTER_BDC_SVD(a);
#else
  return MPIROUTER_BDC_SVD(a, Eigen::ComputeThinV);
#endif
}

}  // namespace detail

/// The singular values and right singular vectors of one gate matrix A, [F, D], and what they say of router
/// rows.
class singular_spectrum {
 public:
  /// Eigen's BDCSVD in double. O(F D min(F, D)) with a large constant. A must be finite.
  template <Scalar T>
  explicit singular_spectrum(const matrix_view<T>& a) {
    Eigen::MatrixXd dense(a.rows(), a.cols());
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        dense(f, d) = widen<double>(a(f, d));
      }
    }
    decompose(dense);
  }
  explicit singular_spectrum(const Eigen::MatrixXd& a) { decompose(a); }

  [[nodiscard]] const Eigen::VectorXd& sigma() const noexcept { return sigma_; }
  [[nodiscard]] const Eigen::MatrixXd& right() const noexcept { return right_; }
  [[nodiscard]] double sigma_1() const { return sigma_.size() > 0 ? sigma_[0] : 0; }
  [[nodiscard]] double sigma_2() const { return sigma_.size() > 1 ? sigma_[1] : 0; }
  /// κ = σ₂/σ₁; 1 where A is zero: there is no direction to find.
  [[nodiscard]] double kappa() const { return sigma_1() > 0 ? sigma_2() / sigma_1() : 1; }
  [[nodiscard]] auto principal_direction() const { return right_.col(0); }

  /// |cos| of the angle between a row and the principal right singular direction; NaN for a zero row.
  [[nodiscard]] double cosine(vector_view<const double> row) const {
    return std::min(1.0, std::abs(map(row).dot(right_.col(0))) / map(row).stableNorm());
  }

  /// The angle itself in radians, accurate near 0 too, where the cosine is 1.
  [[nodiscard]] double angle(vector_view<const double> row) const {
    const double along = map(row).dot(right_.col(0));
    return std::atan2((map(row) - along * right_.col(0)).stableNorm(), std::abs(along));
  }

  /// The smallest k ≥ 0 for which the sine of the angle between the row after k power steps and the principal
  /// direction is at most `tolerance`; nothing if max_steps do not suffice. Runs in the singular basis, where
  /// a step multiplies coefficient i by σᵢ²/σ₁²: O(min(F, D)) a step instead of O(F·D).
  [[nodiscard]] std::optional<index_t> steps_to(double tolerance, vector_view<const double> row,
                                                index_t max_steps) const {
    if (std::sin(angle(row)) <= tolerance) {
      return 0;
    }
    Eigen::ArrayXd c = (right_.transpose() * map(row)).array();
    const Eigen::ArrayXd ratio = (sigma_.array() / sigma_1()).square();
    for (index_t k = 1; k <= max_steps; ++k) {
      c *= ratio;
      const double largest = c.abs().maxCoeff();
      if (!(largest > 0)) {
        return std::nullopt;
      }
      c /= largest;
      const double others = std::sqrt(c.tail(c.size() - 1).square().sum());
      if (others <= tolerance * std::hypot(others, c[0])) {
        return k;
      }
    }
    return std::nullopt;
  }

 private:
  void decompose(const Eigen::MatrixXd& a) {
    core::expect(a.rows() > 0 && a.cols() > 0, "singular_spectrum: the matrix is [", a.rows(), ", ", a.cols(),
                 "]");
    core::expect(a.allFinite(), "singular_spectrum: the matrix [", a.rows(), ", ", a.cols(),
                 "] has elements that are not finite");
    const auto svd = detail::bdc_svd(a);
    sigma_ = svd.singularValues();
    right_ = svd.matrixV();
  }

  Eigen::VectorXd sigma_;
  Eigen::MatrixXd right_;
};

MPIROUTER_END
