// Find the principal right singular direction of an expert, prove it, and say how far a router row is from
// it.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/verify/probe.hpp>
#include <mpi_router/verify/trace_ladder.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <numbers>
#include <utility>

MPIROUTER_BEGIN_TYPES

/// How hard to look for a certificate.
struct certify_options {
  double residual_tolerance = 1e-10;  ///< of the direction found, relative to ρ
  index_t max_steps = 2000;           ///< applications of M that the search for it may take
  index_t basis = 64;                 ///< vectors of D elements that the search keeps
  /// Where min(F, D) is at most this, the bound on σ₂ is the rigorous one of trace_ladder, at O(min(F, D)³) a
  /// squaring; above it, and for operators without a matrix, the probabilistic one of a probe.
  index_t rigorous_up_to = 512;
  probe_options probe{};
};

/// Where a row stands against a proven direction: |∠(r, v₁) − ∠(r, v̂)| ≤ ∠(v̂, v₁) on lines.
struct row_certificate {
  status state = status::ok;
  certainty label = certainty::none;
  double rayleigh = 0;  ///< of the row
  double residual = 0;  ///< of the row, ‖g‖
  double angle = 0;     ///< to the direction found, radians in [0, π/2]
  double angle_low = 0;
  double angle_bound =
      std::numbers::pi / 2;  ///< the row is certainly no farther than this from the principal direction
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// A direction, what is proven of it, and what it cost.
struct principal_direction {
  Eigen::VectorXd direction;   ///< v̂, unit norm; empty where there is none
  rayleigh_result<double> at;  ///< its ρ and residual
  certificate proof;
  index_t applications = 0;
};

namespace detail {

/// Rounding error in the evaluation of g and ρ. With u = ε/2, ‖δ(Ar)‖ ≤ D u ‖A‖_F and ‖δ(yA)‖ ≤ F u ‖A‖_F ‖y‖
/// in any order of the sums, so that ρ is off by at most (F + 2D) u ‖A‖_F² and g by (2F + 3D + 4) u ‖A‖_F²;
/// twice that is allowed for.
[[nodiscard]] inline double evaluation_slack(double terms, double frobenius_squared) {
  return 3 * (terms + 4) * std::numeric_limits<double>::epsilon() * frobenius_squared;
}
/// F + D of an operator; one that does not know F is taken to sum no more than D terms.
template <GramOperator Op>
[[nodiscard]] double terms_of(const Op& op) {
  const auto dimension = static_cast<double>(op.dimension());
  if constexpr (requires { op.ffn_dim(); }) {
    return dimension + static_cast<double>(op.ffn_dim());
  } else {
    return 2 * dimension;
  }
}

/// Turns `row` to the principal direction of its Krylov space, again and again, until its residual is small.
/// Returns the applications of M; `at` describes the row.
template <GramOperator Op>
index_t search(Op& op, Eigen::VectorXd& row, rayleigh_result<double>& at, const certify_options& options) {
  const index_t dimension = row.size();
  index_t applications = 1;
  Eigen::VectorXd residual(dimension);
  at = rayleigh(op, view(std::as_const(row)), view(residual));
  while (at.state == status::ok && at.relative_residual > options.residual_tolerance &&
         applications < options.max_steps) {
    lanczos<double> krylov(dimension, std::min(options.basis, dimension), at.rayleigh);
    if (!krylov.start(row)) {
      break;
    }
    for (bool last = false; !last;) {
      last = !krylov.step(op) || krylov.steps() == krylov.capacity();
      ++applications;
      const auto ritz = krylov.top();
      if (last || ritz.residual <= 0.5 * options.residual_tolerance * ritz.value) {
        row = krylov.vector(ritz);
        break;
      }
    }
    ++applications;
    const double before = at.relative_residual;
    at = rayleigh(op, view(std::as_const(row)), view(residual));
    if (!(at.relative_residual < 0.9 * before)) {  // as far as rounding or a tiny gap allows
      break;
    }
  }
  return applications;
}

}  // namespace detail

/// Finds v̂ by Lanczos from `start` and bounds σ₂ by a random probe beside it. A start without a component
/// along v₁ ends on a lower singular direction; the probe sees that, and the search goes on from what it saw.
/// `probe_op` is the same M, perhaps in float, for the probe alone, which needs no accuracy. An operator says
/// nothing of ‖A‖_F: its rounding error is taken to be 3 (F + D) ε ρ at most. O(applications · F·D) time.
/// Allocates O(options.basis · D).
template <GramOperator Op, GramOperator ProbeOp>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] principal_direction find_principal(Op&& op, ProbeOp&& probe_op, vector_view<const double> start,
                                                 const certify_options& options = {}) {
  const auto dimension = static_cast<index_t>(op.dimension());
  detail::expect(start.size() == dimension, "find_principal: the operator has dimension ", dimension,
                 ", the start ", start.size(), " elements");
  detail::expect(options.basis >= 1, "find_principal: a basis of ", options.basis, " vectors");
  principal_direction result;
  Eigen::VectorXd row = map(start);
  std::mt19937_64 random(options.probe.seed + 1);
  for (int attempt = 0; attempt < 3; ++attempt) {
    result.applications += detail::search(op, row, result.at, options);
    if (result.at.state != status::ok) {  // no direction in this start: try a random one
      row = detail::gaussian<double>(dimension, random);
      continue;
    }
    result.direction = row.normalized();
    auto probe = probe_second_eigenvalue(probe_op, view(std::as_const(result.direction)), result.at.rayleigh,
                                         options.probe);
    result.applications += probe.applications;
    result.proof =
        certify(result.at, probe.bound, detail::evaluation_slack(detail::terms_of(op), result.at.rayleigh));
    if (probe.vector.size() == 0) {
      break;
    }
    row = result.direction + probe.vector;
  }
  return result;
}

template <GramOperator Op>
[[nodiscard]] principal_direction find_principal(Op&& op, vector_view<const double> start,
                                                 const certify_options& options = {}) {
  return find_principal(op, op, start, options);
}

/// As above for a matrix A, [F, D], in double; rigorous where min(F, D) ≤ options.rigorous_up_to.
template <class Matrix>
[[nodiscard]] principal_direction find_principal(const Eigen::PlainObjectBase<Matrix>& a,
                                                 vector_view<const double> start,
                                                 const certify_options& options = {}) {
  auto op = gram(a.derived());
  if (static_cast<index_t>(std::min(a.rows(), a.cols())) > options.rigorous_up_to) {
    return find_principal(op, start, options);
  }
  detail::expect(options.basis >= 1, "find_principal: a basis of ", options.basis, " vectors");
  principal_direction result;
  auto ladder = trace_ladder(a);
  if (ladder.direction.size() == 0) {
    result.at.state = a.allFinite() ? status::zero_image : status::non_finite;
    return result;
  }
  result.direction = std::move(ladder.direction);
  result.applications = detail::search(op, result.direction, result.at, options);
  result.proof =
      certify(result.at, ladder.bound, detail::evaluation_slack(detail::terms_of(op), a.squaredNorm()));
  return result;
}

/// Certifies a row against a direction that was found. One application of M.
template <GramOperator Op>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] row_certificate certify_row(Op&& op, vector_view<const double> row,
                                          const principal_direction& principal) {
  row_certificate result;
  Eigen::VectorXd residual(row.size());
  const auto at = rayleigh(op, row, view(residual));
  result.state = at.state;
  if (at.state != status::ok || principal.direction.size() == 0) {
    return result;
  }
  result.rayleigh = at.rayleigh;
  result.residual = at.residual;
  result.angle = line_angle<double>(row, view(principal.direction));
  result.label = principal.proof.label;
  if (result.label != certainty::none) {
    // What is proven of v̂, and rounding error in the angle to it.
    const double away = principal.proof.angle_bound +
                        2 * static_cast<double>(row.size() + 4) * std::numeric_limits<double>::epsilon();
    result.angle_low = std::max(0.0, result.angle - away);
    result.angle_bound = std::min(std::numbers::pi / 2, result.angle + away);
  }
  return result;
}

MPIROUTER_END
