// The direction that the rows of an expert are measured against, by the cheapest way that proves enough.
#pragma once

#include <mpi_router/verify/principal.hpp>
#include <mpi_router/verify/singular.hpp>

#include <limits>

MPIROUTER_BEGIN_TYPES

/// What a direction is taken from.
enum class direction_source : unsigned char {
  certificate,  ///< found and proven, without a decomposition
  svd           ///< decomposed; the certificate stands beside it
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// A gate matrix A, [F, D], in double, row after row, as the one-read kernels take it.
using gate_matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The direction of one expert, and how far it may be from the principal one.
struct expert_direction {
  principal_direction found;                  ///< what is proven without a decomposition
  std::optional<singular_spectrum> spectrum;  ///< where A was decomposed
  Eigen::VectorXd v;       ///< unit norm; of the spectrum, else as found. Empty where there is none
  double uncertainty = 0;  ///< radians from v to the principal direction, at most

  /// σ₁; without a decomposition the bound √ρ from below.
  [[nodiscard]] double sigma_1() const {
    return spectrum ? spectrum->sigma_1() : std::sqrt(found.at.rayleigh);
  }
  /// σ₂; NaN without a decomposition.
  [[nodiscard]] double sigma_2() const {
    return spectrum ? spectrum->sigma_2() : std::numeric_limits<double>::quiet_NaN();
  }
  /// κ², at which tan θ shrinks in a step; without a decomposition what is proven of it, or NaN.
  [[nodiscard]] double rate() const {
    if (spectrum) {
      return spectrum->kappa() * spectrum->kappa();
    }
    const bool proven = found.proof.label >= certainty::probabilistic;
    return proven ? found.proof.alpha / found.at.rayleigh : std::numeric_limits<double>::quiet_NaN();
  }
  /// From a row to v, radians.
  [[nodiscard]] double angle(vector_view<const double> row) const { return line_angle<double>(row, view(v)); }
  /// The sine of the angle to the principal direction, at most, of a row at this angle to v.
  [[nodiscard]] double sine_at(double angle) const {
    return std::sin(std::min(angle + uncertainty, std::numbers::pi / 2));
  }
};

/// find_principal for a matrix, by the first of these that proves something:
///   - min(F, D) ≤ options.rigorous_up_to: the trace ladder, rigorous;
///   - a probe that reads A in float, half the bytes, where the squares of its elements are floats;
///   - a probe in double, where they are not, or where the rounding of float hid the gap.
/// options.probe.failure_probability is of all probes together. `backend` multiplies; allocates A in float.
template <class Backend = reference>
[[nodiscard]] principal_direction find_principal_cheaply(const gate_matrix& a,
                                                         vector_view<const double> start,
                                                         Backend backend = {}, certify_options options = {}) {
  if (std::min(a.rows(), a.cols()) <= options.rigorous_up_to) {
    return find_principal(a, start, options);
  }
  const auto op = gram(a, backend);
  const double largest = a.cwiseAbs().maxCoeff();
  if (largest < 0x1p-30 || largest > 0x1p+30) {
    return find_principal(op, start, options);
  }
  options.probe.failure_probability /= 2;  // of each of two probes
  const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rounded = a.cast<float>();
  auto found = find_principal(op, gram(rounded, backend), start, options);
  if (found.direction.size() == 0 || found.proof.label >= certainty::probabilistic) {
    return found;
  }
  const Eigen::VectorXd from = found.direction;
  return find_principal(op, view(from), options);
}

/// The direction of the expert with the gate matrix A, which must be finite: found from `start`, a router
/// row, and certified; decomposed too where `source` says so.
template <class Backend = reference>
[[nodiscard]] expert_direction find_expert_direction(const gate_matrix& a, vector_view<const double> start,
                                                     direction_source source, Backend backend = {}) {
  expert_direction result;
  result.found = find_principal_cheaply(a, start, backend);
  if (source == direction_source::svd) {
    result.spectrum.emplace(a);
    result.v = result.spectrum->principal_direction();
  } else {
    result.v = result.found.direction;
    result.uncertainty = result.found.proof.angle_bound;
  }
  return result;
}

MPIROUTER_END
