// Spectra for which a proof is tight: what claims a little more than it may is refuted by them.
#include <mpi_router/core/operators.hpp>
#include <mpi_router/verify/principal.hpp>

#include <doctest/doctest.h>
#include <Eigen/QR>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

namespace test_overclaims {
using namespace mpi_router;
using namespace test_support;

namespace {

using matrix = Eigen::MatrixXd;
using column = Eigen::VectorXd;

/// diag(λ) as an operator: M itself, not its factor.
struct diagonal {
  using scalar = double;
  column lambda;
  [[nodiscard]] index_t dimension() const { return lambda.size(); }
  double apply(vector_view<const double> x, vector_view<double> u) const {
    map(u) = lambda.cwiseProduct(map(x));
    return map(x).dot(map(u));
  }
};
diagonal with(std::vector<double> values) {
  return {Eigen::Map<const column>(values.data(), static_cast<index_t>(values.size()))};
}

constexpr double infinity = std::numeric_limits<double>::infinity();

}  // namespace

TEST_CASE("the ladder allows for rounding as its proof does: squaring by squaring") {
  // Powers of diag(1, 1, 1/2) are exact, and σ₁ = σ₂: it climbs until rounding stops it, and what α is above
  // 1 is the allowance. The recurrences, in the words of the proof: ‖fl(H) − H‖ ≤ δ, and the relative error
  // of ‖K^p‖^{1/p}.
  const matrix a = Eigen::Vector3d(1, 1, 0.5).asDiagonal();
  const double u = std::numeric_limits<double>::epsilon();
  const double m = 3, terms = 3;
  const auto power_norm = [](double p) { return std::sqrt(2 + std::pow(0.25, 2 * p)); };  // ‖K^p‖
  double delta = 2 * terms * u * 2.25 / power_norm(1), scale_error = delta + m * m * u, best = infinity;
  for (int squarings = 0; squarings <= 8; ++squarings) {
    const double p = std::pow(2, squarings);
    const double h_1 = 1 / power_norm(p);
    const double rest = 1 - std::pow(h_1 - delta, 2) + 4 * m * u + 2 * m * m * u;
    best = std::min(best, std::pow(power_norm(p), 1 / p) * (1 + scale_error) * std::pow(rest, 1 / (2 * p)));
    const auto ladder = trace_ladder(a, squarings);
    CAPTURE(squarings);
    CHECK(ladder.squarings == squarings);
    CHECK(ladder.bound.label == certainty::rigorous);
    CHECK(close(ladder.bound.alpha - 1, best - 1, 0.005));
    const double norm = power_norm(2 * p) / std::pow(power_norm(p), 2);  // ‖H_p²‖
    delta = 2 * (2 * delta + delta * delta + m * u) / norm;
    scale_error += (delta + m * m * u) / (2 * p);
  }
  CHECK(best < 1 + 1e-11);
}

TEST_CASE("the ladder: wide, tall, of any size, and what has no direction") {
  for (const double scale : {0x1p-500, 1.0, 0x1p500}) {
    matrix a = matrix::Zero(2, 4);
    a(0, 1) = scale;
    a(1, 3) = 0.5 * scale;
    for (const bool wide : {true, false}) {
      const auto ladder = wide ? trace_ladder(a) : trace_ladder(matrix(a.transpose()));
      CHECK(ladder.bound.alpha >= 0.25 * scale * scale);
      CHECK(ladder.bound.alpha <= 0.3 * scale * scale);
      CHECK(std::abs(ladder.direction[wide ? 1 : 0]) == doctest::Approx(1));
      CHECK(ladder.direction.norm() == doctest::Approx(1));
    }
  }
  const auto zero = trace_ladder(matrix(matrix::Zero(2, 3)));
  CHECK(zero.direction.size() == 0);
  CHECK(zero.bound.label == certainty::none);
  matrix broken = matrix::Ones(2, 3);
  for (const double bad : {std::nan(""), infinity, -infinity}) {
    broken(1, 2) = bad;
    CHECK(trace_ladder(broken).direction.size() == 0);
  }
}

TEST_CASE(
    "the probe fails as often as it says: one eigenvalue beside a flat rest makes its inequality tight") {
  // B = diag(0, μ, ν, …, ν): one step leaves nothing but the component along μ, so that the bound is missed
  // exactly when that component is below its quantile. ρ is such that α may go up to μ, and no farther.
  const index_t D = 50;
  std::vector<double> values(static_cast<std::size_t>(D), 0.1);
  values[0] = 1;
  values[1] = 0.7;
  const auto op = with(values);
  const column v1 = column::Unit(D, 0);
  constexpr int trials = 1000;
  for (const index_t starts : {1, 2, 3}) {
    for (const double wanted : {0.05, 0.2}) {
      int misses = 0;
      for (int seed = 0; seed < trials; ++seed) {
        const auto probe = probe_second_eigenvalue(op, view(v1), 1.0,
                                                   {.failure_probability = wanted,
                                                    .starts = starts,
                                                    .max_steps = 300,
                                                    .seed = static_cast<std::uint64_t>(seed)});
        CHECK(probe.bound.label == certainty::probabilistic);
        CHECK(probe.bound.failure_probability == wanted);
        misses += probe.bound.alpha < 0.7 ? 1 : 0;
      }
      CAPTURE(starts);
      CAPTURE(wanted);
      CAPTURE(misses);
      const double spread = std::sqrt(trials * wanted * (1 - wanted));
      CHECK(misses <= trials * wanted + 3 * spread);
      CHECK(misses >= 0.5 * trials * wanted);  // tight, or the test would notice nothing
    }
  }
}

TEST_CASE("the probe: rounding is added, a Ritz residual too, and what it cannot say it does not") {
  const index_t D = 12;
  const double rounding = 4 * D * std::numeric_limits<double>::epsilon();
  const column v1 = column::Unit(D, 0);
  std::vector<double> values(static_cast<std::size_t>(D), 0);
  values[0] = 1;
  // Nothing beside v̂: what is left is rounding.
  const auto alone = probe_second_eigenvalue(with(values), view(v1), 1.0);
  CHECK(alone.bound.label == certainty::probabilistic);
  CHECK(alone.bound.alpha >= rounding);
  CHECK(alone.bound.alpha <= 0.01);
  // A flat rest: one step sees all of it, exactly, and rounding is what is above.
  for (std::size_t k = 1; k < values.size(); ++k) values[k] = 0.5;
  const auto flat = probe_second_eigenvalue(with(values), view(v1), 1.0);
  CHECK(flat.applications == 2);  // one a start: what is left then is rounding, and no direction
  CHECK(flat.ritz_value >= 0.5 + 0.99 * rounding);
  CHECK(flat.ritz_value <= 0.5 + 1.5 * rounding);
  CHECK(flat.bound.alpha >= 0.5 + 1.9 * rounding);
  // In float one start may not miss less than float can see: there are two, or three in many dimensions.
  const auto in_float = [&](index_t dimension, double tau) {
    auto op = gram_operator<float>(dimension, [](auto x, auto u) {
      map(u) = 0.5F * map(x);
      return 0.5F * map(x).squaredNorm();
    });
    const column v = column::Unit(dimension, 0);
    return probe_second_eigenvalue(op, view(v), 1.0, {.failure_probability = tau, .starts = 1}).applications;
  };
  CHECK(in_float(D, 1e-3) == 1);
  CHECK(in_float(D, 1e-6) == 2);
  CHECK(in_float(12000, 1e-6) == 3);
  CHECK(probe_second_eigenvalue(with(values), view(v1), 1.0, {.starts = 1}).applications == 1);
  // Steps too few: the Ritz value and how far it may be from an eigenvalue, and nothing of a probability.
  for (std::size_t k = 1; k < values.size(); ++k) values[k] = 0.9 * std::pow(0.9, static_cast<double>(k));
  for (const index_t steps : {1, 2}) {
    const auto hasty =
        probe_second_eigenvalue(with(values), view(v1), 1.0, {.starts = 2, .max_steps = steps});
    CHECK(hasty.bound.label == certainty::heuristic);
    CHECK(hasty.bound.failure_probability == 1);
    CHECK(hasty.bound.alpha > hasty.ritz_value + 1e-3);
    CHECK(hasty.applications == 2 * steps);
  }
  // v̂ is not principal: its better is handed back, and no bound below ρ.
  values[3] = 1.5;
  const auto better = probe_second_eigenvalue(with(values), view(v1), 1.0);
  CHECK(better.ritz_value >= 1.0);
  REQUIRE(better.vector.size() == D);
  CHECK(std::abs(better.vector[3]) > 0.5);
  CHECK(better.bound.label != certainty::probabilistic);
  // As large as ρ is enough to be a better direction, and too large for a bound.
  values[3] = 1;
  const auto twin = probe_second_eigenvalue(with(values), view(v1), 1.0);
  CHECK(twin.bound.label != certainty::probabilistic);
  CHECK(twin.vector.size() == D);
  values[4] = std::nan("");
  CHECK(probe_second_eigenvalue(with(values), view(v1), 1.0).bound.label == certainty::none);
  const column one = column::Ones(1);
  const auto only = probe_second_eigenvalue(with({2}), view(one), 2.0);
  CHECK(only.bound.label == certainty::probabilistic);
  CHECK(only.applications == 0);
  CHECK(only.bound.alpha == 8 * std::numeric_limits<double>::epsilon());  // rounding alone
  const column short_one = column::Ones(D - 1);
  CHECK(refused([&] { static_cast<void>(probe_second_eigenvalue(with(values), view(short_one), 1.0)); },
                "the direction 11"));
  for (const probe_options wrong : {probe_options{.starts = 0}, probe_options{.max_steps = 0}}) {
    CHECK(refused([&] { static_cast<void>(probe_second_eigenvalue(with(values), view(v1), 1.0, wrong)); },
                  "at least one start and one step"));
  }
  for (const double tau : {0.0, -0.1, 1.0, std::nan("")}) {
    const probe_options wrong{.failure_probability = tau};
    CHECK(refused([&] { static_cast<void>(probe_second_eigenvalue(with(values), view(v1), 1.0, wrong)); },
                  "not between 0 and 1"));
  }
}

namespace {

/// Says that it shares reads, and counts the pairs.
struct in_pairs {
  using scalar = double;
  dense_operator<double> op;
  int* pairs;
  [[nodiscard]] index_t dimension() const { return op.dimension(); }
  [[nodiscard]] static bool shares_reads() { return true; }
  double apply(vector_view<const double> x, vector_view<double> u) const { return op.apply(x, u); }
  std::array<double, 2> apply_two(const std::array<vector_view<const double>, 2>& x,
                                  const std::array<vector_view<double>, 2>& u) const {
    ++*pairs;
    return op.apply_two(x, u);
  }
};

}  // namespace

TEST_CASE("two starts at a time, where the operator shares reads, find what they find in turn") {
  random_source random(64);
  const index_t D = 30;
  int better = 0;
  for (int trial = 0; trial < 12; ++trial) {
    Eigen::MatrixXd a(20, D);
    for (auto& x : a.reshaped()) {
      x = random.normal();
    }
    a.col(0) *= trial % 3 == 0 ? 1 : 4;  // principal, or not
    const column v = column::Unit(D, 0);
    auto dense = gram(a);  // of the reference, which does not
    CHECK_FALSE(dense.shares_reads());
    int pairs = 0;
    in_pairs twice{dense, &pairs};
    for (const index_t starts : {1, 2, 3, 5}) {
      for (const index_t steps : {2, 300}) {
        const probe_options options{
            .starts = starts, .max_steps = steps, .seed = static_cast<std::uint64_t>(trial)};
        const double rho = a.col(0).squaredNorm();
        const auto one = probe_second_eigenvalue(dense, view(v), rho, options);
        pairs = 0;
        const auto two = probe_second_eigenvalue(any_operator<double, false>(twice), view(v), rho, options);
        CHECK((pairs > 0) == (starts > 1));
        CHECK(two.bound.alpha == one.bound.alpha);
        CHECK(two.bound.label == one.bound.label);
        CHECK(two.ritz_value == one.ritz_value);
        CHECK(two.applications == one.applications);
        REQUIRE(two.vector.size() == one.vector.size());
        CHECK(two.vector == one.vector);
        better += two.vector.size() > 0 ? 1 : 0;
      }
    }
  }
  CHECK(better > 0);
}

TEST_CASE("Lanczos: the basis stays orthonormal, also where nearly everything is taken away") {
  // Eigenvalues that fall fast: what a step leaves is a small part of what it was, and one pass loses its
  // direction.
  for (const double ratio : {0.5, 1e-2, 1e-4}) {
    for (const bool deflated : {false, true}) {
      const index_t D = 24;
      std::vector<double> values;
      for (index_t k = 0; k < D; ++k) values.push_back(std::pow(ratio, static_cast<double>(k)));
      const auto op = with(values);
      for (const double scale : {1.0, 1e-3}) {
        lanczos<double> krylov(D, 12, scale);
        if (deflated) krylov.deflate(column::Unit(D, 0));
        REQUIRE(krylov.start(column::Ones(D)));
        while (krylov.steps() < 12 && krylov.step(op)) {
        }
        REQUIRE(krylov.steps() >= 3);
        matrix basis(D, krylov.steps());
        for (index_t k = 0; k < krylov.steps(); ++k) {
          basis.col(k) = krylov.vector({1, 0, column::Unit(krylov.steps(), k)});
        }
        CAPTURE(ratio);
        CHECK((basis.transpose() * basis - matrix::Identity(basis.cols(), basis.cols())).norm() < 1e-12);
        if (deflated) CHECK(basis.row(0).norm() < 1e-14);
        const auto ritz = krylov.top();
        const column x = krylov.vector(ritz);
        const column image = op.lambda.cwiseProduct(x);
        CHECK(x.norm() == doctest::Approx(1).epsilon(1e-14));
        CHECK(ritz.value == doctest::Approx(x.dot(image)).epsilon(1e-12));
        CHECK(ritz.value <= (deflated ? ratio : 1) * (1 + 1e-14));
        CHECK(std::abs(ritz.residual - (image - ritz.value * x).norm()) < 1e-13);
      }
    }
  }
}

TEST_CASE(
    "Lanczos, step by step: the Ritz value is the largest root, its residual the distance to an "
    "eigenvector") {
  const auto op = with({1, 0.8, 0.5, 0.3, 0.1, 0.05});
  for (const double scale : {1.0, 1e100, 1e-100}) {
    const diagonal scaled{scale * op.lambda};
    lanczos<double> krylov(6, 6, scale);
    REQUIRE(krylov.start(column::Ones(6)));
    double before = 0;
    for (index_t k = 1; k <= 6; ++k) {
      const bool more = krylov.step(scaled);
      CHECK(more == (k < 6));
      const auto ritz = krylov.top();
      const column x = krylov.vector(ritz);
      CHECK(std::abs(ritz.residual / scale -
                     (scaled.lambda.cwiseProduct(x) - ritz.value * x).norm() / scale) < 1e-13);
      CHECK(ritz.value / scale >= before * (1 - 1e-14));
      before = ritz.value / scale;
      if (k == 1) {  // T is one number, and the level a quotient
        CHECK(ritz.value / scale == doctest::Approx(op.lambda.mean()));
        CHECK(krylov.log_level(2 * scale) == doctest::Approx(std::log((2 - before) * scale / ritz.residual)));
      }
    }
    CHECK(before == doctest::Approx(1).epsilon(1e-13));
    CHECK_FALSE(krylov.start(column::Zero(6)));
    CHECK_FALSE(krylov.start(column::Constant(6, std::nan(""))));
  }
  // |det(xI − T)| / Πβ with T of two steps, from its definition.
  lanczos<double> krylov(6, 4);
  REQUIRE(krylov.start(column::Ones(6)));
  krylov.step(op);
  const double d_0 = krylov.top().value, b_1 = krylov.top().residual;
  krylov.step(op);
  const auto ritz = krylov.top();
  const double t = ritz.value;
  const double d_1 = t - b_1 * b_1 / (t - d_0);  // the root of (t − d₀)(t − d₁) = β₁²
  const double y = 1 / std::hypot(1, b_1 / (t - d_0));
  const double b_2 = ritz.residual / y;
  for (const double x : {1.0, 1.5, 7.0}) {
    const double det = (x - d_0) * (x - d_1) - b_1 * b_1;
    CHECK(krylov.log_level(x) == doctest::Approx(std::log(det / (b_1 * b_2))).epsilon(1e-10));
  }
}

TEST_CASE("the largest eigenvalues of a tridiagonal matrix, and their vectors to the last element") {
  random_source random(17);
  for (const index_t n : {1, 2, 3, 17, 60}) {
    column diagonal(n), beside(n - 1);
    for (auto& d : diagonal) d = 1 + random.normal() * random.normal();
    for (auto& b : beside) b = 0.05 + 0.1 * std::abs(random.normal());
    matrix t = diagonal.asDiagonal();
    if (n > 1) {
      t.diagonal(1) = beside;
      t.diagonal(-1) = beside;
    }
    const Eigen::SelfAdjointEigenSolver<matrix> truth(t);
    const auto values = detail::largest_eigenvalues({diagonal, beside}, 5);
    REQUIRE(values.size() == static_cast<std::size_t>(std::min<index_t>(n, 5)));
    for (std::size_t k = 0; k < values.size(); ++k) {
      CAPTURE(n);
      CAPTURE(k);
      CHECK(std::abs(values[k] - truth.eigenvalues()[n - 1 - static_cast<index_t>(k)]) < 1e-14 * t.norm());
      const column y = detail::eigenvector({diagonal, beside}, values[k]);
      CHECK(y.norm() == doctest::Approx(1).epsilon(1e-14));
      CHECK((t * y - values[k] * y).norm() < 1e-13 * t.norm());
    }
  }
  // Small elements too: the eigenvector of T = 1 + βE at its end, where it falls by about β an element.
  column diagonal = column::Zero(12), beside = column::Constant(11, 1e-3);
  diagonal[0] = 1;
  const double value = detail::largest_eigenvalue({diagonal, beside});
  const column y = detail::eigenvector({diagonal, beside}, value);
  for (index_t k = 1; k < 12; ++k) {
    CHECK(y[k] / y[k - 1] == doctest::Approx(1e-3).epsilon(1e-5));
  }
}

TEST_CASE("directions whose images are known: another first one, wherever it lies, and the rest follow") {
  random_source random(18);
  const auto op = with({1, 0.9, 0.8, 0.3, 0.2, 0.1});
  const matrix w = matrix::Identity(6, 6).middleCols(1, 2);
  const column v = column::Unit(6, 0);
  for (const double scale : {1.0, 1e200}) {
    const diagonal scaled{scale * op.lambda};
    for (const double beside : {0.0, 1e-9, 1.0}) {  // of the old span, nearly, or not
      auto known = detail::images_beside(scaled, v, scaled.lambda.cwiseProduct(v), w, scale);
      CHECK(known.neighbours() == 2);
      for (const column& along : {v, column(-v), column(w.col(0)), column(v - 2 * w.col(1))}) {
        column turned = along;
        for (auto& x : turned) x += beside * random.normal();
        turned.normalize();
        known.turn_to(turned, scaled.lambda.cwiseProduct(turned));
        CAPTURE(beside);
        CHECK((known.directions.transpose() * known.directions - matrix::Identity(3, 3)).norm() < 1e-14);
        CHECK((known.images - op.lambda.asDiagonal() * known.directions).norm() < 1e-13);
        CHECK(known.directions.col(0) == turned);
        if (beside == 0) CHECK(known.directions.bottomRows(3).norm() < 1e-15);
      }
    }
  }
  CHECK(detail::images_beside(op, v, v, matrix(6, 0), 1.0).neighbours() == 0);
}

TEST_CASE("a restart finds what a direction lacks beside its neighbours, in as many steps as the rest asks") {
  // The two neighbours are nearly as large: without them it takes many more.
  const index_t D = 80;
  std::vector<double> values(static_cast<std::size_t>(D));
  for (std::size_t k = 0; k < values.size(); ++k) values[k] = 0.5 * std::pow(0.98, static_cast<double>(k));
  values[0] = 1;
  values[1] = 0.999;
  values[2] = 0.998;
  const auto op = with(values);
  random_source random(19);
  column row = column::Unit(D, 0);
  for (auto& x : row) x += 1e-4 * random.normal();
  row.normalize();
  index_t steps[2] = {};
  for (const index_t m : {2, 0}) {
    matrix w = matrix::Identity(D, D).middleCols(1, m);
    for (int twice = 0; twice < 2; ++twice) {
      w -= row * (row.transpose() * w);
      if (m > 0) w = w.householderQr().householderQ() * matrix::Identity(D, m);
    }
    const auto known = detail::images_beside(op, row, op.lambda.cwiseProduct(row), w, 1.0);
    column turned = row;
    steps[m / 2] = detail::restart(op, known, turned, 1e-10, D);
    const double rho = turned.dot(op.lambda.cwiseProduct(turned));
    CHECK((op.lambda.cwiseProduct(turned) - rho * turned).norm() < 1.5e-10);
    CHECK(std::abs(turned[0]) == doctest::Approx(1).epsilon(1e-12));
  }
  CHECK(2 * steps[1] < steps[0]);
  // Nothing to find: the row is left alone.
  column exact = column::Unit(D, 0);
  const auto known = detail::images_beside(op, exact, exact, matrix(D, 0), 1.0);
  CHECK(detail::restart(op, known, exact, 1e-10, D) == 0);
  CHECK(exact == column::Unit(D, 0));
  // Of what is known alone: where v̂ lacks a neighbour and nothing else, no step can tell, and none is needed.
  for (const double rounding : {0.0, 1e-15}) {
    column off = column::Unit(D, 0) + 1e-4 * column::Unit(D, 1) + rounding * column::Unit(D, 7);
    off.normalize();
    matrix beside = matrix::Zero(D, 1);
    beside(0, 0) = -off[1];
    beside(1, 0) = off[0];
    const auto both = detail::images_beside(op, off, op.lambda.cwiseProduct(off), beside, 1.0);
    CHECK(detail::restart(op, both, off, 1e-10, D) == 0);
    CHECK(std::abs(off[1]) < 1e-12);
    CHECK(std::abs(off[0]) == doctest::Approx(1).epsilon(1e-14));
  }
}

TEST_CASE("an image that overflows beside a finite energy: no space that is exhausted, and no bound") {
  struct overflowing : diagonal {
    double what = 0;
    double apply(vector_view<const double> x, vector_view<double> u) const {
      const double energy = diagonal::apply(x, u);
      u[3] = what;
      return energy;
    }
  };
  for (const double what : {infinity, -infinity, std::nan("")}) {
    const overflowing op{with({1, 0.5, 0.2, 0.1, 0.05, 0.01}), what};
    lanczos<double> krylov(6, 6);
    REQUIRE(krylov.start(column::Ones(6)));
    CHECK_FALSE(krylov.step(op));
    CHECK(std::isnan(krylov.top().value));
    const column v1 = column::Unit(6, 0);
    CHECK(probe_second_eigenvalue(op, view(v1), 1.0).bound.label == certainty::none);
  }
  lanczos<double> deflated(6, 6);
  deflated.deflate(column::Unit(6, 0));
  CHECK_FALSE(deflated.start(column::Constant(6, infinity)));
  CHECK_FALSE(deflated.start(column::Constant(6, std::nan(""))));
}

TEST_CASE("Lanczos: what is left of the size of rounding is no direction") {
  lanczos<double> krylov(6, 6, 1.0);
  krylov.deflate(column::Unit(6, 0));
  REQUIRE(krylov.start(column::Ones(6)));
  const auto rounding = with({1, 1e-17, 3e-17, 2e-17, 0, 0});  // of an operator of size 1
  CHECK_FALSE(krylov.step(rounding));
  const auto small = with({1, 1e-13, 3e-13, 2e-13, 0, 0});
  REQUIRE(krylov.start(column::Ones(6)));
  CHECK(krylov.step(small));
}

TEST_CASE(
    "a row stands within what is proven of the direction, to either side, and no farther than a right "
    "angle") {
  principal_direction found;
  found.direction = column::Unit(3, 0);
  found.at = {status::ok, 1, 0, 0};
  found.proof.label = certainty::probabilistic;
  found.proof.angle_bound = 0.1;
  const auto op = with({1, 0.5, 0.2});
  const auto row_at = [&](double theta) {
    const column row = 3 * (std::cos(theta) * column::Unit(3, 0) + std::sin(theta) * column::Unit(3, 1));
    return certify_row(op, view(row), found);
  };
  const auto some = row_at(0.4);
  CHECK(some.state == status::ok);
  CHECK(some.label == certainty::probabilistic);
  CHECK(some.rayleigh == doctest::Approx(std::pow(std::cos(0.4), 2) + 0.5 * std::pow(std::sin(0.4), 2)));
  CHECK(some.residual == doctest::Approx(0.5 * std::sin(0.4) * std::cos(0.4)));
  CHECK(some.angle == doctest::Approx(0.4));
  CHECK(some.angle_low < 0.3);
  CHECK(some.angle_low == doctest::Approx(0.3));
  CHECK(some.angle_bound > 0.5);
  CHECK(some.angle_bound == doctest::Approx(0.5));
  CHECK(row_at(0.05).angle_low == 0);
  CHECK(row_at(1.55).angle_bound == std::numbers::pi / 2);
  CHECK(row_at(std::numbers::pi - 0.4).angle == doctest::Approx(0.4));  // a direction has no sign
  found.proof.label = certainty::none;
  CHECK(row_at(0.4).angle == doctest::Approx(0.4));
  CHECK(row_at(0.4).angle_low == 0);
  CHECK(row_at(0.4).angle_bound == std::numbers::pi / 2);
  const column zero = column::Zero(3);
  CHECK(certify_row(op, view(zero), found).state == status::zero_row);
  CHECK(certify_row(op, view(zero), found).angle_bound == std::numbers::pi / 2);
  found.direction.resize(0);
  CHECK(row_at(0.4).label == certainty::none);
  CHECK(row_at(0.4).angle_bound == std::numbers::pi / 2);
}

TEST_CASE(
    "starts that are nearly orthogonal, clusters below σ₁: found, proven, and no more claimed than is true") {
  for (const double gap : {0.3, 1e-3, 1e-6}) {
    const index_t D = 30;
    std::vector<double> values(static_cast<std::size_t>(D), 0.2);
    values[4] = 1;
    for (std::size_t k = 7; k < 12; ++k)
      values[k] = (1 - gap) * (1 - gap) * (1 - 1e-9 * static_cast<double>(k));
    const auto op = with(values);
    for (const double along : {1.0, 1e-4, 1e-9, 0.0}) {
      column start = column::Ones(D);
      start[4] = along;
      const auto found = find_principal(op, view(start), {.residual_tolerance = 1e-12});
      CAPTURE(gap);
      CAPTURE(along);
      const double away = std::acos(std::min(1.0, std::abs(found.direction[4])));
      if (found.proof.label == certainty::probabilistic) {
        CHECK(found.proof.alpha >= values[7] * (1 - 1e-13));
        CHECK(found.proof.angle_bound >= away - 3e-8);  // acos near 1
        CHECK(found.proof.sigma_high >= 1 - 1e-15);
      }
      CHECK(found.proof.sigma_low <= 1);
      if (gap > 1e-5) {
        CHECK(found.proof.label == certainty::probabilistic);
        CHECK(away < 1e-6);
      }
    }
  }
  const column start = column::Ones(4);
  CHECK(refused([&] { static_cast<void>(find_principal(with({1, 2, 3}), view(start))); }, "the start 4"));
  CHECK(refused([&] { static_cast<void>(find_principal(with({1, 2, 3, 4}), view(start), {.basis = 0})); },
                "a basis of 0 vectors"));
  CHECK(refused(
      [&] { static_cast<void>(find_principal(matrix(matrix::Identity(4, 4)), view(start), {.basis = 0})); },
      "a basis of 0 vectors"));
}

TEST_CASE("slack: three epsilon for each term of a sum, of what was summed") {
  const double u = std::numeric_limits<double>::epsilon();
  CHECK(close(detail::evaluation_slack(100, 7), 3 * 104 * u * 7, 1e-14));
  const matrix a = matrix::Identity(3, 5);
  CHECK(detail::terms_of(gram(a)) == 8);
  CHECK(detail::terms_of(with({1, 2, 3})) == 6);
}

TEST_CASE("known neighbours: the bound is that of the two-by-two, and its inverse") {
  neighbours none;
  CHECK(none.bound(0.3) == 0.3);
  CHECK(none.rest(0.7) == 0.7);
  neighbours known;
  known.directions = matrix::Identity(3, 1);
  known.top = 0.5;
  known.coupling = 0.1;
  for (const double b : {0.0, 0.4, 0.5, 0.6, 2.0}) {
    const Eigen::Matrix2d both = (Eigen::Matrix2d() << 0.5, 0.1, 0.1, b).finished();
    const double largest = both.selfadjointView<Eigen::Lower>().eigenvalues()[1];
    CHECK(known.bound(b) == doctest::Approx(largest).epsilon(1e-14));
    CHECK(known.rest(largest) == doctest::Approx(b).epsilon(1e-10));
  }
  CHECK(known.rest(0.5) == -infinity);
  CHECK(known.bound(infinity) == infinity);
}

TEST_CASE("a probe beside known neighbours takes fewer steps, and claims no more than is true") {
  // Two close eigenvalues below ρ, the others far: whoever knows the two probes the rest alone.
  const index_t D = 60;
  std::vector<double> values(static_cast<std::size_t>(D), 0.1);
  for (std::size_t k = 3; k < values.size(); ++k) values[k] = 0.5 * std::pow(0.97, static_cast<double>(k));
  values[0] = 1;
  values[1] = 0.99;
  values[2] = 0.98;
  const auto op = with(values);
  const column v1 = column::Unit(D, 0);
  for (const double tilt : {0.0, 1e-3, 0.05}) {
    // Turned out of the plane of the two: what is coupled to the rest is measured, and enters the bound.
    matrix w = matrix::Zero(D, 2);
    w(1, 0) = w(2, 1) = std::cos(tilt);
    w(5, 0) = w(6, 1) = std::sin(tilt);
    const auto known = detail::measure(detail::images_beside(op, v1, v1, w, 1.0), 1e-15);
    CHECK(known.coupling == doctest::Approx(0.55 * std::sin(tilt) * std::cos(tilt)).epsilon(0.2));
    const auto alone = probe_second_eigenvalue(op, view(v1), 1.0);
    const auto beside = probe_second_eigenvalue(op, view(v1), 1.0, {}, known);
    CAPTURE(tilt);
    for (const auto& probe : {alone, beside}) {
      if (probe.bound.label == certainty::probabilistic) CHECK(probe.bound.alpha >= 0.99 * (1 - 1e-13));
    }
    if (tilt <= 1e-3) {
      CHECK(beside.bound.label == certainty::probabilistic);
      CHECK(beside.bound.alpha <= 0.9967);
      CHECK(2 * beside.applications < alone.applications);
    }
  }
}

}  // namespace test_overclaims
