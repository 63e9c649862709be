// The direction that the rows of an expert are measured against, by the cheapest way that proves enough.
#pragma once

#include <mpi_router/verify/forecast.hpp>
#include <mpi_router/verify/principal.hpp>
#include <mpi_router/verify/singular.hpp>

#include <cstdint>
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

/// How far to follow the power iteration from the start.
struct course_options {
  double tolerance = 1e-6;  ///< on the sine of the angle
  index_t max_steps = 10000;
};

/// The direction of one expert, and how far it may be from the principal one.
struct expert_direction {
  principal_direction found;                  ///< what is proven without a decomposition
  std::optional<singular_spectrum> spectrum;  ///< where A was decomposed
  Eigen::VectorXd v;       ///< unit norm; of the spectrum, else as found. Empty where there is none
  double uncertainty = 0;  ///< radians from v to the principal direction, at most
  double ritz_2 = std::numeric_limits<double>::quiet_NaN();  ///< σ₂² from below, without a decomposition
  step_forecast forecast;  ///< of the steps to the principal direction, without a decomposition

  /// σ₁; without a decomposition the bound √ρ from below.
  [[nodiscard]] double sigma_1() const {
    return spectrum ? spectrum->sigma_1() : std::sqrt(found.at.rayleigh);
  }
  /// σ₂; without a decomposition a bound from below, nearly always sharp, that of a Ritz value. NaN where
  /// there is none.
  [[nodiscard]] double sigma_2() const { return spectrum ? spectrum->sigma_2() : std::sqrt(ritz_2); }
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

namespace detail {

/// A in double, for what decomposes it.
template <Scalar T>
[[nodiscard]] gate_matrix in_double(const matrix_view<T>& a) {
  gate_matrix out(a.rows(), a.cols());
  for (index_t f = 0; f < a.rows(); ++f) {
    for (index_t d = 0; d < a.cols(); ++d) {
      out(f, d) = widen<double>(a(f, d));
    }
  }
  return out;
}

/// What has_settled is to measure an eigenvalue against so that its root, a σ, is right to some 1e-5 of σ₁:
/// ρ, except for small ones, whose roots move more than they do.
[[nodiscard]] inline double reference_of(double eigenvalue, double rayleigh) {
  return eigenvalue < 0.01 * rayleigh ? std::sqrt(std::max(0.0, eigenvalue) * rayleigh) : rayleigh;
}

/// The largest Ritz value beside v̂, and whether its space was lost in rounding before it had settled.
struct beside_direction {
  double value = 0;
  bool is_lost = false;
};

/// From a random start.
template <GramOperator Op>
[[nodiscard]] beside_direction largest_beside(Op& op, const principal_direction& found) {
  using S = scalar_of<Op>;
  constexpr index_t most_steps = 100;
  const index_t dimension = found.direction.size();
  auto krylov = krylov_space(op, std::min(most_steps, dimension), found.at.rayleigh);
  krylov.deflate(found.direction);
  std::mt19937_64 random(1);
  beside_direction beside;
  bool settled = false;
  for (bool more = krylov.start(gaussian<S>(dimension, random)); more && !settled;) {
    more = krylov.step(op) && krylov.can_grow();
    const auto pair = krylov.top();
    beside.value = is_finite(pair.value) ? std::max(beside.value, pair.value) : beside.value;
    settled = pair.residual <= 1e-3 * pair.value &&
              has_settled(krylov.largest(2), 0, reference_of(pair.value, found.at.rayleigh));
  }
  beside.is_lost = !settled && krylov.steps() < krylov.capacity();
  return beside;
}

/// The Rayleigh quotient, in double, of what x has beside v̂; 0 where it has nothing.
template <GramOperator Op>
[[nodiscard]] double quotient_beside(Op& op, const Eigen::VectorXd& direction, Eigen::VectorXd x) {
  x -= direction * direction.dot(x);
  const double norm = x.norm();
  if (!(norm > 0.5)) {
    return 0;
  }
  x /= norm;
  Eigen::VectorXd image(x.size());
  return std::max(0.0, static_cast<double>(op.apply(view(std::as_const(x)), view(image))));
}

/// The steps from a start, by a Krylov space in double, where one in float could not tell them: taking the
/// steps instead would read the weights up to max_steps times.
template <GramOperator Op>
[[nodiscard]] step_forecast forecast_in_double(Op& op, vector_view<const double> start,
                                               const principal_direction& found, double tangent,
                                               const course_options& course) {
  constexpr index_t most_steps = 300;
  auto krylov = krylov_space(op, std::min(most_steps, start.size()), found.at.rayleigh);
  if (!krylov.start(map(start)) || !krylov.step(op)) {
    return {};
  }
  return forecast_steps(op, op, krylov, found.at.rayleigh, tangent, course.tolerance, course.max_steps);
}

/// What the Krylov space of the start says of σ₂ and of the steps to what was found.
template <GramOperator Op, GramOperator Fast>
void follow(Op& op, Fast& fast, krylov_of<Fast>& krylov, vector_view<const double> start,
            const course_options& course, expert_direction& result) {
  const auto& found = result.found;
  if (found.direction.size() == 0 || course.tolerance <= 0) {
    return;
  }
  if (std::sin(found.proof.angle_bound) <= course.tolerance) {
    const double tangent = std::tan(line_angle<double>(start, view(found.direction)));
    result.forecast =
        forecast_steps(op, fast, krylov, found.at.rayleigh, tangent, course.tolerance, course.max_steps);
    if (!result.forecast.converged() && !std::same_as<scalar_of<Fast>, double>) {
      result.forecast = forecast_in_double(op, start, found, tangent, course);
    }
  }
  const auto pairs = krylov.largest(3);
  result.ritz_2 = pairs.size() > 1 ? std::max(0.0, pairs[1].value) : 0;
  if (pairs.size() > 1 && result.ritz_2 < 0.05 * found.at.rayleigh) {  // rounding would show in it
    result.ritz_2 = std::min(result.ritz_2, quotient_beside(op, found.direction, krylov.vector(pairs[1])));
  }
  // The space of a row on a singular direction has no other in it, and that of a row orthogonal to v₁ lacks
  // v₁.
  const bool is_of_found = !pairs.empty() && pairs[0].value >= (1 - 2e-6) * found.at.rayleigh;
  if (!is_of_found || !has_settled(pairs, 1, reference_of(result.ritz_2, found.at.rayleigh))) {
    auto beside = largest_beside(fast, found);
    if (beside.is_lost && !std::same_as<scalar_of<Fast>, double>) {
      beside = largest_beside(op, found);
    }
    result.ritz_2 = std::max(result.ritz_2, beside.value);
  }
}

/// Finds by `fast` as far as it goes, then by `op`, and follows the start. False where the squares of the
/// elements leave the range of `fast`, and nothing is proven.
template <GramOperator Op, GramOperator Fast>
[[nodiscard]] bool find_and_follow(Op& op, Fast& fast, vector_view<const double> start,
                                   const certify_options& options, const course_options& course,
                                   expert_direction& result) {
  const auto dimension = static_cast<index_t>(op.dimension());
  auto half = options;  // of what may fail, for there are two searches
  half.probe.failure_probability /= 2;
  auto krylov = krylov_space(fast, std::min(options.basis, dimension));
  auto& found = result.found = find_principal_in(op, fast, start, half, krylov);
  constexpr bool is_float = std::same_as<scalar_of<Fast>, float>;
  if (is_float && found.direction.size() > 0) {
    if (found.at.rayleigh < 0x1p-80 || found.at.rayleigh > 0x1p+80) {
      return false;
    }
    if (found.proof.label < certainty::probabilistic) {  // a gap that the rounding of float hides
      const Eigen::VectorXd from = found.direction;
      const index_t before = found.applications;
      // What was found so far may depend on the starts of its probes.
      half.probe.seed += 2 * std::uint64_t{most_probes};
      found = find_principal(op, view(from), half);
      found.applications += before;
    }
  }
  if (found.proof.label == certainty::probabilistic) {
    found.proof.failure_probability = options.probe.failure_probability;
  }
  follow(op, fast, krylov, start, course, result);
  return true;
}

/// Of a small A: the trace ladder, and one step of Lanczos to follow the start from.
template <class Backend>
void find_small(const gate_matrix& a, vector_view<const double> start, Backend backend,
                const course_options& course, const certify_options& options, expert_direction& result) {
  result.found = find_principal(a, start, options);
  auto dense = gram(a, backend);
  auto&& op = behind_functions(dense);
  const index_t dimension = a.cols();
  lanczos<double> krylov(dimension, std::min(options.basis, dimension),
                         std::max(result.found.at.rayleigh, 1e-300));
  if (course.tolerance > 0 && krylov.start(map(start)) && krylov.can_grow()) {
    krylov.step(op);
    follow(op, op, krylov, start, course, result);
  }
}

/// Of any A: by `fast`, or else by `op` alone.
template <GramOperator Op, GramOperator Fast>
void find_by(Op& op, Fast& fast, vector_view<const double> start, const course_options& course,
             const certify_options& options, expert_direction& result) {
  auto&& exact = behind_functions(op);
  auto&& coarse = behind_functions(fast);
  if (!find_and_follow(exact, coarse, start, options, course, result)) {
    result = {};
    static_cast<void>(find_and_follow(exact, exact, start, options, course, result));
  }
}
template <Scalar T, class Backend>
void find_large(const matrix_view<T>& a, vector_view<const double> start, Backend backend,
                const course_options& course, const certify_options& options, expert_direction& result) {
  auto op = gram_in_double(a, backend);
  if constexpr (std::same_as<std::remove_const_t<T>, double>) {
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rounded =
        map(a).template cast<float>();
    auto fast = gram(rounded, backend);
    find_by(op, fast, start, course, options, result);
  } else {
    auto fast = gram(a, backend);
    find_by(op, fast, start, course, options, result);
  }
}

}  // namespace detail

/// The direction of the expert with the gate matrix A, [F, D], as it is stored: found from `start`, a router
/// row, and certified; decomposed too, and then not followed, where `source` says so. By the first of these
/// that proves something: for min(F, D) ≤ options.rigorous_up_to the trace ladder, rigorous, in double; else
/// a search and a probe with sums in float that read A where it lies, proven by a few images in double, where
/// the squares of its elements are floats; else the same in double. `backend` multiplies. Allocates
/// O(options.basis · D); A in float where it is stored in double, in double where it is decomposed or small.
template <Scalar T, class Backend = reference>
[[nodiscard]] expert_direction find_expert_direction(const matrix_view<T>& a, vector_view<const double> start,
                                                     direction_source source, Backend backend = {},
                                                     const course_options& course = {},
                                                     const certify_options& options = {}) {
  expert_direction result;
  const bool is_small = std::min(a.rows(), a.cols()) <= options.rigorous_up_to;
  const bool decomposed = source == direction_source::svd;
  const auto wanted = decomposed ? course_options{.tolerance = -1} : course;
  gate_matrix dense;
  if (is_small || decomposed) {
    dense = detail::in_double(a);
  }
  if (is_small) {
    detail::find_small(dense, start, backend, wanted, options, result);
  } else {
    detail::find_large(a, start, backend, wanted, options, result);
  }
  if (decomposed && result.found.at.state != status::non_finite) {
    result.spectrum.emplace(dense);
    result.v = result.spectrum->principal_direction();
  } else {
    result.v = result.found.direction;
    result.uncertainty = result.found.proof.angle_bound;
  }
  return result;
}

/// The same of an A that is seen through two operators, packed weights say: `fast`, with sums in float,
/// searches and probes, and `op`, in double, proves. No trace ladder and no decomposition: both need A
/// itself.
template <GramOperator Op, GramOperator Fast>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] expert_direction find_expert_direction(Op& op, Fast& fast, vector_view<const double> start,
                                                     const course_options& course = {},
                                                     const certify_options& options = {}) {
  expert_direction result;
  detail::find_by(op, fast, start, course, options, result);
  result.v = result.found.direction;
  result.uncertainty = result.found.proof.angle_bound;
  return result;
}

/// The same of an operator in double that shows no A, as on a GPU.
template <GramOperator Op>
  requires std::same_as<scalar_of<Op>, double>
[[nodiscard]] expert_direction find_expert_direction(Op& op, vector_view<const double> start,
                                                     const course_options& course = {},
                                                     const certify_options& options = {}) {
  return find_expert_direction(op, op, start, course, options);
}

MPIROUTER_END
