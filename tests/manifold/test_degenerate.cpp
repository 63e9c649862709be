// What has no step, what nearly has none, and weights of any size that the type can hold.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>

#include <limits>

namespace test_degenerate {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t F = 6;
constexpr index_t D = 11;

template <class S, class Op>
void every_algorithm_says(const Op& op, const std::vector<S>& row, status expected) {
  CAPTURE(to_string(expected));
  std::vector<S> out(row.size(), S(77)), workspace(2 * row.size());
  const auto same_bits = [](const std::vector<S>& a, const std::vector<S>& b) {
    return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0;
  };
  CHECK(power_step(op, row, out, S(2)).state == expected);
  CHECK(same_bits(out, row));  // kept, by default
  CHECK(power_step(op, row, out, S(2), degenerate_row::zero).state == expected);
  CHECK(out == std::vector<S>(row.size()));
  CHECK(adaptive_ascent_step(op, row, out, S(2)).state == expected);
  CHECK(same_bits(out, row));
  CHECK(steepest_ascent_step(op, row, out, S(2), S(0.5)).state == expected);
  CHECK(same_bits(out, row));
  auto stateful = row;
  CHECK(stateful_power_step(op, stateful, out, S(2)).state == expected);
  CHECK(same_bits(stateful, row));
  CHECK(rayleigh(op, row, out).state == expected);
  CHECK(out == std::vector<S>(row.size()));
  auto iterated = row;
  const auto result = power_iteration(op, iterated, workspace, {.max_steps = 9});
  CHECK(result.state == expected);
  CHECK(result.reason == stop_reason::degenerate);
  CHECK(result.steps == 0);
  CHECK(same_bits(iterated, row));
}

}  // namespace

TEST_CASE_TEMPLATE("rows and experts without a step are statuses", T, double, float, bf16, f16) {
  using S = accumulator_t<T>;
  random_source random(31);
  const auto elements = random_matrix<T>(random, F, D);
  const auto row = random_vector<S>(random, D);
  const auto nan = std::numeric_limits<S>::quiet_NaN();
  const auto infinity = std::numeric_limits<S>::infinity();
  for (const layout stored_as : all_layouts) {
    const stored_matrix<T> a(elements, F, D, stored_as);
    every_algorithm_says(gram(a.view()), std::vector<S>(D), status::zero_row);
    for (const S bad : {nan, infinity, -infinity}) {
      auto broken = row;
      broken[4] = bad;
      every_algorithm_says(gram(a.view()), broken, status::non_finite);
      auto values_of_a = elements;
      values_of_a[7] = narrow<T>(bad);
      const stored_matrix<T> broken_a(values_of_a, F, D, stored_as);
      every_algorithm_says(gram(broken_a.view()), row, status::non_finite);
    }
    const stored_matrix<T> zero(std::vector<T>(F * D), F, D, stored_as);
    every_algorithm_says(gram(zero.view()), row, status::zero_image);

    auto first_column_empty = elements;  // a row orthogonal to the row space, exactly
    for (index_t f = 0; f < F; ++f) first_column_empty[static_cast<std::size_t>(f * D)] = T{};
    const stored_matrix<T> orthogonal(first_column_empty, F, D, stored_as);
    std::vector<S> along_it(D);
    along_it[0] = S(1);
    every_algorithm_says(gram(orthogonal.view()), along_it, status::zero_image);
  }
  const matrix_view<const T> no_neurons(nullptr, 0, D, D, 1);
  every_algorithm_says(gram(no_neurons), row, status::zero_image);
  const matrix_view<const T> no_hidden(nullptr, F, 0, 0, 1);
  every_algorithm_says(gram(no_hidden), std::vector<S>{}, status::zero_row);
}

TEST_CASE_TEMPLATE("one hidden dimension, one neuron: the smallest experts step", T, double, float, bf16,
                   f16) {
  using S = accumulator_t<T>;
  const std::vector<T> a{narrow<T>(S(-3))};
  const std::vector<S> row{S(0.5)};
  std::vector<S> out(1);
  const auto result = power_step(gram(row_major(a.data(), 1, 1)), row, out, S(4));
  CHECK(result.state == status::ok);
  CHECK(out[0] == S(4));
  CHECK(result.rayleigh == S(9));
  CHECK(result.cosine == S(1));
}

TEST_CASE_TEMPLATE("weights and rows of any magnitude step to where the same ones near 1 do", T, double,
                   float, bf16) {
  using S = accumulator_t<T>;
  random_source random(37);
  const auto elements = random_matrix<T>(random, F, D);
  const auto row = random_vector<S>(random, D);
  std::vector<S> expected(row.size()), out(row.size()), expected_ascent(row.size());
  const stored_matrix<T> a(elements, F, D, layout::row_major);
  power_step(gram(a.view()), row, expected, S(2));
  adaptive_ascent_step(gram(a.view()), row, expected_ascent, S(2));
  const int most = std::is_same_v<S, double> ? 1020 : 124;
  const int least = std::is_same_v<S, double> ? -1015 : -119;  // the smaller elements turn subnormal below
  for (const int a_exponent : {least, -most / 2, -40, 40, most / 2, most}) {
    for (const int row_exponent : {least, -40, 0, 40, most}) {
      CAPTURE(a_exponent);
      CAPTURE(row_exponent);
      std::vector<S> scaled_elements(elements.size());
      for (std::size_t i = 0; i < elements.size(); ++i) {
        scaled_elements[i] = std::ldexp(widen<S>(elements[i]), a_exponent);
      }
      auto scaled_row = row;
      for (S& x : scaled_row) x = std::ldexp(x, row_exponent);
      for (const layout stored_as : {layout::row_major, layout::column_major, layout::both_strided}) {
        const stored_matrix<T> scaled(scaled_elements, F, D, stored_as);
        const auto op = gram(scaled.view());
        const auto result = power_step(op, scaled_row, out, S(2));
        CHECK(result.state == status::ok);
        CHECK(relative_distance(out, expected) < tolerance<T>.identity);
        CHECK(adaptive_ascent_step(op, scaled_row, out, S(2)).state == status::ok);
        CHECK(relative_distance(out, expected_ascent) < tolerance<T>.identity);
        const auto at = rayleigh(op, scaled_row, out);
        CHECK(at.state == status::ok);
        CHECK(close(std::atan(double(at.relative_residual)), angle<S>(row, expected), tolerance<T>.identity));
        std::vector<S> workspace(out.size());
        auto iterated = scaled_row;
        CHECK(power_iteration(op, iterated, workspace, {.max_steps = 1, .radius = S(2)}).state == status::ok);
        CHECK(relative_distance(iterated, expected) < tolerance<T>.identity);
      }
    }
  }
}

TEST_CASE_TEMPLATE("subnormal weights still have a direction", T, double, float) {
  // Whole multiples of the smallest number are exact, so the answer is known.
  std::vector<T> a(F * D);
  std::vector<double> exact(F * D);
  random_source random(41);
  for (std::size_t i = 0; i < a.size(); ++i) {
    exact[i] = static_cast<double>(random.integer(-9, 9));
    a[i] = static_cast<T>(exact[i]) * std::numeric_limits<T>::denorm_min();
  }
  const auto row = random_vector<T>(random, D);
  std::vector<T> out(row.size());
  const auto result = power_step(gram(row_major(a.data(), F, D)), row, out, T(1));
  CHECK(result.state == status::ok);
  const matrix m = values(row_major(exact.data(), F, D));
  CHECK(relative_distance(values(out), exact_step(m, values(row), 1)) < tolerance<T>.identity);
}

TEST_CASE("a step onto zero exactly is a status, not a NaN") {
  // r̂ + ηg = 0 needs g along r̂, which the projection rules out; a shift that meets an eigenvalue comes
  // closest.
  const matrix a = matrix::Identity(3, 3);
  const column row = column::Unit(3, 0);
  column out(3);
  const auto result = steepest_ascent_step(gram(a), view(row), view(out), 1.0, 1e300);
  CHECK(result.state == status::ok);
  CHECK(out == row);  // already principal: nothing moves, whatever η
}

TEST_CASE("an operator that cannot rescale: the energy leaves the range, the quotient does not") {
  constexpr index_t dimension = 5;
  const auto squares = [](vector_view<const double> x, vector_view<double> u) {
    double energy = 0;
    for (index_t i = 0; i < dimension; ++i) {
      u[i] = static_cast<double>(i + 1) * x[i];
      energy += x[i] * u[i];
    }
    return energy;
  };
  auto op = gram_operator<double>(dimension, squares);
  for (const double scale : {1e-200, 1e-160, 1.0, 1e160, 1e200}) {
    CAPTURE(scale);
    std::vector<double> row(dimension, scale), residual(dimension);
    const auto at = rayleigh(op, row, residual);
    CHECK(at.state == status::ok);
    CHECK(at.rayleigh == doctest::Approx(3).epsilon(1e-14));
    CHECK(at.relative_residual == doctest::Approx(std::sqrt(2.0) / 3).epsilon(1e-13));
    std::vector<double> workspace(2 * row.size());
    CHECK(power_iteration(op, row, workspace, {.max_steps = 200}).state == status::ok);
    CHECK(std::isfinite(row[0]));
  }
}

}  // namespace test_degenerate
