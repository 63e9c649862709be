// The search for the principal direction of M: a Krylov space of the start, and restarts from what it found.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/verify/any_operator.hpp>
#include <mpi_router/verify/decompositions.hpp>
#include <mpi_router/verify/neighbours.hpp>
#include <mpi_router/verify/probe.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <limits>
#include <utility>

MPIROUTER_BEGIN_TYPES

/// How hard to look for a certificate.
struct certify_options {
  double residual_tolerance = 1e-10;  ///< of the direction found, relative to ρ
  index_t max_steps = 2000;           ///< applications of M that the search for it may take
  index_t basis = 256;                ///< vectors of D elements that the search keeps
  /// Where min(F, D) is at most this, the bound on σ₂ is the rigorous one of trace_ladder, at O(min(F, D)³) a
  /// squaring; above it, and for operators without a matrix, the probabilistic one of a probe.
  index_t rigorous_up_to = 512;
  probe_options probe{};
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// One Krylov space, from `row` with Mx = ρx + g: goes on until the largest Ritz pair is as near an eigenpair
/// as is wanted, or as S can tell, and turns the row to it; then until the second Ritz value has settled, for
/// all that follows needs what lies beside. Returns the applications of M.
template <GramOperator Op>
index_t turn(Op& op, krylov_of<Op>& krylov, Eigen::VectorXd& row, const Eigen::VectorXd& residual,
             double rayleigh, double tolerance) {
  constexpr double unit = std::numeric_limits<scalar_of<Op>>::epsilon();
  index_t applications = 0, arrived = 0;
  for (bool more = krylov.start(row, residual, rayleigh);;) {
    if (more && krylov.can_grow()) {
      more = krylov.step(op);
      ++applications;
    } else {
      more = false;
    }
    const auto ritz = krylov.top();
    if (!is_finite(ritz.value)) {
      return applications;
    }
    const double noise = 4 * unit * ritz.coordinates.tail(krylov.steps() - 1).norm();
    if (arrived == 0 && ritz.residual <= std::max(0.5 * tolerance, noise) * ritz.value) {
      arrived = krylov.steps();
    }
    const index_t beyond = krylov.steps() - arrived;
    const index_t at_once = std::max<index_t>(2, arrived / 8);  // the second Ritz value costs O(steps²)
    const bool is_enough = arrived > 0 && beyond % at_once == 0 &&
                           (beyond > arrived + 32 || has_settled(krylov.largest(3), 1, rayleigh));
    if (!more || is_enough) {
      row = krylov.vector(ritz, row);
      return applications;
    }
  }
}

/// The Ritz problem in the span of directions that are known and of the Krylov space of all beside them, from
/// what v̂ lacks, the part of g outside their span: thick restart (Wu & Simon 2000). After k steps the
/// residual of v̂ is down to ‖g‖ β₁⋯β_k / det(ρI − T). Turns the row; returns the applications of M.
template <GramOperator Op>
index_t restart(Op& op, const known_images& known, Eigen::VectorXd& row, double tolerance, index_t capacity) {
  const auto& v = known.directions;
  const Eigen::Index m = v.cols();
  const Eigen::MatrixXd inside = v.transpose() * known.images;
  const Eigen::MatrixXd outside = known.images - v * inside;
  const double rho = inside(0, 0);
  double left = outside.col(0).norm();
  auto krylov = krylov_space(op, std::min<index_t>(capacity, v.rows() - m), known.scale, m);
  krylov.deflate(v);
  // Where v̂ lacks only neighbours, nothing is left outside them.
  const bool starts = left > 0 && krylov.capacity() > 0 &&
                      krylov.start((outside.col(0) / left).template cast<scalar_of<Op>>());
  const double enough = std::max(0.5 * tolerance, 4 * std::numeric_limits<scalar_of<Op>>::epsilon() * left);
  double pivot = 1, before = 0;
  while (left > enough * rho && pivot > 0 && starts && krylov.can_grow()) {
    krylov.step(op);
    const index_t k = krylov.steps() - 1;
    pivot = rho - krylov.diagonal()[k] - before / pivot * before;
    before = krylov.off_diagonal()[k];
    left *= before / pivot;
  }
  const index_t k = krylov.steps();
  if (m + k == 1 || !inside.allFinite() || !krylov.diagonal().allFinite() ||
      !krylov.off_diagonal().allFinite()) {
    return k;
  }
  const Eigen::MatrixXd q = krylov.vectors();
  Eigen::MatrixXd ritz = Eigen::MatrixXd::Zero(m + k, m + k);  // of which the lower half is read
  ritz.topLeftCorner(m, m) = inside;
  if (k > 0) {
    ritz.bottomLeftCorner(k, m) = q.transpose() * outside;
    ritz.bottomRightCorner(k, k).diagonal() = krylov.diagonal();
    ritz.bottomRightCorner(k, k).diagonal(-1) = krylov.off_diagonal().head(k - 1);
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(ritz);
  const auto y = solver.eigenvectors().col(m + k - 1);
  row = (v * y.head(m) + q * y.tail(k)).normalized();
  return k;
}

/// Turns `row` to the principal direction of its Krylov space, and restarts from there until its residual is
/// small. Between them are images by `op`, in double; of the others, by `fast`, which may compute in float,
/// only the digits count that the row is still off by. Returns the applications of M; `at` describes the row,
/// `krylov` is the space of the start, and `known` what was learned beside.
template <GramOperator Op, GramOperator Fast>
index_t search(Op& op, Fast& fast, Eigen::VectorXd& row, rayleigh_result<double>& at,
               const certify_options& options, krylov_of<Fast>& krylov, known_images& known) {
  index_t applications = 1;
  Eigen::VectorXd residual(row.size());
  at = rayleigh(op, view(std::as_const(row)), view(residual));
  const auto is_wanted = [&] {
    return at.state == status::ok && at.relative_residual > options.residual_tolerance &&
           applications < options.max_steps;
  };
  if (!is_wanted()) {
    return applications;
  }
  row.stableNormalize();
  applications += turn(fast, krylov, row, residual, at.rayleigh, options.residual_tolerance);
  for (bool is_first = true;; is_first = false) {
    const auto before = at;
    at = rayleigh(op, view(std::as_const(row)), view(residual));
    ++applications;
    const Eigen::VectorXd image = at.rayleigh * row + residual;
    if (is_first) {
      known = images_beside(op, row, image, worthwhile(krylov, row), at.rayleigh);
      applications += known.neighbours();
    } else {
      known.turn_to(row, image);
    }
    // As far as rounding or a tiny gap allows. On the way from a lower direction ρ rises first.
    const bool is_nearer =
        at.relative_residual < 0.9 * before.relative_residual || at.rayleigh > (1 + 1e-9) * before.rayleigh;
    if (!is_wanted() || !is_nearer) {
      return applications;
    }
    applications += restart(fast, known, row, options.residual_tolerance, krylov.capacity());
  }
}

}  // namespace detail

MPIROUTER_END
