// Many steps: the rate, the stop rules, momentum, the trace, and the two modes.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>

#include <numeric>

namespace test_iteration {
using namespace mpi_router;
using namespace test_support;

namespace {

struct expert {
  spectral_matrix spectrum;
  [[nodiscard]] auto op() const {
    return gram(row_major(spectrum.a.data(), spectrum.ffn_dim, spectrum.hidden_dim));
  }
  [[nodiscard]] Eigen::Map<const column> principal() const {
    return {spectrum.directions.data(), spectrum.hidden_dim};
  }
  [[nodiscard]] double angle_of(vector_view<const double> row) const {
    return line_angle<double>(row, view(principal()));
  }
};

expert with_spectrum(std::uint64_t seed, std::vector<double> sigma, index_t F = 24, index_t D = 40) {
  random_source random(seed);
  return {random_with_spectrum(random, F, D, std::move(sigma))};
}

std::vector<double> random_row(std::uint64_t seed, index_t D = 40) {
  random_source random(seed);
  return random_vector<double>(random, D);
}

}  // namespace

TEST_CASE("rate: tan θ_k ≤ κ^{2k} tan θ_0, ρ never decreases and never exceeds σ₁²") {
  for (const double kappa : {0.05, 0.5, 0.9, 0.99}) {
    const auto e = with_spectrum(43, {2, 2 * kappa, 1.9 * kappa, 1.5 * kappa, 0.1 * kappa});
    auto row = random_row(44);
    std::vector<double> workspace(40);
    const double start = std::tan(e.angle_of(row));
    double last_rho = 0;
    index_t seen = 0;
    power_iteration(e.op(), vector_view<double>(row), vector_view<double>(workspace), {.max_steps = 60},
                    [&](const iteration_record<double>& record, vector_view<const double> at) {
                      CHECK(record.step == seen++);
                      const double bound = std::pow(kappa, 2.0 * static_cast<double>(record.step)) * start;
                      CHECK(std::tan(e.angle_of(at)) <= bound * (1 + 1e-9) + 1e-14);
                      CHECK(record.rayleigh >= last_rho * (1 - 1e-15));
                      CHECK(record.rayleigh <= 4 * (1 + 1e-14));
                      last_rho = record.rayleigh;
                    });
    CHECK(seen == 61);
    if (kappa == 0.5) {  // after some steps only the second direction is left, and the bound is the rate
      auto late = random_row(44);
      power_iteration(e.op(), vector_view<double>(late), vector_view<double>(workspace), {.max_steps = 20});
      const double before = e.angle_of(late);
      power_iteration(e.op(), vector_view<double>(late), vector_view<double>(workspace), {.max_steps = 1});
      CHECK(std::tan(e.angle_of(late)) / std::tan(before) == doctest::Approx(0.25).epsilon(0.05));
    }
  }
}

TEST_CASE_TEMPLATE("k steps of power_iteration are k power steps", S, float, double) {
  random_source random(47);
  for (const auto& [F, D] : shapes) {
    const auto elements = random_matrix<S>(random, F, D);
    const auto op = gram(row_major(elements.data(), F, D));
    const auto start = random_vector<S>(random, D);
    auto by_hand = start;
    std::vector<S> scratch(start.size());
    for (index_t k = 0; k <= 4; ++k) {
      auto row = start;
      const auto result = power_iteration(op, row, scratch, {.max_steps = k, .radius = S(3)});
      CHECK(result.reason == stop_reason::max_steps);
      CHECK(result.steps == k);
      CHECK(result.applications == k + 1);
      CHECK(close(values(row).norm(), 3, tolerance<S>.arithmetic));
      CHECK(relative_distance(values(row), column(3 * values(by_hand).normalized())) < tolerance<S>.identity);
      std::vector<S> g(start.size());
      const auto at = rayleigh(op, row, g);  // the result describes the row that is returned
      CHECK(close(result.last.rayleigh, at.rayleigh, tolerance<S>.arithmetic));
      CHECK(std::abs(double(result.last.residual - at.residual)) <=
            tolerance<S>.identity * double(at.rayleigh));
      stateful_power_step(op, by_hand, scratch, S(1));
    }
  }
}

TEST_CASE("stop rules: residual relative to ρ, angle between iterates, count, callback") {
  const auto e = with_spectrum(53, {3, 2, 1});
  const auto run = [&](const iteration_options<double>& options, auto callback) {
    auto row = random_row(54);
    std::vector<double> workspace(80), g(40);
    const auto result =
        power_iteration(e.op(), vector_view<double>(row), vector_view<double>(workspace), options, callback);
    CHECK(result.state == status::ok);
    CHECK(result.applications == result.steps + 1);
    const auto at = rayleigh(e.op(), row, g);
    CHECK(std::abs(at.residual - result.last.residual) < 1e-14 * at.rayleigh);
    return result;
  };
  const auto silent = [](const auto&, const auto&) {};
  double before = 1;
  const auto by_residual = run({.residual_tolerance = 1e-8}, [&](const auto& record, const auto&) {
    if (record.relative_residual > 1e-8) before = record.relative_residual;
  });
  CHECK(by_residual.reason == stop_reason::residual);
  CHECK(by_residual.last.relative_residual <= 1e-8);
  CHECK(before > 1e-8);  // not a step later than needed
  const auto by_angle = run({.angle_tolerance = 1e-5}, silent);
  CHECK(by_angle.reason == stop_reason::angle);
  CHECK(by_angle.last.step_angle <= 1e-5);
  CHECK(by_angle.last.step_angle > 1e-6);
  const auto by_count = run({.max_steps = 3, .residual_tolerance = 1e-8}, silent);
  CHECK(by_count.reason == stop_reason::max_steps);
  CHECK(by_count.steps == 3);
  const auto by_callback = run({}, [](const auto& record, const auto&) { return record.step < 5; });
  CHECK(by_callback.reason == stop_reason::callback);
  CHECK(by_callback.steps == 5);
}

TEST_CASE("momentum is x_{k+1} = M x_k − β x_{k−1}") {
  const auto e = with_spectrum(59, {2, 1.8, 1.5, 1});
  const matrix a = values(row_major(e.spectrum.a.data(), 24, 40));
  const double beta = std::pow(1.8, 4) / 4;
  const auto start = random_row(60);
  column previous = column::Zero(40);
  column x = values(start).normalized();
  for (index_t k = 0; k <= 12; ++k) {
    auto row = start;
    std::vector<double> workspace(80);
    const auto result = power_iteration(e.op(), row, workspace,
                                        {.max_steps = k, .acceleration = momentum<double>::fixed(beta)});
    CHECK(result.steps == k);
    CHECK(relative_distance(values(row), column(x.normalized())) < 1e-11);
    const column next = a.transpose() * (a * x) - beta * previous;
    previous = x;
    x = next;
  }
}

TEST_CASE("momentum needs about the square root of the steps, and an estimated β not many more") {
  for (const double kappa : {0.9, 0.97, 0.99}) {
    const auto e = with_spectrum(61, {1, kappa, 0.98 * kappa, 0.9 * kappa, 0.5 * kappa, 0.2});
    const auto steps = [&](momentum<double> rule) {
      auto row = random_row(62);
      std::vector<double> workspace(80);
      const auto result = power_iteration(
          e.op(), row, workspace, {.max_steps = 20000, .residual_tolerance = 1e-9, .acceleration = rule});
      CHECK(result.reason == stop_reason::residual);
      CHECK(e.angle_of(row) < 1e-9 / (1 - kappa));
      return static_cast<double>(result.steps);
    };
    const double plain = steps(momentum<double>::none());
    const double best = steps(momentum<double>::fixed(std::pow(kappa, 4) / 4));
    const double estimated = steps(momentum<double>::estimated());
    CAPTURE(kappa);
    CAPTURE(plain);
    CAPTURE(best);
    CAPTURE(estimated);
    // Rates: κ² a step without, about exp(−√(2(1 − κ²))) with the best β.
    CHECK(best < 1.6 * plain * (1 - kappa * kappa) / std::sqrt(2 * (1 - kappa * kappa)) + 10);
    CHECK(estimated < 2 * best + 20);
    CHECK(estimated < plain);
  }
}

TEST_CASE(
    "stateless use leaves the row alone; stateful use writes it back; they differ after the second step") {
  const auto e = with_spectrum(67, {2, 1.5, 1});
  const auto trained = random_row(68);
  auto row = trained;
  std::vector<double> first(40), second(40), scratch(40);
  power_step(e.op(), row, first, 2.0);
  power_step(e.op(), row, second, 2.0);
  CHECK(row == trained);
  CHECK(first == second);
  stateful_power_step(e.op(), row, scratch, 2.0);
  CHECK(row == first);
  stateful_power_step(e.op(), row, scratch, 2.0);
  CHECK(e.angle_of(row) < 0.8 * e.angle_of(first));
}

TEST_CASE("drift: a stateful row trails a turning M by an angle of about κ²δ/(1 − κ²)") {
  for (const double kappa : {0.5, 0.8}) {
    constexpr double delta = 1e-3;
    // M turns in the plane of its two directions, so the trail is in that plane too.
    column row = column::Unit(2, 0);
    column scratch(2);
    const auto at = [&](int k) {
      matrix turn(2, 2);
      turn << std::cos(k * delta), -std::sin(k * delta), std::sin(k * delta), std::cos(k * delta);
      return turn;
    };
    double trail = 0;
    for (int k = 1; k <= 400; ++k) {
      const matrix a = column(Eigen::Vector2d(1, kappa)).asDiagonal() * at(k).transpose();
      stateful_power_step(gram(a), view(row), view(scratch), 1.0);
      const column principal = at(k).col(0);
      trail = line_angle<double>(view(std::as_const(row)), view(principal));
    }
    const double expected = kappa * kappa * delta / (1 - kappa * kappa);
    CHECK(trail == doctest::Approx(expected).epsilon(0.01));
  }
}

}  // namespace test_iteration
