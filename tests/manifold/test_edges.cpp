// What is refused, by its words, and what lies at the edge of the range of numbers: subnormal rows, steps
// that overflow, rows that are there already.
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "vectors.hpp"

namespace test_edges {
using namespace mpi_router;
using namespace test_support;

namespace {

template <class S>
constexpr S tiny = std::numeric_limits<S>::denorm_min();

/// Every vector of `size` elements, `stride` apart, with NaN between them.
template <class S>
std::vector<S> spread(const std::vector<S>& x, index_t stride) {
  std::vector<S> all(x.size() * static_cast<std::size_t>(stride), std::numeric_limits<S>::quiet_NaN());
  for (std::size_t i = 0; i < x.size(); ++i) all[i * static_cast<std::size_t>(stride)] = x[i];
  return all;
}

}  // namespace

TEST_CASE_TEMPLATE("one step by hand: A = diag(2, 1), r = (1, 1)", S, float, double) {
  // M = diag(4, 1), rM = (4, 1), ρ = 5/2, g = (3, −3)/(2√2), tan ψ = 3/5.
  const std::vector<S> a{2, 0, 0, 1}, row{3, 3};
  const auto op = gram(row_major(a.data(), 2, 2));
  const double bound = tolerance<S>.identity;
  const double psi = std::atan(0.6);
  std::vector<S> got(2), g(2);
  const auto step = power_step(op, row, got, S(2));
  CHECK(close(step.rayleigh, 2.5, bound));
  CHECK(close(step.cosine, std::cos(psi), bound));
  CHECK(relative_distance(got, std::vector<double>{8 / std::sqrt(17), 2 / std::sqrt(17)}) <= bound);
  CHECK(close(angle<S>(row, got), psi, bound));
  CHECK(close(geodesic_distance<S>(row, got, S(3)), 3 * psi, bound));
  const std::vector<S> minus{-got[0], -got[1]};
  CHECK(close(angle<S>(row, minus), std::numbers::pi - psi, bound));
  CHECK(close(line_angle<S>(row, minus), psi, bound));
  const auto at = rayleigh(op, row, g);
  CHECK(close(at.rayleigh, 2.5, bound));
  CHECK(close(at.residual, 1.5, bound));
  CHECK(close(at.relative_residual, 0.6, bound));
  CHECK(relative_distance(g, std::vector<double>{1.5 / std::sqrt(2), -1.5 / std::sqrt(2)}) <= bound);
  CHECK(close(adaptive_step_length(at).tangential, 0.6, bound));
  CHECK(close(adaptive_step_length(at).geodesic, psi, bound));
  CHECK(close(alignment_spectral(at.rayleigh, S(2)), std::sqrt(2.5) / 2, bound));
  CHECK(close(alignment_frobenius(at.rayleigh, S(3)), std::sqrt(2.5) / 3, bound));
  CHECK(adaptive_step(S(2.5)) == S(1) / S(2.5));
  CHECK(power_shift(S(2.5), S(0.25)) == S(-1.5));
  for (const double eta : {-0.2, 0.2, 0.4}) {  // r̂ + ηg = (1 + 3η/2, 1 − 3η/2)/√2; 0.4 is 1/ρ
    const auto ascent = steepest_ascent_step(op, row, got, S(2), static_cast<S>(eta));
    const double length = std::hypot(1 + 1.5 * eta, 1 - 1.5 * eta);
    const std::vector<double> want{2 * (1 + 1.5 * eta) / length, 2 * (1 - 1.5 * eta) / length};
    CHECK(relative_distance(got, want) <= bound);
    CHECK(close(ascent.cosine, 1 / std::hypot(1, 1.5 * eta), bound));
    CHECK(close(ascent.rayleigh, 2.5, bound));
  }
  auto state = row;
  stateful_power_step(op, state, got, S(2));
  CHECK(relative_distance(state, std::vector<double>{8 / std::sqrt(17), 2 / std::sqrt(17)}) <= bound);
}

TEST_CASE("momentum by hand: x_{k+1} = M x_k − β x_{k−1} with M = diag(4, 1), β = 1/2") {
  const std::vector<double> a{2, 0, 0, 1};
  const auto op = gram(row_major(a.data(), 2, 2));
  const std::vector<std::vector<double>> x{{1, 1},  {4, 1},          {15.5, 0.5},
                                           {60, 0}, {232.25, -0.25}, {899, -0.25}};
  std::vector<double> workspace(4);
  for (index_t k = 0; k + 1 < std::ssize(x); ++k) {
    std::vector<double> row{5, 5};
    std::vector<iteration_record<double>> records;
    const auto result =
        power_iteration(op, vector_view<double>(row), vector_view<double>(workspace),
                        {.max_steps = k, .radius = 2, .acceleration = momentum<double>::fixed(0.5)},
                        [&](const auto& record, const auto&) { records.push_back(record); });
    CHECK(std::ssize(records) == k + 1);
    CHECK(result.steps == k);
    CHECK(result.applications == k + 1);
    for (index_t j = 0; j <= k; ++j) {
      const auto& now = x[static_cast<std::size_t>(j)];
      const auto& next = x[static_cast<std::size_t>(j + 1)];
      const auto& record = records[static_cast<std::size_t>(j)];
      CHECK(record.step == j);
      CHECK(close(record.step_angle, angle<double>(now, next), 1e-11, 1));
      const double rho = (4 * now[0] * now[0] + now[1] * now[1]) / (now[0] * now[0] + now[1] * now[1]);
      CHECK(close(record.rayleigh, rho, 1e-12));
    }
    std::vector<double> want(2);
    retract<double>(x[static_cast<std::size_t>(k)], want, 2.0);
    CHECK(relative_distance(row, want) < 1e-12);
  }
}

TEST_CASE("the estimate of β infers σ₂² from the rate that momentum itself has changed") {
  const auto mu = [](double lambda, double beta) {
    return (lambda + std::sqrt(lambda * lambda - 4 * beta)) / 2;
  };
  detail::momentum_estimate<double> estimate(momentum<double>::estimated());
  const scaled<double> one{1, 0};
  double residual = 1;
  index_t step = 0;
  CHECK(estimate.beta_over_rho(step, one, residual).unscaled() == 0);
  const auto five_steps = [&](double rate) {
    double beta = 0;
    for (int k = 0; k < 5; ++k) beta = estimate.beta_over_rho(++step, one, residual *= rate).unscaled();
    return beta;
  };
  CHECK(five_steps(0.8) == doctest::Approx(0.16));  // without momentum the rate is σ₂² itself
  CHECK(five_steps(mu(0.9, 0.16) / mu(1, 0.16)) == doctest::Approx(0.2025));
  CHECK(five_steps(0.6) == doctest::Approx(0.2025));   // never less
  CHECK(five_steps(0.99) == doctest::Approx(0.2025));  // nothing is inferred from a standstill
}

TEST_CASE_TEMPLATE("norms: whatever the place, the sign, the stride and the size of the largest element", S,
                   float, double) {
  const S large = std::ldexp(S{1}, std::numeric_limits<S>::max_exponent - 2);
  const S small = std::numeric_limits<S>::min();
  for (const index_t size : {1, 7, 8, 9, 17}) {
    for (index_t place = 0; place < size; ++place) {
      for (const S value : {large, -large, S(3), tiny<S>, -tiny<S>}) {
        std::vector<S> x(static_cast<std::size_t>(size), value == large || value == -large ? -small : S{0});
        x[static_cast<std::size_t>(place)] = value;
        for (const index_t stride : {1, 3}) {
          const auto all = spread(x, stride);
          std::vector<S> got(x.size());
          CHECK(retract<S>(in<S>(all.data(), size, stride), out<S>(got), S(2)) == status::ok);
          CHECK(got[static_cast<std::size_t>(place)] == (value > S{0} ? S(2) : S(-2)));
        }
      }
      for (const S bad : {std::numeric_limits<S>::infinity(), -std::numeric_limits<S>::infinity(),
                          std::numeric_limits<S>::quiet_NaN(), -std::numeric_limits<S>::quiet_NaN()}) {
        std::vector<S> x(static_cast<std::size_t>(size), S(-1)), got(x.size());
        x[static_cast<std::size_t>(place)] = bad;
        for (const index_t stride : {1, 3}) {
          const auto all = spread(x, stride);
          CHECK(retract<S>(in<S>(all.data(), size, stride), out<S>(got), S(2)) == status::non_finite);
          CHECK(std::memcmp(got.data(), x.data(), x.size() * sizeof(S)) == 0);  // copied as it is
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("a zero or broken base has no tangent space: v goes through, and the status says so", S,
                   float, double) {
  const std::vector<S> v{1, -2, 3};
  for (const S value : {S{0}, std::numeric_limits<S>::infinity(), std::numeric_limits<S>::quiet_NaN()}) {
    std::vector<S> got(3, S(77));
    const auto expected = value == S{0} ? status::zero_row : status::non_finite;
    const std::vector<S> base(3, value);
    CHECK(project_to_tangent<S>(base, v, got) == expected);
    CHECK(got == v);
    CHECK(retract<S>(base, got, S(2)) == expected);
    CHECK(std::isnan(angle<S>(base, v)));
    CHECK(std::isnan(angle<S>(v, base)));
    CHECK(std::isnan(line_angle<S>(in<S>(v), base)));
  }
}

TEST_CASE_TEMPLATE("subnormal rows have a direction, an angle, a tangent space and a step", S, float,
                   double) {
  random_source random(3);
  const index_t F = 4, D = 9;
  const auto a = random_vector<S>(random, F * D);
  const auto op = gram(row_major(a.data(), F, D));
  std::vector<S> whole(static_cast<std::size_t>(D)), sub(whole);
  for (std::size_t i = 0; i < whole.size(); ++i) {
    whole[i] = static_cast<S>(random.integer(1, 9) * (i % 2 == 0 ? 1 : -1));
    sub[i] = whole[i] * tiny<S>;  // exact
  }
  const double bound = tolerance<S>.identity;
  std::vector<S> want(whole.size()), got(whole.size()), workspace(whole.size());
  retract<S>(whole, want, S(2));
  retract<S>(sub, got, S(2));
  CHECK(got == want);
  CHECK(double(angle<S>(whole, sub)) <= bound);
  const auto v = random_vector<S>(random, D);
  project_to_tangent<S>(whole, v, want);
  project_to_tangent<S>(sub, v, got);
  CHECK(got == want);
  const auto expected = power_step(op, whole, want, S(2));
  const auto result = power_step(op, sub, got, S(2));
  CHECK(relative_distance(got, want) <= bound);
  CHECK(close(result.rayleigh, expected.rayleigh, bound));
  CHECK(close(result.cosine, expected.cosine, bound));
  adaptive_ascent_step(op, sub, got, S(2));
  CHECK(relative_distance(got, want) <= bound);
  const auto at = rayleigh(op, whole, want);
  const auto of_sub = rayleigh(op, sub, got);
  CHECK(relative_distance(got, want) <= bound);
  CHECK(close(of_sub.rayleigh, at.rayleigh, bound));
  CHECK(close(of_sub.residual, at.residual, bound));
  auto row = sub;
  power_step(op, whole, want, S(3));
  CHECK(power_iteration(op, row, workspace, {.max_steps = 1, .radius = S(3)}).state == status::ok);
  CHECK(relative_distance(row, want) <= bound);
}

TEST_CASE_TEMPLATE("a row keeps its step at every power of two on the way to underflow and to overflow", S,
                   float, double) {
  // Plain and scaled applications take turns somewhere on the way: neither may lose bits before the other
  // begins.
  random_source random(5);
  const index_t F = 3, D = 5;
  const auto a = random_vector<S>(random, F * D);
  const auto row = random_vector<S>(random, D);
  std::vector<S> want(row.size()), got(row.size());
  const auto expected = power_step(gram(row_major(a.data(), F, D)), row, want, S(1));
  const int range = std::numeric_limits<S>::max_exponent - 4;
  for (int exponent = -range; exponent <= range; ++exponent) {
    // Rows alone, weights alone, and weights against rows: energies and images leave the range at other
    // places.
    for (const auto& [of_a, of_row] : {std::pair{0, exponent},
                                       {exponent / 2, 0},
                                       {-exponent, exponent},
                                       {-exponent / 3, exponent},
                                       {10 - range, exponent}}) {
      CAPTURE(of_a);
      CAPTURE(of_row);
      auto weights = a, scaled = row;
      for (S& x : weights) x = std::ldexp(x, of_a);
      for (S& x : scaled) x = std::ldexp(x, of_row);
      const auto result = power_step(gram(row_major(weights.data(), F, D)), scaled, got, S(1));
      CHECK(relative_distance(got, want) <= tolerance<S>.arithmetic);
      CHECK(close(result.cosine, expected.cosine, 2 * tolerance<S>.arithmetic));
      if (std::abs(of_a) < range / 3) {
        CHECK(close(std::ldexp(result.rayleigh, -2 * of_a), expected.rayleigh, 2 * tolerance<S>.arithmetic));
      }
    }
  }
}

TEST_CASE_TEMPLATE("a step that leaves the range of numbers is a status, and the row is what the policy says",
                   S, float, double) {
  const std::vector<S> a{2, 1, 0, 1};
  const auto op = gram(row_major(a.data(), 2, 2));
  const std::vector<S> row{1, 3};
  const S most = std::numeric_limits<S>::max();
  for (const S eta : {most, -most}) {
    std::vector<S> got(2, S(77));
    const auto result = steepest_ascent_step(op, row, got, S(2), eta);
    CHECK(result.state == status::non_finite);
    CHECK(result.rayleigh > S(1));
    CHECK(result.cosine == S{0});
    CHECK(got == row);
    CHECK(steepest_ascent_step(op, row, got, S(2), eta, degenerate_row::zero).state == status::non_finite);
    CHECK(got == std::vector<S>(2));
  }
  std::vector<S> got(2);
  CHECK(steepest_ascent_step(op, row, got, S(2), most / S(64)).state == status::ok);  // just in range
}

TEST_CASE_TEMPLATE("a row that is principal moves by nothing: its cosine is one, never more", S, float,
                   double) {
  random_source random(11);
  std::vector<S> got(3);
  for (int trial = 0; trial < 300; ++trial) {
    const auto a = random_vector<S>(random, 3);
    const auto op = gram(row_major(a.data(), 1, 3));
    for (const S cosine :
         {power_step(op, a, got, S(2)).cosine, adaptive_ascent_step(op, a, got, S(2)).cosine}) {
      CHECK(cosine <= S(1));
      CHECK(close(cosine, 1, tolerance<S>.arithmetic));
    }
  }
}

TEST_CASE_TEMPLATE("a row nearly across all that A sees: as far from its image as it is", S, float, double) {
  const bool is_float = std::same_as<S, float>;
  const std::vector<S> a{1, 0};
  const auto op = gram(row_major(a.data(), 1, 2));
  for (const int exponent : is_float ? std::vector{-40, -61, -100} : std::vector{-300, -501, -700}) {
    CAPTURE(exponent);
    const S little = static_cast<S>(std::ldexp(1.0, exponent));
    const std::vector<S> row{little, 1};
    std::vector<S> next(2), residual(2);
    const auto step = power_step(op, in<S>(row), out<S>(next), S{3});
    REQUIRE(step.state == status::ok);
    CHECK(next == std::vector<S>{3, 0});
    CHECK(step.cosine == little);
    const auto at = rayleigh(op, in<S>(row), out<S>(residual));
    REQUIRE(at.state == status::ok);
    CHECK(at.relative_residual == doctest::Approx(S{1} / little));
    CHECK(at.residual == doctest::Approx(little));
    CHECK(residual[0] == doctest::Approx(little));
  }
}

TEST_CASE("an operator of the caller's whose quotient is not positive has no step") {
  std::vector<double> got(3);
  const std::vector<double> row{1, 2, 2};
  for (const double sign : {-1.0, 0.0}) {
    auto op = gram_operator<double>(3, [sign](vector_view<const double> x, vector_view<double> u) {
      u[0] = sign == 0 ? 2 * x[1] : sign * x[0];
      u[1] = sign == 0 ? -2 * x[0] : sign * x[1];
      u[2] = sign == 0 ? 0 : sign * x[2];
      return std::numeric_limits<double>::infinity();  // out of range, so that the quotient comes from the
                                                       // image
    });
    CHECK(power_step(op, row, got, 2.0).state == status::zero_image);
    CHECK(got == row);
    CHECK(rayleigh(op, row, got).state == status::zero_image);
    CHECK(got == std::vector<double>(3));
    CHECK(adaptive_ascent_step(op, row, got, 2.0, degenerate_row::zero).state == status::zero_image);
    CHECK(got == std::vector<double>(3));
  }
}

TEST_CASE("a row that has arrived takes no step, and a tolerance of zero stops nothing") {
  const std::vector<double> a{2, 0, 0, 1};
  const auto op = gram(row_major(a.data(), 2, 2));
  std::vector<double> workspace(4);
  for (const auto rule :
       {momentum<double>::none(), momentum<double>::fixed(0.1), momentum<double>::estimated()}) {
    const auto run = [&](iteration_options<double> options) {
      std::vector<double> row{3, 0};
      options.acceleration = rule;
      const auto result = power_iteration(op, row, workspace, options);
      CHECK(row == std::vector<double>{options.radius, 0});
      CHECK(result.applications == result.steps + 1);
      CHECK(result.last.step == result.steps);
      return result;
    };
    const auto by_residual = run({.max_steps = 5, .residual_tolerance = 1e-300, .radius = 2});
    CHECK(by_residual.reason == stop_reason::residual);
    CHECK(by_residual.steps == 0);
    const auto by_angle = run({.max_steps = 5, .angle_tolerance = 1e-300});
    CHECK(by_angle.reason == stop_reason::angle);
    CHECK(by_angle.steps == 0);
    const auto by_count = run({.max_steps = 5});
    CHECK(by_count.reason == stop_reason::max_steps);
    CHECK(by_count.steps == 5);
    const auto none = run({.max_steps = 0, .radius = 7});
    CHECK(none.reason == stop_reason::max_steps);
    CHECK(none.steps == 0);
  }
  // At the tolerance exactly: tan ψ of (1, 1) under diag(4, 1) is 0.6.
  std::vector<double> row{1, 1};
  double relative = 0;
  power_iteration(op, vector_view<double>(row), vector_view<double>(workspace), {.max_steps = 0},
                  [&](const auto& record, const auto&) { relative = record.relative_residual; });
  row = {1, 1};
  CHECK(power_iteration(op, row, workspace, {.residual_tolerance = relative}).steps == 0);
  row = {1, 1};
  CHECK(power_iteration(op, row, workspace, {.angle_tolerance = std::atan(relative)}).steps == 0);
  row = {1, 1};
  CHECK(power_iteration(op, row, workspace, {.residual_tolerance = relative * (1 - 1e-15)}).steps == 1);
}

TEST_CASE_TEMPLATE("the backward of one step, in place, degenerate, and at the ends of the range", S, float,
                   double) {
  random_source random(7);
  const index_t F = 3, D = 5;
  const auto a = random_vector<S>(random, F * D);
  const auto r = random_vector<S>(random, D);
  const auto g = random_vector<S>(random, D);
  const double bound = tolerance<S>.identity;
  struct backward {
    std::vector<S> to_r, y, w, q, p, detached;
  };
  const auto run = [&](const std::vector<S>& weights, const std::vector<S>& row, const std::vector<S>& grad,
                       degenerate_row policy) {
    const auto op = gram(row_major(weights.data(), F, D));
    std::vector<S> next(row.size()), scratch(row.size());
    saved_norm<S> saved{S(5), 5};
    power_step(op, row, next, S(2), policy, saved);
    const std::vector<S> f(static_cast<std::size_t>(F), S(77)), d(row.size(), S(77));
    backward b{d, f, f, d, d, grad};
    power_step_vjp(op, in<S>(row), in<S>(next), saved, in<S>(grad), S(2), out<S>(b.to_r),
                   rank2_factors<S>{b.y, b.q, b.w, b.p}, policy);
    power_step_vjp(op, in<S>(next), saved, in<S>(b.detached), S(2), out<S>(b.detached), out<S>(scratch),
                   policy);
    return b;
  };
  const auto plain = run(a, r, g, degenerate_row::keep);
  CHECK(relative_distance(plain.detached, plain.to_r) <= bound);
  double along = 0, size = 0;  // ⟨r̄, r⟩ = 0
  for (std::size_t i = 0; i < r.size(); ++i) {
    along += double(plain.to_r[i]) * double(r[i]);
    size += std::abs(double(plain.to_r[i]) * double(r[i]));
  }
  CHECK(std::abs(along) <= bound * size);
  // Ā from the factors and r̄ scale with 1/‖A‖ and 1/‖r‖; the factors stay in range.
  const int most = std::numeric_limits<S>::max_exponent / 2 - 8;
  for (const int a_exponent : {-most, -1, 0, 1, most}) {
    for (const int r_exponent : {-most, -1, 0, 1, most}) {
      CAPTURE(a_exponent);
      CAPTURE(r_exponent);
      auto weights = a;
      auto row = r;
      for (S& x : weights) x = std::ldexp(x, a_exponent);
      for (S& x : row) x = std::ldexp(x, r_exponent);
      auto b = run(weights, row, g, degenerate_row::keep);
      for (S& x : b.to_r) x = std::ldexp(x, r_exponent);
      CHECK(relative_distance(b.to_r, plain.to_r) <= bound);
      std::vector<S> to_a(a.size()), expected(a.size());
      add_rank2(rank2_factors<S>{b.y, b.q, b.w, b.p}, row_major(to_a.data(), F, D), gradient_mode::write);
      auto p = plain;
      add_rank2(rank2_factors<S>{p.y, p.q, p.w, p.p}, row_major(expected.data(), F, D), gradient_mode::write);
      for (S& x : to_a) x = std::ldexp(x, a_exponent);
      CHECK(relative_distance(to_a, expected) <= bound);
    }
  }
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    const std::vector<S> nothing(a.size());
    std::vector<S> got(r.size());
    CHECK(power_step(gram(row_major(nothing.data(), F, D)), r, got, S(2), policy).state ==
          status::zero_image);
    const auto b = run(nothing, r, g, policy);
    CHECK(b.to_r == (policy == degenerate_row::keep ? g : std::vector<S>(g.size())));
    CHECK(b.detached == b.to_r);
    for (const auto& factor : {b.y, b.w}) CHECK(factor == std::vector<S>(static_cast<std::size_t>(F)));
    for (const auto& factor : {b.q, b.p}) CHECK(factor == std::vector<S>(g.size()));
  }
}

TEST_CASE("add_rank2 is factor · (y qᵀ + w pᵀ) into every layout") {
  const index_t F = 2, D = 3;
  std::vector<double> y{1, 2}, w{3, 5}, q{7, 11, 13}, p{17, 19, 23};
  const rank2_factors<double> factors{y, q, w, p};
  for (const auto mode : {gradient_mode::write, gradient_mode::accumulate}) {
    for (const auto& [row_stride, col_stride] :
         {std::pair<index_t, index_t>{3, 1}, {4, 1}, {9, 2}, {-3, 1}, {1, 2}, {1, 4}}) {
      std::vector<double> all(40, 100);
      const matrix_view<double> gradient(all.data() + 10, F, D, row_stride, col_stride);
      add_rank2(factors, gradient, mode, -2.0);
      for (index_t f = 0; f < F; ++f) {
        for (index_t d = 0; d < D; ++d) {
          const auto i = static_cast<std::size_t>(f), k = static_cast<std::size_t>(d);
          CHECK(gradient(f, d) == (mode == gradient_mode::write ? 0 : 100) - 2 * (y[i] * q[k] + w[i] * p[k]));
        }
      }
    }
  }
}

TEST_CASE("momentum from a row far from the principal direction, and one that leaves the range") {
  const auto stretch = gram_operator<float>(2, [](auto x, auto u) {
    u[0] = x[0];
    u[1] = 0;
    return x[0] * x[0];
  });
  std::vector<float> row{1e-12F, 1}, workspace(4);
  iteration_options<float> options{.max_steps = 6, .acceleration = momentum<float>::fixed(0.2F)};
  auto op = stretch;
  const auto result = power_iteration(op, vector_view<float>(row), vector_view<float>(workspace), options);
  CHECK(result.state == status::ok);
  CHECK(std::isfinite(row[0]));
  CHECK(std::isfinite(row[1]));
  // β of 1e38 beside ρ of 1e-24: nothing is left to divide by.
  row = {1e-12F, 1};
  options.acceleration = momentum<float>::fixed(1e38F);
  const auto lost = power_iteration(op, vector_view<float>(row), vector_view<float>(workspace), options);
  CHECK(lost.reason == stop_reason::degenerate);
  CHECK(std::isfinite(row[0]));
  CHECK(std::isfinite(row[1]));
}

TEST_CASE("an image of subnormal numbers is no direction where it cannot be had anew") {
  const float a[] = {1e-22F, 3e-23F};
  auto op = gram_operator<float>(2, [&a](auto x, auto u) {
    const float y = a[0] * x[0] + a[1] * x[1];
    u[0] = y * a[0];
    u[1] = y * a[1];
    return y * y;
  });
  const std::vector<float> row{1, 1};
  std::vector<float> out(2);
  CHECK(power_step(op, row, out, 1.0F).state == status::zero_image);
  CHECK(out == row);
  const auto dense = gram(row_major(static_cast<const float*>(a), 1, 2));  // multiplies anew
  CHECK(power_step(dense, row, out, 1.0F).state == status::ok);
  CHECK(close(static_cast<double>(out[1] / out[0]), 0.3, 1e-6));
}

TEST_CASE("a row without a step has no norm for the backward, whatever its image") {
  const std::vector<double> row{1, 2}, grad{3, 4};
  std::vector<double> out(2), grad_row(2), scratch(2);
  auto backwards = gram_operator<double>(2, [](auto x, auto u) {  // not positive: no Gram matrix does this
    u[0] = -x[0];
    u[1] = -x[1];
    return std::numeric_limits<double>::quiet_NaN();
  });
  saved_norm<double> saved(7);
  const auto result = power_step(backwards, vector_view<const double>(row), vector_view<double>(out), 1.0,
                                 degenerate_row::keep, saved);
  CHECK(result.state == status::zero_image);
  CHECK(saved.value == 0);
  power_step_vjp(backwards, vector_view<const double>(out), saved, vector_view<const double>(grad), 1.0,
                 vector_view<double>(grad_row), vector_view<double>(scratch));
  CHECK(grad_row == grad);  // the row was kept, and so its gradient goes through
}

}  // namespace test_edges
