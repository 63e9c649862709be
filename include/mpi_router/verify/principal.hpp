// Find the principal right singular direction of an expert, prove it, and say how far a router row is from
// it.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/verify/gram_in_double.hpp>
#include <mpi_router/verify/search.hpp>
#include <mpi_router/verify/trace_ladder.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <numbers>
#include <optional>
#include <utility>

MPIROUTER_BEGIN_TYPES

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

/// The probes of one search, whose failures add up to options.failure_probability at most.
inline constexpr int most_probes = 4;

template <class Op>
[[nodiscard]] probe_result probe_once(Op& op, const principal_direction& found, const neighbours& beside,
                                      probe_options options, int number) {
  options.failure_probability /= most_probes;
  options.seed += static_cast<std::uint64_t>(number);
  return probe_second_eigenvalue(op, view(found.direction), found.at.rayleigh, options, beside);
}

/// The proof of what was found, by a probe; in double where float hides the gap, or would hide it from what
/// is known of the largest eigenvalue beside v̂ and its neighbours, `next` or more. Returns a better direction
/// where the probe has seen one, else nothing.
template <GramOperator Op, GramOperator Fast>
[[nodiscard]] Eigen::VectorXd prove(Op& op, Fast& fast, const neighbours& beside, double next,
                                    principal_direction& found, const certify_options& options, int& probes) {
  const auto by = [&](auto& probing) {
    auto probe = probe_once(probing, found, beside, options.probe, probes++);
    found.applications += probe.applications;
    if (probe.bound.label == certainty::probabilistic) {
      probe.bound.failure_probability = options.probe.failure_probability;
    }
    found.proof = certify(found.at, probe.bound, evaluation_slack(terms_of(op), found.at.rayleigh));
    return std::move(probe.vector);
  };
  constexpr bool is_coarse = !std::same_as<scalar_of<Fast>, double>;
  if (is_coarse && !can_prove<scalar_of<Fast>>(op.dimension(), found.at.rayleigh, beside, next)) {
    return by(op);
  }
  Eigen::VectorXd better = by(fast);
  if (is_coarse && better.size() == 0 && found.proof.label < certainty::probabilistic &&
      probes < most_probes) {
    better = by(op);
  }
  return better;
}

/// find_principal that keeps the Krylov space of `start`.
template <GramOperator Op, GramOperator Fast>
[[nodiscard]] principal_direction find_principal_in(Op& op, Fast& fast, vector_view<const double> start,
                                                    const certify_options& options, krylov_of<Fast>& krylov) {
  const auto dimension = static_cast<index_t>(op.dimension());
  expect(start.size() == dimension, "find_principal: the operator has dimension ", dimension, ", the start ",
         start.size(), " elements");
  principal_direction result;
  Eigen::VectorXd row = map(start);
  std::mt19937_64 random(options.probe.seed + most_probes);  // after those of the probes
  std::optional<krylov_of<Fast>> other;
  int probes = 0;
  for (int attempt = 0; attempt < 3 && probes < most_probes; ++attempt) {
    auto& space = attempt == 0 ? krylov : other.emplace(krylov_space(fast, krylov.capacity()));
    known_images known;
    result.applications += search(op, fast, row, result.at, options, space, known);
    if (result.at.state != status::ok) {  // no direction in this start: try a random one
      row = gaussian<double>(dimension, random);
      continue;
    }
    result.direction = row.normalized();
    const double slack = evaluation_slack(terms_of(op), result.at.rayleigh);
    auto beside = measure(known, slack);
    if (!(beside.top + 100 * slack < result.at.rayleigh)) {  // what is no gap does not help
      beside = {};
    }
    // Eigenvalue number k is no less than Ritz value number k (Cauchy).
    const auto k = static_cast<std::size_t>(1 + beside.directions.cols());
    const auto ritz = space.largest(static_cast<index_t>(k) + 1);
    const double next = ritz.size() > k ? ritz[k].value : 0;
    const Eigen::VectorXd better = prove(op, fast, beside, next, result, options, probes);
    if (better.size() == 0) {
      break;
    }
    row = result.direction + better;
  }
  return result;
}

}  // namespace detail

/// Finds v̂ by Lanczos from `start` and bounds σ₂ by a random probe beside it. A start without a component
/// along v₁ ends on a lower singular direction; the probe sees that, and the search goes on from what it saw.
/// `fast` is the same M, perhaps in float, for most of the search and for the probe: what it lacks in
/// accuracy costs steps, and nothing of the proof, which takes images by `op` and what rounding may do to the
/// probe. Without ‖A‖_F the rounding error of `op` is taken to be 3 (F + D) ε ρ at most. O(applications ·
/// F·D). Allocates O(options.basis · D).
template <GramOperator Op, GramOperator Fast>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] principal_direction find_principal(Op&& op, Fast&& fast, vector_view<const double> start,
                                                 const certify_options& options = {}) {
  detail::expect(options.basis >= 1, "find_principal: a basis of ", options.basis, " vectors");
  const auto dimension = static_cast<index_t>(op.dimension());
  auto&& exact = detail::behind_functions(op);
  auto&& coarse = detail::behind_functions(fast);
  auto krylov = krylov_space(coarse, std::min(options.basis, dimension));
  return detail::find_principal_in(exact, coarse, start, options, krylov);
}

/// The same with one operator for search and proof.
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
  auto dense = gram(a.derived());
  auto&& op = detail::behind_functions(dense);
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
  lanczos<double> krylov(a.cols(), std::min<index_t>(options.basis, a.cols()));
  detail::known_images known;
  result.applications = detail::search(op, op, result.direction, result.at, options, krylov, known);
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
