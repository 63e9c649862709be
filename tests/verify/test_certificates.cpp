// A certificate never claims what the SVD refutes: random spectra, and those made to mislead it.
#include <mpi_router/verify/principal.hpp>
#include <mpi_router/verify/singular.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/oracle.hpp>

#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace test_certificates {
using namespace mpi_router;
using namespace test_support;

namespace {

/// Holds a proof against the truth. With σ₁ = σ₂ there is no principal direction, so no angle may be claimed.
void not_refuted(const certificate& proof, const singular_spectrum& truth, double angle_of_row) {
  const double rounding = 1e-14 * truth.sigma_1();  // of the SVD
  CHECK(proof.sigma_low <= truth.sigma_1() + rounding);
  CHECK(proof.sigma_high >= truth.sigma_1() - rounding);
  if (proof.label == certainty::none) {
    CHECK(proof.angle_bound == std::numbers::pi / 2);
    return;
  }
  CHECK(proof.alpha >= std::pow(truth.sigma_2(), 2) * (1 - 1e-13));
  CHECK(proof.angle_bound >= angle_of_row - 1e-15);
}

/// Every kind of certificate for a matrix, from a start. Returns the labels, rigorous search first.
std::pair<certainty, certainty> never_refuted(const matrix& a, const column& start) {
  const singular_spectrum truth(a);
  const auto row = view(start);
  const auto label_of = [&](const principal_direction& found) {
    if (found.direction.size() == 0) return certainty::none;
    not_refuted(found.proof, truth, truth.angle(view(found.direction)));
    const auto proof = certify_row(gram(a), row, found);
    if (proof.state == status::ok && proof.label != certainty::none) {
      CHECK(proof.angle_bound >= truth.angle(row) - 1e-12);
      CHECK(proof.angle_low <= truth.angle(row) + 1e-12);
    }
    return proof.state == status::ok ? found.proof.label : certainty::none;
  };
  const certify_options by_probe{.rigorous_up_to = 0};
  const auto rigorous = label_of(find_principal(a, row));
  const auto probed = label_of(find_principal(gram(a), row, by_probe));

  // The cheap bounds of the row itself, from norms alone.
  column g(a.cols());
  const auto at = rayleigh(gram(a), row, view(g));
  if (at.state == status::ok) {
    const double slack = 1e-14 * a.squaredNorm();
    not_refuted(certify(at, trace_bound(a.squaredNorm(), at.rayleigh), slack), truth, truth.angle(row));
    not_refuted(certify(at, gram_norm_bound((a * a.transpose()).stableNorm(), at.rayleigh), slack), truth,
                truth.angle(row));
  }
  return {rigorous, probed};
}

matrix of_spectrum(const spectral_matrix& s) {
  return values(row_major(s.a.data(), s.ffn_dim, s.hidden_dim));
}
column direction(const spectral_matrix& s, index_t k) {
  return Eigen::Map<const column>(s.directions.data() + k * s.hidden_dim, s.hidden_dim);
}

}  // namespace

TEST_CASE("random spectra: certified, rigorously and by probe, and never refuted") {
  random_source random(71);
  int rigorous = 0, probed = 0, total = 0;
  for (const auto& [F, D] : {std::pair<index_t, index_t>{12, 20}, {20, 12}, {40, 64}, {64, 40}, {33, 33}}) {
    for (int trial = 0; trial < 6; ++trial, ++total) {
      const double kappa = random.uniform(0.1, 0.97);
      std::vector<double> sigma{2, 2 * kappa};
      while (static_cast<index_t>(sigma.size()) < std::min(F, D))
        sigma.push_back(2 * kappa * random.uniform());
      const auto s = random_with_spectrum(random, F, D, sigma);
      const column start = values(random_vector<double>(random, D));
      const auto labels = never_refuted(of_spectrum(s), start);
      rigorous += labels.first == certainty::rigorous ? 1 : 0;
      probed += labels.second == certainty::probabilistic ? 1 : 0;
    }
  }
  CHECK(rigorous == total);
  CHECK(probed == total);
}

TEST_CASE("adversarial spectra and starts") {
  random_source random(73);
  const index_t F = 14, D = 22;
  const std::vector<std::pair<std::string, std::vector<double>>> spectra{
      {"gap 1e-9", {1, 1 - 1e-9, 0.5, 0.2}},
      {"gap 1e-14", {1, 1 - 1e-14, 0.5}},
      {"repeated σ₁", {1, 1, 0.3}},
      {"repeated σ₁, all of them", std::vector<double>(14, 1.0)},
      {"rank one", {3}},
      {"rank two", {3, 1e-8}},
      {"a cluster below", {1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}},
      {"tiny", {1e-120, 1e-121}},
      {"huge", {1e120, 1e119}},
      {"wide range", {1, 1e-3, 1e-6, 1e-9, 1e-12}}};
  for (const auto& [name, sigma] : spectra) {
    CAPTURE(name);
    const auto s = random_with_spectrum(random, F, D, sigma);
    const matrix a = of_spectrum(s);
    const column any = values(random_vector<double>(random, D));
    const column v1 = direction(s, 0);
    const column orthogonal = any - v1.dot(any) * v1;
    const column second = sigma.size() > 1 ? direction(s, 1) : orthogonal;
    for (const column& start : {any, orthogonal, second, v1, column(column::Zero(D))}) {
      const auto [rigorous, probed] = never_refuted(a, start);
      if (name.rfind("repeated", 0) == 0) {
        CHECK(rigorous == certainty::none);
        CHECK(probed == certainty::none);
      }
      if (name == "rank one" && start.norm() > 0) {
        CHECK(rigorous == certainty::rigorous);
      }
    }
  }
  // Rank zero: nothing to find, and nothing claimed.
  const column ones = column::Ones(D);
  const auto nothing = find_principal(matrix(matrix::Zero(F, D)), view(ones));
  CHECK(nothing.at.state == status::zero_image);
  CHECK(nothing.proof.label == certainty::none);
  CHECK(nothing.direction.size() == 0);
  matrix broken = matrix::Ones(F, D);
  broken(3, 4) = std::nan("");
  CHECK(find_principal(broken, view(ones)).at.state == status::non_finite);
  CHECK(find_principal(gram(broken), view(ones)).at.state == status::non_finite);
}

TEST_CASE("weights of any magnitude are certified alike") {
  random_source random(83);
  const index_t F = 12, D = 17;
  for (const double kappa : {0.5, 0.95, 1.0}) {
    const auto s = random_with_spectrum(random, F, D, {1, kappa, kappa / 4});
    const column start = values(random_vector<double>(random, D));
    for (double exponent = -150; exponent <= 150; exponent += std::abs(exponent + 80) < 3 ? 0.13 : 9.7) {
      CAPTURE(exponent);
      const matrix a = std::pow(10.0, exponent) * of_spectrum(s);
      const auto found = find_principal(a, view(start));
      CHECK(found.at.state == status::ok);
      CHECK((found.proof.label == certainty::rigorous) == (kappa < 1));
      if (found.direction.size() == 0 || found.proof.label == certainty::none) continue;
      CHECK(found.proof.angle_bound < 1e-9);
      CHECK(std::sqrt(found.proof.alpha) >= kappa * std::pow(10.0, exponent) * (1 - 1e-13));
      const column v1 = direction(s, 0);
      CHECK(line_angle<double>(view(v1), view(found.direction)) <= found.proof.angle_bound + 1e-15);
    }
  }
}

TEST_CASE("the interval of σ₁ holds when every sum rounds the same way") {
  for (const auto& [F, D] : {std::pair<index_t, index_t>{2, 1024}, {2, 7168}, {64, 2048}, {4096, 3}}) {
    const column ones = column::Ones(D);
    for (int k = 1; k <= 20; ++k) {
      const double c = k / 61.0;
      const matrix a = matrix::Constant(F, D, c);
      const long double sigma_1 = std::sqrt(static_cast<long double>(F * D)) * static_cast<long double>(c);
      for (const index_t rigorous_up_to : {index_t{512}, index_t{0}}) {
        const auto found = find_principal(a, view(ones), {.rigorous_up_to = rigorous_up_to});
        CHECK(found.proof.label != certainty::none);
        CHECK(static_cast<long double>(found.proof.sigma_low) <= sigma_1);
        CHECK(static_cast<long double>(found.proof.sigma_high) >= sigma_1);
      }
    }
  }
}

TEST_CASE("a start orthogonal to the principal direction is found out by the probe, and the search goes on") {
  random_source random(79);
  const auto s = random_with_spectrum(random, 20, 30, {2, 1.2, 0.7, 0.1});
  const matrix a = of_spectrum(s);
  const column second = direction(s, 1);
  const auto found = find_principal(gram(a), view(second), {.rigorous_up_to = 0});
  CHECK(found.proof.label == certainty::probabilistic);
  CHECK(std::abs(found.direction.dot(direction(s, 0))) == doctest::Approx(1).epsilon(1e-9));
  CHECK(certify_row(gram(a), view(second), found).angle ==
        doctest::Approx(std::numbers::pi / 2).epsilon(1e-6));
}

TEST_CASE("the trace ladder closes on σ₂² from above, and beats both norms") {
  random_source random(83);
  for (const double kappa : {0.3, 0.8, 0.95}) {
    std::vector<double> sigma{1};
    for (int k = 0; k < 30; ++k) sigma.push_back(kappa * std::pow(0.97, k));
    const auto s = random_with_spectrum(random, 40, 60, sigma);
    const matrix a = of_spectrum(s);
    const auto ladder = trace_ladder(a);
    CHECK(ladder.bound.alpha >= kappa * kappa);
    CHECK(ladder.bound.alpha <= kappa * kappa + 0.1 * (1 - kappa * kappa));
    CHECK(ladder.bound.alpha <= gram_norm_bound((a * a.transpose()).stableNorm(), 1).alpha);
    CHECK(ladder.bound.alpha <= trace_bound(a.squaredNorm(), 1).alpha);
    const matrix tall = a.transpose();
    CHECK(trace_ladder(tall).bound.alpha == doctest::Approx(ladder.bound.alpha).epsilon(1e-9));
  }
}

TEST_CASE("the probe misses no more often than it says") {
  // A probability that can be counted: one start, and failures wanted below one in five.
  random_source random(89);
  std::vector<double> sigma{1, 0.9};
  for (int k = 0; k < 20; ++k) sigma.push_back(0.88 * std::pow(0.99, k));
  const auto s = random_with_spectrum(random, 30, 40, sigma);
  const matrix a = of_spectrum(s);
  const column v1 = direction(s, 0);
  int misses = 0;
  int probabilistic = 0;
  constexpr int trials = 200;
  for (int seed = 0; seed < trials; ++seed) {
    const auto probe = probe_second_eigenvalue(
        gram(a), view(v1), 1.0,
        {.failure_probability = 0.2, .starts = 1, .seed = static_cast<std::uint64_t>(seed)});
    probabilistic += probe.bound.label == certainty::probabilistic ? 1 : 0;
    misses += probe.bound.alpha < 0.81 ? 1 : 0;
  }
  CHECK(probabilistic == trials);
  CHECK(misses <= trials / 5);
  const Eigen::MatrixXf single = a.cast<float>();
  const auto float_probe = probe_second_eigenvalue(gram(single), view(v1), 1.0);
  CHECK(float_probe.bound.alpha >= 0.81 * (1 - 1e-6));
  CHECK(float_probe.bound.label == certainty::probabilistic);
  // Too few steps for the probability: the label falls to heuristic, it does not stay.
  const auto hasty = probe_second_eigenvalue(gram(a), view(v1), 1.0, {.max_steps = 3});
  CHECK(hasty.bound.label == certainty::heuristic);
}

TEST_CASE("formulas of §9: Kato–Temple, Davis–Kahan, and the angle from λ and κ alone") {
  random_source random(97);
  for (int trial = 0; trial < 200; ++trial) {
    const double kappa = random.uniform(0.0, 0.99);
    const auto s = random_with_spectrum(random, 6, 8, {1, kappa, 0.7 * kappa, 0.2 * kappa});
    const matrix a = of_spectrum(s);
    const singular_spectrum truth(a);
    const column row = direction(s, 0) + random.uniform(0, 1.5) * values(random_vector<double>(random, 8));
    column g(8);
    const auto at = rayleigh(gram(a), view(row), view(g));
    const auto proof = certify(at, {kappa * kappa, certainty::rigorous, 0}, 1e-15);
    not_refuted(proof, truth, truth.angle(view(row)));
    if (at.rayleigh > kappa * kappa + 1e-9) CHECK(proof.label == certainty::rigorous);
    const double lambda = std::sqrt(at.rayleigh) / truth.sigma_1();
    CHECK(angle_from_alignment(lambda, truth.kappa()) >= truth.angle(view(row)) - 1e-7);
    // Some eigenvalue lies within ‖g‖ of ρ.
    double nearest = 1e300;
    for (const double sigma : {1.0, kappa, 0.7 * kappa, 0.2 * kappa, 0.0}) {
      nearest = std::min(nearest, std::abs(sigma * sigma - at.rayleigh));
    }
    CHECK(nearest <= at.residual + 1e-14);
  }
  CHECK(angle_from_alignment(0.5, 0.5) == std::numbers::pi / 2);
  CHECK(angle_from_alignment(1, 0.5) == 0);
}

TEST_CASE("what searches and probes refuse, by the words") {
  const matrix a = matrix::Identity(4, 5);
  const column five = column::Ones(5), four = column::Ones(4);
  const auto op = gram(a);
  const auto refused_by = [](std::string_view words, const auto& call) {
    CAPTURE(words);
    CHECK(refused([&] { static_cast<void>(call()); }, words));
  };
  for (const index_t basis : {index_t{0}, index_t{-1}}) {
    const std::string words = "find_principal: a basis of " + std::to_string(basis) + " vectors";
    refused_by(words, [&] { return find_principal(op, view(five), {.basis = basis}); });
    refused_by(words, [&] { return find_principal(a, view(five), {.basis = basis}); });
    refused_by(words, [&] { return find_principal(a, view(five), {.basis = basis, .rigorous_up_to = 0}); });
  }
  refused_by("find_principal: the operator has dimension 5, the start 4 elements",
             [&] { return find_principal(op, view(four)); });
  refused_by("probe: the operator has dimension 5, the direction 4 elements",
             [&] { return probe_second_eigenvalue(op, view(four), 1.0); });
  const auto probe = [&](const probe_options& options) {
    return probe_second_eigenvalue(op, view(five), 1.0, options);
  };
  refused_by("probe: at least one start and one step", [&] { return probe({.starts = 0}); });
  refused_by("probe: at least one start and one step", [&] { return probe({.max_steps = 0}); });
  for (const double chance : {0.0, 1.0, -0.5, 2.0, std::nan("")}) {
    refused_by("probe: a failure probability of", [&] { return probe({.failure_probability = chance}); });
  }
}

TEST_CASE("a search that has no steps leaves the start as it is") {
  random_source random(101);
  const auto s = random_with_spectrum(random, 20, 30, {2, 1.2, 0.7, 0.1});
  const matrix a = of_spectrum(s);
  auto op = gram(a);
  const column start = values(random_vector<double>(random, 30));
  for (const index_t steps : {0, 1}) {
    column row = start;
    rayleigh_result<double> at;
    auto krylov = krylov_space(op, 30);
    detail::known_images known;
    CHECK(detail::search(op, op, row, at, {.max_steps = steps}, krylov, known) == 1);
    CHECK(row == start);
  }
}

TEST_CASE("of several probes each fails a fourth as often, and begins with other vectors") {
  random_source random(103);
  const auto s = random_with_spectrum(random, 20, 30, {2, 1.2, 0.7, 0.1});
  auto op = gram(row_major(s.a.data(), 20, 30));
  principal_direction found;
  found.direction = direction(s, 0);
  found.at.rayleigh = 4;
  const probe_options options{.failure_probability = 0.01, .seed = 7};
  for (const int number : {0, 1, 2}) {
    const auto once = detail::probe_once(op, found, {}, options, number);
    const auto alone = probe_second_eigenvalue(
        op, view(found.direction), 4,
        {.failure_probability = 0.0025, .seed = 7 + static_cast<std::uint64_t>(number)});
    CHECK(once.bound.alpha == alone.bound.alpha);
    CHECK(once.ritz_value == alone.ritz_value);
    CHECK(once.bound.alpha != probe_second_eigenvalue(op, view(found.direction), 4, options).bound.alpha);
  }
}

TEST_CASE("where steps end, a bound up to a hundredth below ρ is worth having") {
  random_source random(107);
  std::vector<double> sigma{1};
  for (int k = 0; k < 20; ++k) sigma.push_back(0.95 * std::pow(0.99, k));
  const auto s = random_with_spectrum(random, 30, 40, sigma);
  const column v1 = direction(s, 0);
  int close = 0;
  for (index_t steps = 2; steps < 40; ++steps) {
    const auto probe = probe_second_eigenvalue(gram(row_major(s.a.data(), 30, 40)), view(v1), 1.0,
                                               {.starts = 1, .max_steps = steps});
    if (probe.bound.label != certainty::probabilistic) continue;
    CHECK(probe.bound.alpha >= 0.95 * 0.95);
    CHECK(probe.bound.alpha <= 0.991 + 0.01 * probe.ritz_value);
    close += probe.bound.alpha > probe.ritz_value + 0.7 * (1 - probe.ritz_value) ? 1 : 0;
  }
  CHECK(close > 0);
}

TEST_CASE("σ₁ of small matrices allows for rounding of the size of ‖A‖², not of ρ") {
  matrix a = matrix::Identity(40, 40);
  a(0, 0) = 1.25;
  const column ones = column::Ones(40);
  const auto found = find_principal(a, view(ones));
  REQUIRE(found.proof.label == certainty::rigorous);
  const double slack = detail::evaluation_slack(80, a.squaredNorm());
  CHECK(found.at.rayleigh - std::pow(found.proof.sigma_low, 2) == doctest::Approx(slack).epsilon(0.01));
}

TEST_CASE("what is measured beside a direction allows for rounding, in size and in coupling") {
  detail::known_images known{matrix::Identity(6, 3), matrix::Zero(6, 3), 2};
  known.images(0, 0) = 1;
  known.images(1, 1) = 0.5;
  known.images(2, 2) = 0.25;
  const auto exact = detail::measure(known, 0);
  CHECK(exact.top == doctest::Approx(1));
  CHECK(exact.coupling == 0);
  const auto allowed = detail::measure(known, 1e-3);
  CHECK(allowed.top == doctest::Approx(1 + 1e-3 * std::sqrt(2.0)));
  CHECK(allowed.coupling == doctest::Approx(1e-3 * std::sqrt(2.0)));
  known.images(4, 1) = 0.3;  // couples to what is not known
  CHECK(detail::measure(known, 0).coupling == doctest::Approx(0.6));
}

TEST_CASE_TEMPLATE("a Krylov space begins with a unit vector, however small what it is made of", S, float,
                   double) {
  random_source random(109);
  const column x = values(random_vector<double>(random, 12));
  for (int exponent = -std::numeric_limits<S>::digits - 20;
       exponent > std::numeric_limits<S>::min_exponent + 4; exponent -= 3) {
    CAPTURE(exponent);
    lanczos<S> krylov(12, 4);
    REQUIRE(krylov.start((std::ldexp(1.0, exponent) * x).template cast<S>()));
    CHECK(std::abs(static_cast<double>(krylov.newest().norm()) - 1) <
          20 * static_cast<double>(std::numeric_limits<S>::epsilon()));
  }
  lanczos<S> krylov(12, 4);
  CHECK_FALSE(krylov.start(x, x, 1e-310));  // a gradient that is no number in units of ρ
  CHECK_FALSE(krylov.start(x, column(column::Zero(12)), 1));
  CHECK(krylov.start(x, x, 1));
}

}  // namespace test_certificates
