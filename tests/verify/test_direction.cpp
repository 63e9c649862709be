// The direction that rows are measured against: which of the ways to it is taken, and that each is right.
#include <mpi_router/verify/expert_direction.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>
#include <support/random.hpp>

namespace test_direction {
using namespace mpi_router;

namespace {

/// [F, D] with one clear direction, times `scale`.
gate_matrix with_direction(index_t ffn_dim, index_t hidden_dim, double scale) {
  test_support::random_source random(60);
  gate_matrix a(ffn_dim, hidden_dim);
  for (index_t f = 0; f < ffn_dim; ++f) {
    const double along = random.normal();
    for (index_t d = 0; d < hidden_dim; ++d) {
      a(f, d) = scale * (random.normal() + (d == 0 ? 12 * along : 0));
    }
  }
  return a;
}

Eigen::VectorXd some_row(index_t size) {
  test_support::random_source random(61);
  Eigen::VectorXd row(size);
  for (auto& x : row) {
    x = random.normal();
  }
  return row;
}

constexpr index_t small = 40;

template <class T>
principal_direction found_in(const matrix_view<T>& a, const Eigen::VectorXd& row,
                             const certify_options& options) {
  return find_expert_direction(a, view(row), direction_source::certificate, reference{}, {}, options).found;
}

certify_options probes_only() {
  certify_options options;
  options.rigorous_up_to = small - 1;
  return options;
}

}  // namespace

TEST_CASE("small matrices are proven rigorously, larger ones by a probe, whatever they are stored as") {
  const auto a = with_direction(small, 60, 1);
  const auto row = some_row(60);
  const singular_spectrum spectrum(a);
  const auto rigorous = found_in(view(a), row, {});
  CHECK(rigorous.proof.label == certainty::rigorous);
  const auto probed = found_in(view(a), row, probes_only());
  CHECK(probed.proof.label == certainty::probabilistic);
  CHECK(probed.proof.failure_probability == probe_options{}.failure_probability);
  for (const auto& found : {rigorous, probed}) {
    CHECK(spectrum.angle(view(found.direction)) <= found.proof.angle_bound + 1e-12);
    CHECK(found.proof.angle_bound < 1e-6);
  }
  std::vector<bf16> halves;
  for (index_t i = 0; i < a.size(); ++i) {
    halves.push_back(narrow<bf16>(a.data()[i]));
  }
  const auto stored = row_major(std::as_const(halves).data(), small, 60);
  const singular_spectrum of_halves(stored);
  const auto turned = column_major(std::as_const(halves).data(), 60, small);  // Aᵀ, which is another expert
  const auto row_of_turned = some_row(small);
  for (const auto& options : {certify_options{}, probes_only()}) {
    const auto found = found_in(stored, row, options);
    CHECK(of_halves.angle(view(found.direction)) <= found.proof.angle_bound + 1e-12);
    CHECK(found.proof.angle_bound < 1e-6);
    CHECK(std::sqrt(found.at.rayleigh) == doctest::Approx(of_halves.sigma_1()).epsilon(1e-13));
    const auto other = found_in(turned, row_of_turned, options);
    CHECK(other.proof.angle_bound < 1e-6);
    CHECK(std::sqrt(other.at.rayleigh) == doctest::Approx(of_halves.sigma_1()).epsilon(1e-13));
  }
}

TEST_CASE("what float cannot square is searched and proven in double") {
  const auto row = some_row(60);
  for (const double scale : {1e-25, 1e-12, 1e12, 1e25}) {
    const auto a = with_direction(small, 60, scale);
    const auto found = found_in(view(a), row, probes_only());
    CHECK(found.proof.label == certainty::probabilistic);
    CHECK(found.proof.angle_bound < 1e-6);
  }
}

TEST_CASE("a gap that the rounding of float hides is proven in double") {
  gate_matrix a = gate_matrix::Zero(small, small);
  for (index_t i = 0; i < small; ++i) {
    a(i, i) = i == 0 ? 1 : 1 - 1e-6 * static_cast<double>(i);
  }
  const auto row = some_row(small);
  auto options = probes_only();
  options.max_steps = 20000;
  const auto found = found_in(view(a), row, options);
  CHECK(found.proof.label == certainty::probabilistic);
  CHECK(std::abs(found.direction[0]) > 1 - 1e-9);
}

namespace {

/// M = diag(λ) in S, that counts what it is asked for.
template <Accumulator S>
struct counted {
  using scalar = S;
  const std::vector<double>& lambda;
  index_t& applications;
  [[nodiscard]] index_t dimension() const { return static_cast<index_t>(lambda.size()); }
  S apply(vector_view<const S> x, vector_view<S> u) const {
    ++applications;
    S energy = 0;
    for (index_t d = 0; d < dimension(); ++d) {
      u[d] = static_cast<S>(lambda[static_cast<std::size_t>(d)]) * x[d];
      energy += x[d] * u[d];
    }
    return energy;
  }
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) const {
    return {apply(x, u), 0, 0};
  }
};

}  // namespace

TEST_CASE("what rounding would hide from a probe in float is probed in double at once") {
  // 4 D ε is 2e-4 of ρ: a probe in float proves gaps above four times that.
  const auto size = index_t{400};
  const auto row = some_row(size);
  for (const double gap : {5e-4, 2e-3}) {
    std::vector<double> lambda(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < lambda.size(); ++i) lambda[i] = i == 0 ? 1 : 1 - gap - 1e-3 * double(i - 1);
    index_t in_double = 0, in_float = 0;
    counted<double> op{lambda, in_double};
    counted<float> fast{lambda, in_float};
    principal_direction found;
    found.direction = Eigen::VectorXd::Unit(size, 0);
    found.at.rayleigh = 1;
    const bool is_hidden = gap < 1e-3;
    CHECK(detail::can_prove<float>(size, 1, {}, 1 - gap) == !is_hidden);
    CHECK(detail::can_prove<double>(size, 1, {}, 1 - gap));
    int probes = 0;
    CHECK(detail::prove(op, fast, {}, 1 - gap, found, {}, probes).size() == 0);
    CHECK(found.proof.label == certainty::probabilistic);
    CHECK(found.proof.alpha >= 1 - gap);
    CHECK(found.proof.alpha < 1);
    CHECK((in_float == 0) == is_hidden);
    CHECK((in_double == 0) != is_hidden);
    CHECK(probes == 1);
    CHECK(found.applications == in_float + in_double);
  }
}

TEST_CASE("the steps beside a gap that float loses are counted in a space in double, and not taken") {
  const auto size = index_t{700};
  const auto row = some_row(size);
  constexpr double tolerance = 1e-6;
  for (const double gap : {8e-4, 1e-4}) {  // of λ, relative; below it a bulk
    CAPTURE(gap);
    std::vector<double> lambda{1, 1 - gap};
    for (index_t i = 2; i < size; ++i) {
      lambda.push_back(0.985 * std::pow(1 - static_cast<double>(i - 2) / static_cast<double>(size), 1.5));
    }
    const auto sine_after = [&](double steps) {
      double beside = 0;
      for (index_t d = 1; d < size; ++d) {
        const double part = row[d] * std::pow(lambda[static_cast<std::size_t>(d)], steps);
        beside += part * part;
      }
      return std::sin(std::atan(std::sqrt(beside) / std::abs(row[0])));
    };
    index_t in_double = 0, in_float = 0;
    counted<double> op{lambda, in_double};
    counted<float> fast{lambda, in_float};
    const course_options course{.tolerance = tolerance, .max_steps = 2000000};
    const auto found = find_expert_direction(op, fast, view(row), course, probes_only());
    REQUIRE(found.forecast.converged());
    const auto steps = static_cast<double>(found.forecast.steps.value());
    CHECK(sine_after(steps + 1) <= tolerance);
    CHECK(sine_after(steps - 2) > tolerance);
    CHECK(in_double <= 1000);
    const auto few = find_expert_direction(op, fast, view(row), {tolerance, 1000}, probes_only());
    CHECK(few.forecast.converged());  // that 1000 do not suffice is known too
    CHECK_FALSE(few.forecast.steps.has_value());
  }
}

TEST_CASE("with and without a decomposition") {
  const auto a = with_direction(small, 60, 1);
  const auto row = some_row(60);
  const singular_spectrum spectrum(a);
  const auto exact = find_expert_direction(view(a), view(row), direction_source::svd);
  const auto proven = find_expert_direction(view(a), view(row), direction_source::certificate);
  CHECK(exact.uncertainty == 0);
  CHECK(exact.sigma_1() == spectrum.sigma_1());
  CHECK(exact.sigma_2() == spectrum.sigma_2());
  CHECK(exact.rate() == spectrum.kappa() * spectrum.kappa());
  CHECK(exact.angle(view(row)) == doctest::Approx(spectrum.angle(view(row))).epsilon(1e-12));
  CHECK(!proven.spectrum);
  CHECK(proven.uncertainty == proven.found.proof.angle_bound);
  CHECK(proven.sigma_1() == doctest::Approx(spectrum.sigma_1()).epsilon(1e-12));
  CHECK(proven.sigma_2() == doctest::Approx(spectrum.sigma_2()).epsilon(1e-5));
  CHECK(proven.sigma_2() <= spectrum.sigma_2() * (1 + 1e-12));
  CHECK(proven.forecast.converged());
  CHECK(proven.forecast.steps == spectrum.steps_to(1e-6, view(row), 10000));
  CHECK(proven.rate() >= exact.rate());
  CHECK(proven.rate() < 1);
  CHECK(proven.sine_at(0.1) == std::sin(0.1 + proven.uncertainty));
  CHECK(proven.sine_at(2) == 1);
}

TEST_CASE("a row on the principal direction still learns of the second, from beside it") {
  const auto a = with_direction(small, 60, 1);
  const singular_spectrum spectrum(a);
  const Eigen::VectorXd principal = spectrum.principal_direction();
  for (const auto& options : {certify_options{}, probes_only()}) {
    const auto found = find_expert_direction(view(a), view(principal), direction_source::certificate,
                                             reference{}, {}, options);
    CHECK(found.sigma_2() == doctest::Approx(spectrum.sigma_2()).epsilon(1e-5));
  }
}

TEST_CASE("a row that hardly sees v₁, or not at all: found all the same, and σ₂ is the second") {
  gate_matrix a = gate_matrix::Zero(60, 60);
  for (index_t i = 0; i < 60; ++i) {
    a(i, i) = i < 3 ? std::sqrt(1 - 0.1 * static_cast<double>(i * i))
                    : std::sqrt(0.5 * std::pow(0.98, static_cast<double>(i)));
  }
  for (const double second : {0.9, 0.99}) {
    a(1, 1) = std::sqrt(second);
    for (const double along : {1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 0.0}) {
      for (const double tolerance : {1e-6, 1e-300}) {
        Eigen::VectorXd row = some_row(60);
        row[0] = along * row.norm();
        CAPTURE(second);
        CAPTURE(along);
        const auto found =
            find_expert_direction(view(a), view(std::as_const(row)), direction_source::certificate,
                                  reference{}, {.tolerance = tolerance}, probes_only());
        CHECK(found.found.proof.label == certainty::probabilistic);
        CHECK(found.found.proof.angle_bound < 1e-6);
        CHECK(found.sigma_2() == doctest::Approx(std::sqrt(second)).epsilon(1e-5));
      }
    }
  }
}

TEST_CASE(
    "what float cannot tell from rounding beside ρ has not settled: σ₂ and the steps are found in double") {
  test_support::random_source random(62);
  int converged = 0;
  for (const double tiny :
       {5e-4, 1e-4, 3e-3, 2e-2}) {  // σ₂² from a hundredth of D · ε · ρ to a hundred times
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> a(small, 60);
    for (auto& x : a.reshaped()) {
      x = static_cast<float>(tiny * random.normal());
    }
    a.col(0) += Eigen::VectorXf::NullaryExpr(small, [&] { return static_cast<float>(random.normal()); });
    const singular_spectrum spectrum(gate_matrix(a.cast<double>()));
    const auto row = some_row(60);
    const auto result = find_expert_direction(view(a), view(row), direction_source::certificate, reference{},
                                              {.tolerance = 1e-9}, probes_only());
    CAPTURE(tiny);
    CHECK(std::abs(result.sigma_2() - spectrum.sigma_2()) <= 1e-5 * spectrum.sigma_1());
    CHECK(result.sigma_2() <= (1 + 1e-6) * spectrum.sigma_2());
    const auto steps = spectrum.steps_to(1e-9, view(row), 100);
    REQUIRE(steps.has_value());
    if (result.forecast.converged()) {
      REQUIRE(result.forecast.steps.has_value());
      CHECK(std::abs(*result.forecast.steps - *steps) <= 1);
      ++converged;
    }
  }
  CHECK(converged >= 1);
}

TEST_CASE("a small σ₂ is found from any start, though the space of the start ends in the rounding of float") {
  test_support::random_source random(63);
  for (const double second : {1e-4, 3e-4, 1e-3, 3e-3}) {  // σ₂², relative, from ε/10 to D · ε
    for (int trial = 0; trial < 40; ++trial) {
      std::vector<double> sigma{1};
      for (int k = 0; k < 6; ++k) {
        sigma.push_back(second * std::pow(0.5, k));
      }
      const auto made = test_support::random_with_spectrum(random, small, 60, sigma);
      const std::vector<float> stored(made.a.begin(), made.a.end());
      const auto a = row_major(stored.data(), small, 60);
      const singular_spectrum spectrum(a);
      const Eigen::VectorXd v1 = spectrum.principal_direction();
      const Eigen::VectorXd any = test_support::values(test_support::random_vector<double>(random, 60));
      for (const double away : {1e3, 0.3, 1e-3}) {  // tan of the angle to v₁, about
        const Eigen::VectorXd row = v1 + away * any.normalized();
        CAPTURE(second);
        CAPTURE(trial);
        CAPTURE(away);
        const auto found = find_expert_direction(a, view(row), direction_source::certificate, reference{},
                                                 {.tolerance = 1e-9}, probes_only());
        CHECK(std::abs(found.sigma_2() - spectrum.sigma_2()) <= 1e-5 * spectrum.sigma_1());
        if (found.forecast.converged()) {
          const auto steps = spectrum.steps_to(1e-9, view(row), 100);
          CHECK(std::abs(found.forecast.steps.value_or(200) - steps.value_or(200)) <= 1);
        }
      }
    }
  }
}

TEST_CASE("of rank one there is no second singular value, and none is made of rounding") {
  const auto row = some_row(60);
  const auto column = some_row(small);
  const gate_matrix a = column * row.transpose();
  const auto start = Eigen::VectorXd(row + 0.1 * Eigen::VectorXd::LinSpaced(60, -1, 1));
  for (const auto& options : {certify_options{}, probes_only()}) {
    const auto found =
        find_expert_direction(view(a), view(start), direction_source::certificate, reference{}, {}, options);
    CHECK(found.sigma_1() == doctest::Approx(row.norm() * column.norm()).epsilon(1e-13));
    CHECK(found.sigma_2() <= 1e-6 * found.sigma_1());
  }
}

TEST_CASE("a zero matrix has no direction") {
  const gate_matrix zero = gate_matrix::Zero(small, 60);
  const auto row = some_row(60);
  const auto none = find_expert_direction(view(zero), view(row), direction_source::certificate);
  CHECK(none.v.size() == 0);
  CHECK(std::isnan(none.rate()));
}

TEST_CASE(
    "between two operators: every application is counted, and each of two searches may fail half as often") {
  const auto size = index_t{60};
  const auto row = some_row(size);
  for (const double gap : {0.1, 2e-3, 1e-4, 1e-6}) {
    CAPTURE(gap);
    std::vector<double> lambda(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < lambda.size(); ++i) {
      lambda[i] = i == 0 ? 1 : (1 - gap) * std::pow(0.97, static_cast<double>(i - 1));
    }
    index_t in_double = 0, in_float = 0;
    counted<double> op{lambda, in_double};
    counted<float> fast{lambda, in_float};
    const auto result = find_expert_direction(op, fast, view(row), {.tolerance = 0});
    CHECK(result.found.proof.label == certainty::probabilistic);
    CHECK(result.found.applications == in_float + in_double);  // without a course there are no others
    CHECK(std::isnan(result.ritz_2));
    CHECK_FALSE(result.forecast.converged());
    CHECK(result.uncertainty == result.found.proof.angle_bound);
    CHECK(result.found.proof.failure_probability == probe_options{}.failure_probability);
    certify_options half;
    half.probe.failure_probability /= 2;
    const auto alone = find_expert_direction(op, view(row), {.tolerance = 0}).found.proof;
    CHECK(alone.alpha == find_principal(op, view(row), half).proof.alpha);
    CHECK(alone.alpha != find_principal(op, view(row)).proof.alpha);
  }
}

TEST_CASE("a guess has no rate") {
  expert_direction some;
  some.found.at.rayleigh = 2;
  some.found.proof.alpha = 1;
  for (const auto label :
       {certainty::none, certainty::heuristic, certainty::probabilistic, certainty::rigorous}) {
    some.found.proof.label = label;
    CHECK(std::isnan(some.rate()) == (label < certainty::probabilistic));
  }
}

TEST_CASE("the quotient beside a direction is of what is orthogonal to it") {
  std::vector<double> lambda{4, 1, 0.25};
  index_t applications = 0;
  counted<double> op{lambda, applications};
  const Eigen::VectorXd first = Eigen::VectorXd::Unit(3, 0);
  CHECK(detail::quotient_beside(op, first, Eigen::Vector3d(0.6, 0.8, 0)) == doctest::Approx(1));
  CHECK(detail::quotient_beside(op, first, Eigen::Vector3d(-0.6, 0, 0.8)) == doctest::Approx(0.25));
  CHECK(detail::quotient_beside(op, first, Eigen::Vector3d(0.9, 0.1, 0)) ==
        0);  // hardly anything is beside it
}

}  // namespace test_direction
