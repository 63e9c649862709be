// Two versions of one expert, before and after quantisation, pruning, merging or training: how far its row,
// its principal direction and its singular values moved, and how far they can have moved at most.
#pragma once

#include <mpi_router/verify/difference_rows.hpp>
#include <mpi_router/verify/expert_direction.hpp>
#include <mpi_router/verify/principal.hpp>
#include <mpi_router/verify/spectral_norm.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <vector>

MPIROUTER_BEGIN_TYPES

/// Between two rows, or two directions. NaN where one of them is zero or not finite.
struct direction_change {
  double cosine = std::numeric_limits<double>::quiet_NaN();
  double angle = std::numeric_limits<double>::quiet_NaN();  ///< radians; of lines, for singular directions
  double uncertainty = 0;  ///< radians that the angle may be off by, where directions were found and proven
};

/// An upper bound on an angle, and what it is worth.
struct angle_limit {
  double angle = std::numbers::pi / 2;  ///< radians; π/2 says nothing
  certainty label = certainty::none;
  double failure_probability = 0;
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The cosine and the angle, in [0, π], of two router rows of D elements. Their lengths do not enter. Throws
/// usage_error where the sizes differ.
[[nodiscard]] inline direction_change compare_rows(vector_view<const double> a, vector_view<const double> b) {
  detail::expect(a.size() == b.size(), "compare_rows: ", a.size(), " and ", b.size(), " elements");
  const double norm_a = map(a).stableNorm();
  const double norm_b = map(b).stableNorm();
  if (!(norm_a > 0) || !(norm_b > 0) || !is_finite(norm_a) || !is_finite(norm_b)) {
    return {};
  }
  const Eigen::VectorXd x = map(a) / norm_a;
  const Eigen::VectorXd y = map(b) / norm_b;
  return {std::clamp(x.dot(y), -1.0, 1.0), 2 * std::atan2((x - y).norm(), (x + y).norm()), 0};
}

/// |cos| and the angle, in [0, π/2], of the principal directions of A and B as they were found; `uncertainty`
/// is what is proven of how far both are from the true ones.
[[nodiscard]] inline direction_change compare_directions(const principal_direction& a,
                                                         const principal_direction& b) {
  if (a.direction.size() == 0 || b.direction.size() == 0) {
    return {};
  }
  auto change = compare_rows(view(a.direction), view(b.direction));
  change.cosine = std::abs(change.cosine);
  change.angle = std::min(change.angle, std::numbers::pi - change.angle);
  const bool are_proven = std::min(a.proof.label, b.proof.label) >= certainty::probabilistic;
  change.uncertainty = are_proven ? std::min(a.proof.angle_bound + b.proof.angle_bound, std::numbers::pi / 2)
                                  : std::numbers::pi / 2;
  return change;
}

/// Wedin: sin ∠(v_A, v_B) ≤ ‖B − A‖₂ / (σ₁(A) − σ₂(B)) where that is a gap, and the same with A and B
/// exchanged; the better of the two, which is wrong where either is. With P, Q the projections beside v_B and
/// u_B, σ₁(A) P v_A = P Aᵀu_A = P Bᵀ Q u_A − P ΔᵀA u_A and its mirror image give σ₁(A) m ≤ σ₂(B) m + ‖Δ‖ for
/// m = max(‖P v_A‖, ‖Q u_A‖). Of σ₁ the proven bound from below enters, of σ₂ that from above: without a
/// certificate nothing is claimed.
[[nodiscard]] inline angle_limit wedin_limit(const principal_direction& a, const principal_direction& b,
                                             const norm_bounds& change) {
  angle_limit best;
  double may_fail = change.failure_probability;
  const auto try_gap = [&](const certificate& first, const certificate& second) {
    const double gap = first.sigma_low - std::sqrt(second.alpha);
    const auto label = std::min(second.label, change.label);
    if (label == certainty::none || !(gap > change.high)) {
      return;
    }
    may_fail += second.failure_probability;
    const double angle = std::asin(change.high / gap);
    if (angle < best.angle) {
      best = {angle, label, 0};
    }
  };
  try_gap(a.proof, b.proof);
  try_gap(b.proof, a.proof);
  best.failure_probability = best.label == certainty::none ? 0 : may_fail;
  return best;
}

/// What was found of one version of an expert.
struct expert_version {
  principal_direction found;
  double sigma_1 = 0;  ///< from below and nearly always sharp, as σ₂; NaN where the matrix is not finite
  double sigma_2 = 0;
};

/// Two versions of one expert.
struct expert_comparison {
  direction_change row;        ///< router rows
  direction_change direction;  ///< principal right singular directions
  expert_version a;
  expert_version b;
  /// ‖B − A‖₂, where both have as many neurons F: no |σᵢ(B) − σᵢ(A)| is more than its `high` (Weyl). It sees
  /// the order of the neurons, which nothing else here does.
  std::optional<norm_bounds> change;
  angle_limit wedin;
};

namespace detail {

/// σ₁ and v₁ of one version; σ₂ by a Lanczos search beside v₁.
template <MatrixRowsIn<double> Rows>
[[nodiscard]] expert_version find_version(const Rows& rows, vector_view<const double> row,
                                          const certify_options& options) {
  std::vector<double> scratch(static_cast<std::size_t>(rows.cols()));
  auto decoded = gram_of_rows<double>(rows, std::span<double>(scratch));
  auto&& op = behind_functions(decoded);
  if (op.dimension() == 0) {
    return {};
  }
  expert_version version{find_principal(op, row, options), 0, 0};
  if (version.found.at.state == status::non_finite) {
    version.sigma_1 = version.sigma_2 = std::numeric_limits<double>::quiet_NaN();
  } else if (version.found.direction.size() > 0) {
    version.sigma_1 = std::sqrt(version.found.at.rayleigh);
    version.sigma_2 = std::sqrt(largest_beside(op, version.found).value);
  }
  return version;
}

}  // namespace detail

/// Compares the matrices A and B, [F, D] and [F', D] with one D, and their router rows of D elements. Each is
/// a matrix_view or MatrixRows that decode to double, packed weights say; nothing but the rows at hand is
/// decoded at a time. The directions are found and certified as find_principal does, the norm of the
/// difference as spectral_norm does. O(applications · F·D) time, O((options.basis + norm.max_steps) · D)
/// memory, one thread; the same numbers each time. Throws usage_error where D differs.
template <class A, class B>
[[nodiscard]] expert_comparison compare_experts(const A& a, vector_view<const double> row_a, const B& b,
                                                vector_view<const double> row_b,
                                                const certify_options& options = {},
                                                const norm_options& norm = {}) {
  const auto rows_a = as_rows(a);
  const auto rows_b = as_rows(b);
  detail::expect(rows_a.cols() == rows_b.cols(), "compare_experts: D = ", rows_a.cols(), " and ",
                 rows_b.cols());
  expert_comparison result;
  result.row = compare_rows(row_a, row_b);
  result.a = detail::find_version(rows_a, row_a, options);
  result.b = detail::find_version(rows_b, row_b, options);
  result.direction = compare_directions(result.a.found, result.b.found);
  if (rows_a.rows() == rows_b.rows()) {
    const auto d = static_cast<std::size_t>(rows_a.cols());
    std::vector<double> scratch(3 * d);
    const std::span<double> all(scratch);
    result.change = spectral_norm(
        gram_of_rows<double>(difference_rows(rows_a, rows_b, all.first(2 * d)), all.last(d)), norm);
    result.wedin = wedin_limit(result.a.found, result.b.found, *result.change);
  }
  return result;
}

MPIROUTER_END
