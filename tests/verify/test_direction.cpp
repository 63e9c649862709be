// The direction that rows are measured against: which of the ways to it is taken, and that each is right.
#include <mpi_router/verify/expert_direction.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

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

certify_options probes_only() {
  certify_options options;
  options.rigorous_up_to = small - 1;
  return options;
}

}  // namespace

TEST_CASE("small matrices are proven rigorously, larger ones by a probe") {
  const auto a = with_direction(small, 60, 1);
  const auto row = some_row(60);
  const singular_spectrum spectrum(a);
  const auto rigorous = find_principal_cheaply(a, view(row));
  CHECK(rigorous.proof.label == certainty::rigorous);
  const auto probed = find_principal_cheaply(a, view(row), reference{}, probes_only());
  CHECK(probed.proof.label == certainty::probabilistic);
  for (const auto& found : {rigorous, probed}) {
    CHECK(spectrum.angle(view(found.direction)) <= found.proof.angle_bound + 1e-12);
    CHECK(found.proof.angle_bound < 1e-6);
  }
}

TEST_CASE("the probe in float has half the failure probability, for there may be a second one") {
  const auto row = some_row(60);
  const auto in_float =
      find_principal_cheaply(with_direction(small, 60, 1), view(row), reference{}, probes_only());
  CHECK(in_float.proof.failure_probability == probe_options{}.failure_probability / 2);
  for (const double scale : {1e-12, 1e12}) {  // whose squares leave the range of float
    const auto in_double =
        find_principal_cheaply(with_direction(small, 60, scale), view(row), reference{}, probes_only());
    CHECK(in_double.proof.label == certainty::probabilistic);
    CHECK(in_double.proof.failure_probability == probe_options{}.failure_probability);
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
  const Eigen::MatrixXf rounded = a.cast<float>();
  CHECK(find_principal(gram(a), gram(rounded), view(row), options).proof.label < certainty::probabilistic);
  const auto found = find_principal_cheaply(a, view(row), reference{}, options);
  CHECK(found.proof.label == certainty::probabilistic);
  CHECK(std::abs(found.direction[0]) > 1 - 1e-9);
}

TEST_CASE("with and without a decomposition") {
  const auto a = with_direction(small, 60, 1);
  const auto row = some_row(60);
  const singular_spectrum spectrum(a);
  const auto exact = find_expert_direction(a, view(row), direction_source::svd);
  const auto proven = find_expert_direction(a, view(row), direction_source::certificate);
  CHECK(exact.uncertainty == 0);
  CHECK(exact.sigma_1() == spectrum.sigma_1());
  CHECK(exact.sigma_2() == spectrum.sigma_2());
  CHECK(exact.rate() == spectrum.kappa() * spectrum.kappa());
  CHECK(exact.angle(view(row)) == doctest::Approx(spectrum.angle(view(row))).epsilon(1e-12));
  CHECK(!proven.spectrum);
  CHECK(proven.uncertainty == proven.found.proof.angle_bound);
  CHECK(proven.sigma_1() == doctest::Approx(spectrum.sigma_1()).epsilon(1e-12));
  CHECK(std::isnan(proven.sigma_2()));
  CHECK(proven.rate() >= exact.rate());
  CHECK(proven.rate() < 1);
  CHECK(proven.sine_at(0.1) == std::sin(0.1 + proven.uncertainty));
  CHECK(proven.sine_at(2) == 1);
}

TEST_CASE("a zero matrix has no direction") {
  const gate_matrix zero = gate_matrix::Zero(small, 60);
  const auto row = some_row(60);
  const auto none = find_expert_direction(zero, view(row), direction_source::certificate);
  CHECK(none.v.size() == 0);
  CHECK(std::isnan(none.rate()));
}
