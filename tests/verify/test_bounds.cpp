// What a quotient, its residual and a bound on the second eigenvalue prove, where it is tight; and the null
// model.
#include <mpi_router/verify/certificate.hpp>
#include <mpi_router/verify/null_model.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <cmath>
#include <limits>
#include <numbers>

namespace test_bounds {
using namespace mpi_router;
using namespace test_support;

namespace {

/// ρ and ‖g‖ of a row in the plane of the two directions of diag(σ₁², σ₂²), at an angle from the first: with
/// α = σ₂² both Kato–Temple and Davis–Kahan are equalities.
rayleigh_result<double> in_the_plane(double lambda_1, double lambda_2, double theta) {
  const double c = std::cos(theta), s = std::sin(theta);
  rayleigh_result<double> at;
  at.rayleigh = lambda_1 * c * c + lambda_2 * s * s;
  at.residual = (lambda_1 - lambda_2) * s * c;
  at.relative_residual = at.residual / at.rayleigh;
  return at;
}

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE(
    "in the plane of two directions the bounds are equalities, whatever the rounding that slack allows for") {
  for (const double lambda_2 : {0.0, 0.3, 0.9, 0.999}) {
    for (const double theta : {1e-4, 0.01, 0.2, 0.6}) {
      for (const double slack : {0.0, 1e-6, 1e-4}) {
        const auto exact = in_the_plane(1, lambda_2, theta);
        if (!(exact.rayleigh - 2 * slack > lambda_2)) continue;
        CAPTURE(lambda_2);
        CAPTURE(theta);
        CAPTURE(slack);
        const second_eigenvalue_bound bound{lambda_2, certainty::probabilistic, 0.125};
        // Off by as much as slack says, one way and the other: the worst is still held, and no more is given
        // away.
        for (const double off_rho : {-slack, 0.0, slack}) {
          for (const double off_g : {-std::min(slack, exact.residual), 0.0, slack}) {
            auto at = exact;
            at.rayleigh += off_rho;
            at.residual += off_g;
            const auto proof = certify(at, bound, slack);
            REQUIRE(proof.label == certainty::probabilistic);
            CHECK(proof.alpha == lambda_2);
            CHECK(proof.failure_probability == 0.125);
            CHECK(proof.angle_bound >= theta * (1 - 1e-9));
            CHECK(proof.sigma_high >= 1 - 1e-15);
            CHECK(proof.sigma_low <= std::sqrt(exact.rayleigh) * (1 + 1e-15));
            if (off_rho == slack && off_g == -slack) {
              CHECK(proof.angle_bound == doctest::Approx(theta).epsilon(1e-8));
              CHECK(proof.sigma_low == doctest::Approx(std::sqrt(exact.rayleigh)).epsilon(1e-14));
            }
            if (off_rho == -slack && off_g == -slack && slack < 1e-5 * (exact.rayleigh - lambda_2)) {
              CHECK(proof.sigma_high == doctest::Approx(1).epsilon(1e-4));
            }
          }
        }
        if (slack == 0) {
          const double kappa = std::sqrt(lambda_2);
          CHECK(angle_from_alignment(std::sqrt(exact.rayleigh), kappa) ==
                doctest::Approx(theta).epsilon(1e-6));
          CHECK(certify(exact, bound).sigma_high == doctest::Approx(1).epsilon(1e-14));
        }
      }
    }
  }
  CHECK(angle_from_alignment(0.9, 0.9) == std::numbers::pi / 2);
  CHECK(angle_from_alignment(0.5, 0.9) == std::numbers::pi / 2);
  CHECK(angle_from_alignment(1.0, 1.0) == std::numbers::pi / 2);
  CHECK(angle_from_alignment(1 + 1e-12, 0.5) == 0);
}

TEST_CASE(
    "bounds from norms are equalities for two directions, and allow for the error that they are told of") {
  for (const double lambda_2 : {1e-9, 0.3, 0.99}) {
    for (const double error : {1e-13, 1e-3}) {
      for (const double off : {-1.0, 1.0}) {
        for (const double off_rho : {-1.0, 1.0}) {
          const double rho = 1 + off_rho * error, trace = (1 + lambda_2) * (1 + off * error);
          const double gram = std::hypot(1, lambda_2) * (1 + off * error);
          const auto by_trace = trace_bound(trace * (1 + 1e-15), rho, error);
          const auto by_gram = gram_norm_bound(gram * (1 + 1e-15), rho, error);
          // Too low by `error` is allowed for, to the second order.
          CHECK(by_trace.alpha >= lambda_2 - 3 * error * error - 1e-15);
          CHECK(std::pow(by_gram.alpha, 2) >= lambda_2 * lambda_2 - 8 * error * error - 1e-15);
          CHECK(by_trace.alpha <= lambda_2 + 8 * error);
          CHECK(std::pow(by_gram.alpha, 2) <= lambda_2 * lambda_2 + 14 * error);
          CHECK(by_trace.label == certainty::rigorous);
          CHECK(by_gram.label == certainty::rigorous);
        }
      }
    }
  }
  CHECK(gram_norm_bound(1, 1 + 1e-6, 1e-13).alpha == 0);
}

TEST_CASE("σ₁ and the angle by hand: ρ = 4, ‖g‖ = 1/2, α = 2") {
  const auto proof = certify({status::ok, 4, 0.5, 0.125}, {2, certainty::rigorous, 0});
  CHECK(proof.label == certainty::rigorous);
  CHECK(proof.sigma_low == 2);
  CHECK(proof.sigma_high == doctest::Approx(std::sqrt(4.125)));
  CHECK(proof.angle_bound == doctest::Approx(std::atan(0.25)));
  CHECK(proof.alpha == 2);
}

TEST_CASE("without α < ρ less its slack, without a label, without a finite ρ: nothing but σ₁² ≥ ρ") {
  const auto claims_nothing = [](const certificate& proof, double sigma_low) {
    CHECK(proof.label == certainty::none);
    CHECK(proof.alpha == infinity);
    CHECK(proof.sigma_low == doctest::Approx(sigma_low));
    CHECK(proof.sigma_high == infinity);
    CHECK(proof.angle_bound == std::numbers::pi / 2);
  };
  const rayleigh_result<double> at{status::ok, 1, 0.25, 0.25};
  for (const double alpha : {0.75, 0.76, 1.0, 2.0, infinity, -infinity, std::nan("")}) {
    claims_nothing(certify(at, {alpha, certainty::rigorous, 0}, 0.25), std::sqrt(0.75));
  }
  CHECK(certify(at, {0.7499, certainty::rigorous, 0}, 0.25).label == certainty::rigorous);
  claims_nothing(certify(at, {0.1, certainty::none, 0}), 1);
  claims_nothing(certify({status::ok, infinity, 0, 0}, {0.1, certainty::rigorous, 0}), 0);
  claims_nothing(certify({status::zero_image, 0, 0, 0}, {-1, certainty::rigorous, 0}), 0);
  claims_nothing(certify({status::ok, 0.1, 0, 0}, {0.05, certainty::rigorous, 0}, 0.2), 0);
}

TEST_CASE("the null of λ at q = 1, 1/4 and 4, by hand") {
  CHECK(null_model(7, 7).stored == doctest::Approx(0.5));
  CHECK(null_model(7, 7).one_step == doctest::Approx(std::sqrt(2.5) / 2));
  CHECK(null_model(8, 2).stored == doctest::Approx(2.0 / 3));
  CHECK(null_model(8, 2).one_step == doctest::Approx(std::sqrt((1 + 0.75 + 0.0625) / 1.25) / 1.5));
  CHECK(null_model(2, 8).stored == doctest::Approx(1.0 / 3));
  CHECK(null_model(2, 8).one_step == doctest::Approx(std::sqrt(29.0 / 5) / 3));
  CHECK(refused([] { static_cast<void>(null_model(0, 3)); }, "null_model: the gate matrix is [0, 3]"));
  CHECK(refused([] { static_cast<void>(null_model(3, 0)); }, "null_model: the gate matrix is [3, 0]"));
}

}  // namespace test_bounds
