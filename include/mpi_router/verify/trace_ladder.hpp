// A rigorous bound on the second eigenvalue from the norms of powers of the smaller Gram matrix.
#pragma once

#include <mpi_router/verify/certificate.hpp>

#include <Eigen/Core>

#include <cmath>
#include <utility>

MPIROUTER_BEGIN

/// The principal direction of A and a proven bound on σ₂².
struct ladder_result {
  second_eigenvalue_bound bound;
  Eigen::VectorXd direction;  ///< v̂, D elements, unit norm; empty where A is zero or not finite
  int squarings = 0;
};

/// Squares Γ = AAᵀ (or AᵀA, whichever is smaller, m × m) again and again. H_p = Γ^p / ‖Γ^p‖_F has eigenvalues
/// h_i whose squares sum to one, so for any unit z: h₂² ≤ 1 − h₁² ≤ 1 − (zᵀH_p z)², and σ₂² ≤ ‖Γ^p‖_F^{1/p}
/// (1 − (zᵀH_p z)²)^{1/(2p)}. p = 1 is the bound √(‖M‖_F² − ρ²); each doubling of p shuts out more of the
/// small eigenvalues, until rounding error, which δ below accounts for, or the gap itself stops it. The
/// column of H_p with the largest diagonal element is also a start from which a few multiplications give the
/// principal direction: no stored row can be orthogonal to it by ill luck.
///
/// A is [F, D] in double, of any magnitude. O(m² max(F, D)) once and O(m³) a squaring. Allocates a copy of A
/// and 3 m × m matrices.
template <class Matrix>
[[nodiscard]] ladder_result trace_ladder(const Eigen::MatrixBase<Matrix>& a, int max_squarings = 12) {
  static_assert(std::is_same_v<typename Matrix::Scalar, double>, "the ladder is climbed in double");
  constexpr double unit = std::numeric_limits<double>::epsilon();
  const bool wide = a.rows() <= a.cols();
  const Eigen::Index m = wide ? a.rows() : a.cols();
  const auto terms = static_cast<double>(std::max(a.rows(), a.cols()));

  ladder_result result;
  const double largest_element = a.size() == 0 ? 0.0 : a.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>();
  if (!is_finite(largest_element) || largest_element == 0) {
    return result;
  }
  // Elements near 1, for squares of squares must neither overflow nor vanish: A = scaled · 2^exponent.
  const int exponent = std::ilogb(largest_element);
  const Eigen::MatrixXd scaled = a.unaryExpr([exponent](double x) { return std::ldexp(x, -exponent); });

  Eigen::MatrixXd h(m, m);
  h.setZero();
  if (wide) {
    h.template selfadjointView<Eigen::Lower>().rankUpdate(scaled);
  } else {
    h.template selfadjointView<Eigen::Lower>().rankUpdate(scaled.transpose());
  }
  h = h.template selfadjointView<Eigen::Lower>();
  const double trace = h.trace();
  double scale = h.norm();  // ‖Γ^p‖_F^{1/p}
  h /= scale;
  const double norm_error = static_cast<double>(m) * static_cast<double>(m) * unit;  // of a sum of m² squares
  double delta = 2 * terms * unit * trace / scale;  // ‖fl(H_p) − H_p‖_F is at most this
  double scale_error = delta + norm_error;          // relative, of `scale`

  double alpha = std::numeric_limits<double>::infinity();
  Eigen::VectorXd z;
  Eigen::MatrixXd squared(m, m);
  for (double p = 1;; p *= 2, ++result.squarings) {
    Eigen::Index largest = 0;
    h.diagonal().maxCoeff(&largest);
    z = h.col(largest).normalized();
    for (int polish = 0; polish < 3; ++polish) {
      z = (h * z).normalized();
    }
    const double quotient = std::max(0.0, z.dot(h * z) - delta);  // ≤ h₁
    const double rest =
        std::max(0.0, 1 - quotient * quotient) + 4 * static_cast<double>(m) * unit + 2 * norm_error;
    const double before = alpha;
    alpha = std::min(alpha, scale * (1 + scale_error) * std::pow(rest, 1 / (2 * p)));
    const double sigma_1_squared = scale * std::pow(quotient, 1 / p);
    const bool settled = alpha < sigma_1_squared && before - alpha < 0.1 * (sigma_1_squared - alpha);
    if (settled || result.squarings == max_squarings || delta > 0.1) {
      break;
    }
    squared.setZero();
    squared.template selfadjointView<Eigen::Lower>().rankUpdate(h);  // H is symmetric: HHᵀ = H²
    h = squared.template selfadjointView<Eigen::Lower>();
    const double norm = h.norm();
    h /= norm;
    delta = 2 * (2 * delta + delta * delta + static_cast<double>(m) * unit) / norm;
    scale *= std::pow(norm, 1 / (2 * p));
    scale_error += (delta + norm_error) / (2 * p);
  }
  // Rounded up, also where it leaves the range of doubles.
  alpha = std::nextafter(std::ldexp(alpha, 2 * exponent), std::numeric_limits<double>::infinity());
  result.bound = {alpha, certainty::rigorous, 0};
  if (wide) {
    result.direction = scaled.transpose() * z;
    result.direction.normalize();
  } else {
    result.direction = z;
  }
  return result;
}

MPIROUTER_END
