// The exact comparison: what it says of rows agrees with the iteration itself.
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/verify/singular.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/oracle.hpp>

#include <limits>

namespace test_singular {
using namespace mpi_router;
using namespace test_support;

TEST_CASE("steps counted in the singular basis are the steps that the iteration takes") {
  random_source random(101);
  for (const auto& [F, D] : {std::pair<index_t, index_t>{6, 9}, {9, 6}, {24, 40}, {1, 5}, {5, 1}, {7, 7}}) {
    for (int trial = 0; trial < 5; ++trial) {
      const auto elements = random_matrix<double>(random, F, D);
      const auto a = row_major(elements.data(), F, D);
      const singular_spectrum spectrum(a);
      const column principal = spectrum.principal_direction();
      for (const double tolerance : {0.5, 1e-3, 1e-6}) {
        auto row = random_vector<double>(random, D);
        const auto counted = spectrum.steps_to(tolerance, row, 20000);
        REQUIRE(counted.has_value());
        std::vector<double> workspace(row.size());
        const auto taken =
            power_iteration(gram(a), vector_view<double>(row), vector_view<double>(workspace),
                            {.max_steps = 20000}, [&](const auto&, vector_view<const double> at) {
                              return std::sin(line_angle<double>(at, view(principal))) > tolerance;
                            });
        CHECK(taken.steps == *counted);
        CHECK(spectrum.angle(row) <= std::asin(tolerance) * (1 + 1e-6));
        CHECK(spectrum.cosine(row) == doctest::Approx(std::cos(spectrum.angle(row))));
      }
    }
  }
}

TEST_CASE("what cannot arrive does not: too few steps, an orthogonal row, a zero matrix") {
  random_source random(103);
  const auto s = random_with_spectrum(random, 10, 15, {1, 0.99, 0.5});
  const singular_spectrum spectrum(row_major(s.a.data(), 10, 15));
  const auto row = random_vector<double>(random, 15);
  CHECK_FALSE(spectrum.steps_to(1e-6, row, 10).has_value());
  CHECK(spectrum.steps_to(1e-6, row, 10000).has_value());
  CHECK(spectrum.steps_to(1.0, row, 0) == 0);
  CHECK(spectrum.kappa() == doctest::Approx(0.99));
  std::vector<double> left_out(15);  // orthogonal to all three directions
  const Eigen::Map<const matrix> v(s.directions.data(), 15, 3);
  Eigen::Map<column>(left_out.data(), 15) = values(row) - v * (v.transpose() * values(row));
  const singular_spectrum zero(Eigen::MatrixXd::Zero(3, 4));
  CHECK(zero.kappa() == 1);
  CHECK_FALSE(zero.steps_to(1e-6, std::vector<double>{1, 2, 3, 4}, 100).has_value());
  CHECK(refused([] { singular_spectrum(Eigen::MatrixXd(0, 3)); }, "the matrix is [0, 3]"));
  CHECK(refused([] { singular_spectrum(Eigen::MatrixXd(3, 0)); }, "the matrix is [3, 0]"));
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK(refused([&] { singular_spectrum(Eigen::MatrixXd::Constant(2, 2, bad)); },
                  "[2, 2] has elements that are not finite"));
  }
}

}  // namespace test_singular
