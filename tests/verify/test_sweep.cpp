// Matrices made to mislead, by the thousand: what is claimed of them is held against the SVD.
#include <mpi_router/verify/expert_direction.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace test_sweep {
using namespace mpi_router;
using namespace test_support;

namespace {

#ifndef SWEEP_TRIALS
#ifdef MPIROUTER_TEST_SANITIZED  // minutes there
#define SWEEP_TRIALS 400
#else
#define SWEEP_TRIALS 4000
#endif
#endif

index_t one_of(random_source& random, index_t count) { return random.integer(0, count - 1); }

/// Singular values, the largest first: gaps of every size, clusters, repeated ones, and none.
std::vector<double> some_spectrum(random_source& random, index_t rank) {
  std::vector<double> sigma(static_cast<std::size_t>(rank), 0.0);
  const double gap = std::pow(10, -16 * random.uniform());
  const index_t kind = one_of(random, 7);
  const index_t cluster = 1 + one_of(random, rank);
  const double ratio = random.uniform(0.01, 0.99);
  for (index_t k = 0; k < rank; ++k) {
    const auto n = static_cast<double>(k);
    const double values[] = {random.uniform(),       // anything
                             k < cluster ? 1 : 0.3,  // σ₁ repeated
                             k == 0 ? 1 : 1 - gap,   // one gap, and a cluster below it
                             k < cluster ? 1 - gap * n : ratio,
                             std::pow(ratio, n),  // falling fast or slowly
                             k == 0 ? 1.0 : 0.0,  // rank one
                             0.0};                // nothing
    sigma[static_cast<std::size_t>(k)] = values[kind];
  }
  std::sort(sigma.rbegin(), sigma.rend());
  return sigma;
}

/// A start that sees v₁ well, hardly, or not at all.
Eigen::VectorXd some_start(random_source& random, const singular_spectrum& truth) {
  const auto& v = truth.right();
  Eigen::VectorXd start = values(random_vector<double>(random, v.rows()));
  const index_t kind = one_of(random, 6);
  const Eigen::VectorXd v1 = v.col(0);
  if (kind == 1) start -= v1 * v1.dot(start);
  if (kind == 2) start = v.col(std::min<Eigen::Index>(1, v.cols() - 1));
  if (kind == 3) start = v1;
  if (kind == 4) start = v1 + 1e-9 * start;
  if (kind == 5) start += (1e-7 - v1.dot(start)) * v1;
  if (random.uniform() < 0.02) start.setZero();
  return start;
}

/// Holds all that is claimed against the truth. Returns whether the angle was certified.
bool not_refuted(const expert_direction& found, const singular_spectrum& truth, const Eigen::VectorXd& start,
                 double unit) {
  const auto& proof = found.found.proof;
  const double s1 = truth.sigma_1(), s2 = truth.sigma_2();
  const double rounding = 1e-14 * s1;
  CHECK(proof.sigma_low <= s1 + rounding);
  CHECK(proof.sigma_high >= s1 - rounding);
  if (found.found.direction.size() == 0) {
    return false;
  }
  if (std::isfinite(found.ritz_2)) {  // an estimate
    CHECK(found.ritz_2 <= 1.05 * s2 * s2 + unit * s1 * s1);
  }
  if (proof.label == certainty::none) {
    CHECK(proof.angle_bound == std::numbers::pi / 2);
    return false;
  }
  if (proof.label == certainty::heuristic) {
    return false;
  }
  CHECK(std::sqrt(proof.alpha) >= s2 * (1 - 1e-13));
  const double svd_error = 1e-14 + 1e-15 * s1 / std::max(s1 - s2, 1e-16 * s1);
  CHECK(proof.angle_bound >= truth.angle(view(found.found.direction)) - svd_error);
  if (found.forecast.converged() && truth.cosine(view(start)) > 1e-12 && s1 - s2 > 1e-6 * s1) {
    const auto steps = truth.steps_to(1e-6, view(start), 2000);
    const double off = static_cast<double>(steps.value_or(2001) - found.forecast.steps.value_or(2001));
    CAPTURE(steps.value_or(-1));
    CAPTURE(found.forecast.steps.value_or(-1));
    CHECK(std::abs(off) <= 1 + 0.01 * static_cast<double>(steps.value_or(2000)));
  }
  return true;
}

template <class T>
bool one_trial(random_source& random, index_t F, index_t D, double scale, bool quantised) {
  const auto s = random_with_spectrum(random, F, D, some_spectrum(random, std::min(F, D)));
  std::vector<T> stored;
  for (const double x : s.a) {
    stored.push_back(narrow<T>(scale * (quantised ? std::round(x * 7) / 7 : x)));
  }
  // Rows of neurons, or of hidden dimensions: the same numbers in either order.
  const bool turned = random.uniform() < 0.5;
  const matrix_view<const T> a = turned ? column_major(std::as_const(stored).data(), F, D)
                                        : row_major(std::as_const(stored).data(), F, D);
  const singular_spectrum truth(a);
  if (!(truth.sigma_1() > 0)) {
    const Eigen::VectorXd ones = Eigen::VectorXd::Ones(D);
    CHECK(find_expert_direction(a, view(ones), direction_source::certificate).found.proof.label ==
          certainty::none);
    return false;
  }
  const Eigen::VectorXd start = some_start(random, truth);
  bool certified = true;
  const index_t starts = random.integer(1, 2);
  for (const index_t rigorous_up_to : {index_t{512}, index_t{0}}) {
    CAPTURE(rigorous_up_to);
    const auto found =
        find_expert_direction(a, view(start), direction_source::certificate, reference{}, {.max_steps = 2000},
                              {.rigorous_up_to = rigorous_up_to, .probe = {.starts = starts}});
    certified = not_refuted(found, truth, start, rigorous_up_to > 0 ? 1e-10 : 1e-5) && certified;
  }
  return certified;
}

}  // namespace

TEST_CASE("no certificate is refuted, whatever the spectrum, the start, the scale and the storage") {
  random_source random(107);
  int certified = 0;
  for (int trial = 0; trial < SWEEP_TRIALS; ++trial) {
    const index_t F = 1 + one_of(random, 20), D = 1 + one_of(random, 20);
    const bool quantised = random.uniform() < 0.2;
    CAPTURE(trial);
    CAPTURE(F);
    CAPTURE(D);
    const double u = random.uniform();
    const double exponent = u < 0.5 ? 0 : random.uniform(-1, 1);
    bool is_certified = false;
    switch (one_of(random, 3)) {
      case 0: is_certified = one_trial<double>(random, F, D, std::pow(10, 140 * exponent), quantised); break;
      case 1: is_certified = one_trial<float>(random, F, D, std::pow(10, 30 * exponent), quantised); break;
      default: is_certified = one_trial<bf16>(random, F, D, std::pow(10, 30 * exponent), quantised);
    }
    certified += is_certified ? 1 : 0;
  }
  CHECK(certified > SWEEP_TRIALS / 3);  // or the sweep would say nothing
}

}  // namespace test_sweep
