// A rigorous bound on the second eigenvalue from the norms of powers of the smaller Gram matrix.
#pragma once

#include <mpi_router/verify/certificate.hpp>

#include <Eigen/Core>

#include <cmath>

MPIROUTER_BEGIN

/// The principal direction of A and a proven bound on σ₂².
struct ladder_result {
  second_eigenvalue_bound bound;
  Eigen::VectorXd direction;  ///< v̂, D elements, unit norm; empty where A is zero or not finite
  int squarings = 0;
};

namespace detail {

/// A rung, H_p = Γ^p/‖Γ^p‖_F of an m × m Γ, with bounds on its rounding errors.
class ladder_rung {
 public:
  /// The first: Γ = BBᵀ, the elements of B near 1.
  template <class Matrix>
  explicit ladder_rung(const Matrix& b) : h(b.rows(), b.rows()), squared(b.rows(), b.rows()) {
    h.setZero();
    h.template selfadjointView<Eigen::Lower>().rankUpdate(b);
    h = h.template selfadjointView<Eigen::Lower>();
    const double trace = h.trace();
    scale = h.norm();
    h /= scale;
    const auto terms = static_cast<double>(std::max(b.rows(), b.cols()));
    delta = 2 * terms * unit * trace / scale;
    scale_error = delta + norm_error();
  }

  /// About its first eigenvector: the column with the largest diagonal element, multiplied a few times.
  [[nodiscard]] Eigen::VectorXd direction() const {
    Eigen::Index largest = 0;
    h.diagonal().maxCoeff(&largest);
    Eigen::VectorXd z = h.col(largest).normalized();
    for (int polish = 0; polish < 3; ++polish) {
      z = (h * z).normalized();
    }
    return z;
  }
  /// At most h₁.
  [[nodiscard]] double quotient(const Eigen::VectorXd& z) const {
    return std::max(0.0, z.dot(h * z) - delta);
  }
  /// At least σ₂² of the elements near 1.
  [[nodiscard]] double second(double quotient) const {
    const double rest = std::max(0.0, 1 - quotient * quotient) + 4 * m() * unit + 2 * norm_error();
    return scale * (1 + scale_error) * std::pow(rest, 1 / (2 * p));
  }
  [[nodiscard]] double first(double quotient) const { return scale * std::pow(quotient, 1 / p); }
  [[nodiscard]] bool is_lost_to_rounding() const { return delta > 0.1; }

  /// The next, p ← 2p.
  void square() {
    squared.setZero();
    squared.template selfadjointView<Eigen::Lower>().rankUpdate(h);  // H is symmetric: HHᵀ = H²
    h = squared.template selfadjointView<Eigen::Lower>();
    const double norm = h.norm();
    h /= norm;
    delta = 2 * (2 * delta + delta * delta + m() * unit) / norm;
    scale *= std::pow(norm, 1 / (2 * p));
    scale_error += (delta + norm_error()) / (2 * p);
    p *= 2;
  }

  Eigen::MatrixXd h, squared;
  double p = 1;
  double scale = 0;        // ‖Γ^p‖_F^{1/p}
  double delta = 0;        // ‖fl(H_p) − H_p‖_F is at most this
  double scale_error = 0;  // relative, of `scale`

 private:
  static constexpr double unit = std::numeric_limits<double>::epsilon();
  [[nodiscard]] double m() const { return static_cast<double>(h.rows()); }
  [[nodiscard]] double norm_error() const { return m() * m() * unit; }  // of a sum of m² squares
};

}  // namespace detail

/// Squares Γ = AAᵀ (or AᵀA, whichever is smaller, m × m) again and again. H_p = Γ^p / ‖Γ^p‖_F has eigenvalues
/// h_i whose squares sum to one, so for any unit z: h₂² ≤ 1 − h₁² ≤ 1 − (zᵀH_p z)², and σ₂² ≤ ‖Γ^p‖_F^{1/p}
/// (1 − (zᵀH_p z)²)^{1/(2p)}. p = 1 is the bound √(‖M‖_F² − ρ²); each doubling of p suppresses more small
/// eigenvalues, until rounding error (δ below) or the gap stops it. From the column of H_p with the largest
/// diagonal element, unlike a stored row, which may be nearly orthogonal to v₁, a few multiplications give
/// the principal direction.
///
/// A is [F, D] in double, of any magnitude. O(m² max(F, D)) once and O(m³) a squaring. Allocates a copy of A
/// and 3 m × m matrices.
template <class Matrix>
[[nodiscard]] ladder_result trace_ladder(const Eigen::MatrixBase<Matrix>& a, int max_squarings = 12) {
  static_assert(std::is_same_v<typename Matrix::Scalar, double>, "the ladder is climbed in double");
  constexpr double infinity = std::numeric_limits<double>::infinity();
  ladder_result result;
  const double largest_element = a.size() == 0 ? 0.0 : a.cwiseAbs().template maxCoeff<Eigen::PropagateNaN>();
  if (!is_finite(largest_element) || largest_element == 0) {
    return result;
  }
  // Elements near 1, for squares of squares must neither overflow nor vanish: A = scaled · 2^exponent.
  const int exponent = std::ilogb(largest_element);
  const Eigen::MatrixXd scaled = a.unaryExpr([exponent](double x) { return std::ldexp(x, -exponent); });
  const bool wide = a.rows() <= a.cols();
  detail::ladder_rung rung = wide ? detail::ladder_rung(scaled) : detail::ladder_rung(scaled.transpose());
  double alpha = infinity;
  for (;; rung.square(), ++result.squarings) {
    result.direction = rung.direction();
    const double quotient = rung.quotient(result.direction);
    const double before = alpha;
    alpha = std::min(alpha, rung.second(quotient));
    const double sigma_1_squared = rung.first(quotient);
    const bool settled = alpha < sigma_1_squared && before - alpha < 0.1 * (sigma_1_squared - alpha);
    if (settled || result.squarings == max_squarings || rung.is_lost_to_rounding()) {
      break;
    }
  }
  // Rounded up, also where it leaves the range of doubles.
  alpha = std::nextafter(std::ldexp(alpha, 2 * exponent), infinity);
  result.bound = {alpha, certainty::rigorous, 0};
  if (wide) {
    result.direction = (scaled.transpose() * result.direction).normalized();
  }
  return result;
}

MPIROUTER_END
