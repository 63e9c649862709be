// Steps counted in the Krylov space are the steps that the iteration takes; σ₂ is that of the SVD, from
// below.
#include <mpi_router/core/operators.hpp>
#include <mpi_router/verify/expert_direction.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <cmath>
#include <vector>

namespace test_forecast {
using namespace mpi_router;
using namespace test_support;

namespace {

/// Spectra from wide gaps to narrow ones.
std::vector<double> falling(index_t rank, double power, double gap) {
  std::vector<double> sigma;
  for (index_t k = 0; k < rank; ++k) {
    sigma.push_back(k == 0 ? 1 : (1 - gap) * std::pow(static_cast<double>(k), -power));
  }
  return sigma;
}

template <class T>
void counts_as_the_svd(const std::vector<double>& sigma, double tolerance, random_source& random) {
  const index_t F = 90, D = 130;
  const auto s = random_with_spectrum(random, F, D, sigma);
  std::vector<T> stored;
  for (const double x : s.a) {
    stored.push_back(narrow<T>(x));
  }
  const auto a = row_major(std::as_const(stored).data(), F, D);
  const singular_spectrum truth(a);
  const auto start = random_vector<double>(random, D);
  const auto found = find_expert_direction(a, vector_view<const double>(start), direction_source::certificate,
                                           reference{}, {.tolerance = tolerance}, {.rigorous_up_to = 0});
  REQUIRE(found.found.proof.label == certainty::probabilistic);
  REQUIRE(found.forecast.converged());
  const auto steps = truth.steps_to(tolerance, start, 10000);
  REQUIRE(found.forecast.steps.has_value() == steps.has_value());
  CHECK(std::abs(static_cast<double>(found.forecast.steps.value_or(0) - steps.value_or(0))) <= 1);
  CHECK(found.sigma_2() == doctest::Approx(truth.sigma_2()).epsilon(1e-5));
}

}  // namespace

TEST_CASE("as many steps as the SVD says, without a step taken") {
  random_source random(211);
  for (const double power : {0.02, 0.1, 0.25, 1.0}) {
    for (const double gap : {0.3, 0.05, 0.003}) {
      for (const double tolerance : {0.5, 1e-3, 1e-6}) {
        CAPTURE(power);
        CAPTURE(gap);
        CAPTURE(tolerance);
        counts_as_the_svd<double>(falling(90, power, gap), tolerance, random);
        counts_as_the_svd<float>(falling(90, power, gap), tolerance, random);
        counts_as_the_svd<bf16>(falling(90, power, gap), tolerance, random);
      }
    }
  }
}

TEST_CASE("a space that does not span the iteration yet says so") {
  random_source random(223);
  const auto s = random_with_spectrum(random, 90, 130, falling(90, 0.1, 0.003));
  const auto a = row_major(s.a.data(), 90, 130);
  auto op = gram(a);
  const auto start = random_vector<double>(random, 130);
  const singular_spectrum truth(a);
  const auto steps = truth.steps_to(1e-6, start, 10000);
  bool has_converged = false;
  lanczos<double> krylov(130, 130);
  REQUIRE(krylov.start(map(vector_view<const double>(start))));
  while (krylov.can_grow() && krylov.step(op)) {
    const auto forecast = krylov_iteration(krylov).steps_to(1e-6, 10000, {std::pow(truth.kappa(), 2)});
    // Before that the space does not know the direction: forecast_steps looks.
    const double first = truth.sigma_1() * truth.sigma_1(), second = truth.sigma_2() * truth.sigma_2();
    const bool is_principal = std::abs(krylov.top().value - first) <= 1e-3 * (first - second);
    if (is_principal && forecast.converged() && forecast.steps) {
      has_converged = true;
      CHECK(std::abs(static_cast<double>(*forecast.steps - *steps)) <= 1);
    }
    CHECK_FALSE((is_principal && krylov.steps() < 12));
  }
  CHECK(has_converged);
}

TEST_CASE("a row without a part along the principal direction has no forecast, one along it needs no step") {
  const auto op_of = [](const Eigen::VectorXd& diagonal) {
    return gram_operator<double>(diagonal.size(), [diagonal](auto x, auto u) {
      map(u) = diagonal.cwiseProduct(map(x));
      return map(x).dot(map(u));
    });
  };
  auto op = op_of(Eigen::VectorXd::LinSpaced(20, 1, 0.05));
  lanczos<double> krylov(20, 20);
  Eigen::VectorXd start = Eigen::VectorXd::Ones(20);
  start[0] = 0;
  REQUIRE(krylov.start(start));
  krylov.step(op);
  CHECK_FALSE(forecast_steps(op, op, krylov, 1.0, 1e9, 1e-6, 1000).converged());
  start[0] = 1;
  REQUIRE(krylov.start(start));
  krylov.step(op);
  CHECK(forecast_steps(op, op, krylov, 1.0, std::sqrt(19.0), 1e-6, 10).converged());  // more than ten
  CHECK_FALSE(forecast_steps(op, op, krylov, 1.0, std::sqrt(19.0), 1e-6, 10).steps.has_value());
  CHECK(forecast_steps(op, op, krylov, 1.0, std::sqrt(19.0), 1.0, 10).steps == 0);
  CHECK_FALSE(forecast_steps(op, op, krylov, 1.0, 6.0, 1e-6, 10).converged());  // another start's angle
}

TEST_CASE("as many steps as may be taken, and not one more") {
  Eigen::VectorXd diagonal = Eigen::VectorXd::LinSpaced(20, 0.9, 0.05);
  diagonal[0] = 1;
  auto op = gram_operator<double>(20, [&](auto x, auto u) {
    map(u) = diagonal.cwiseProduct(map(x));
    return map(x).dot(map(u));
  });
  const auto steps_with = [&](index_t most) {
    lanczos<double> krylov(20, 20);
    REQUIRE(krylov.start(Eigen::VectorXd::Ones(20)));
    krylov.step(op);
    const auto forecast = forecast_steps(op, op, krylov, 1.0, std::sqrt(19.0), 1e-6, most);
    CHECK(forecast.converged());
    return forecast.steps;
  };
  const auto steps = steps_with(1000);
  REQUIRE(steps.has_value());
  CHECK(steps_with(*steps) == steps);
  CHECK_FALSE(steps_with(*steps - 1).has_value());
}

namespace {

/// The forecast of a space of all dimensions, in S, of which the second of two eigenvalues is κ².
template <class S>
step_forecast whole_space(double kappa_squared) {
  auto op = gram_operator<S>(2, [kappa_squared](auto x, auto u) {
    u[0] = x[0];
    u[1] = static_cast<S>(kappa_squared) * x[1];
    return x[0] * u[0] + x[1] * u[1];
  });
  lanczos<S> krylov(2, 2);
  REQUIRE(krylov.start(Eigen::Matrix<S, Eigen::Dynamic, 1>::Ones(2)));
  while (krylov.can_grow()) krylov.step(op);
  return krylov_iteration(krylov).steps_to(1e-6, 10'000'000, {kappa_squared});
}

}  // namespace

TEST_CASE("steps so many that the rounding of the eigenvalues adds up to one are not sharp") {
  CHECK(whole_space<float>(0.5).is_sharp);
  CHECK(whole_space<double>(0.5).is_sharp);
  CHECK(whole_space<double>(1 - 1e-4).is_sharp);
  CHECK_FALSE(whole_space<float>(1 - 1e-4).is_sharp);
}

TEST_CASE("which space sees the principal direction") {
  std::vector<ritz_pair> pairs{{1, 0, Eigen::Vector2d(1, 1e9).normalized()}, {0.5, 0, {}}};
  const auto sees = [&](double rayleigh, double tangent, double rounding) {
    return detail::sees_principal(pairs, rayleigh, tangent, 1e-6, rounding);
  };
  CHECK(sees(1, 1e9, 1e-16));
  CHECK(sees(1, 1.2e9, 1e-16));        // to a quarter, half of a step with κ² = ½
  CHECK_FALSE(sees(1, 1.5e9, 1e-16));  // another start's
  CHECK_FALSE(sees(1, 1e9, 1e-7));     // what rounding may have made
  CHECK(sees(1, 1e9, 1.2e-10));
  CHECK_FALSE(sees(1, 1e9, 1.3e-10));
  CHECK_FALSE(sees(1.001, 1e9, 1e-16));
}

TEST_CASE("what lies outside shrinks by the first eigenvalue that is not known well") {
  const auto shrinking = [](double residual) {
    return detail::shrinking_of({{2, 0, {}}, {1, residual, {}}, {0.5, 0, {}}, {0.25, 0, {}}});
  };
  const auto known = shrinking(0.004);  // 0.008 of its gap
  CHECK(known.kappa_squared == 0.5);
  CHECK(known.rest_squared == 0.125);
  CHECK(known.share == doctest::Approx(0.008));
  const auto vague = shrinking(0.006);
  CHECK(vague.kappa_squared == 0.5);
  CHECK(vague.rest_squared == 0.5);
  CHECK(vague.share == 0);
}

}  // namespace test_forecast
