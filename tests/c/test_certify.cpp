// Certificates through the C interface: those of the C++ library, number by number.
#include <mpi_router/backend/runtime_dispatch.hpp>
#include <mpi_router/verify/principal.hpp>

#include <doctest/doctest.h>

#include "arrays.hpp"

using namespace c_tests;
using test_support::layout;
using test_support::stored_matrix;

namespace {

/// Experts with random weights and rows, a row of zeros among them.
template <class T>
struct certify_problem {
  explicit certify_problem(const expert_shape& s, expert_layout l)
      : shape(s),
        experts(s, l),
        rows(test_support::random_matrix<double>(random, s.num_experts, s.hidden_dim), s.num_experts,
             s.hidden_dim, layout::padded_rows),
        directions(static_cast<std::size_t>(s.num_experts * s.hidden_dim)),
        found(static_cast<std::size_t>(s.num_experts)),
        certificates(found.size()) {
    experts.fill([&] { return random.normal(); });
    for (index_t d = 0; d < s.hidden_dim; ++d) rows.view()(s.num_experts - 1, d) = 0;
  }

  void solve(const mpi_router_certify_options* options) {
    const auto ce = c_experts(experts.view());
    const auto in = c_matrix(rows.view());
    const auto out =
        mpi_router_row_major(directions.data(), MPIROUTER_F64, shape.num_experts, shape.hidden_dim);
    three_threads threads;
    const auto run = threads.c();
    CHECK(mpi_router_find_directions(&ce, &in, options, found.data(), &out, &run) == MPIROUTER_OK);
    CHECK(mpi_router_certify_rows(&ce, &in, found.data(), &out, certificates.data(), &run) == MPIROUTER_OK);
  }

  /// What C++ finds for expert i is what C told.
  template <class Op>
  void check(index_t i, const principal_direction& principal, Op&& op) {
    const auto& f = found[static_cast<std::size_t>(i)];
    const auto& c = certificates[static_cast<std::size_t>(i)];
    CHECK(f.certainty == static_cast<std::int32_t>(principal.proof.label));
    CHECK(f.status == static_cast<std::int32_t>(principal.at.state));
    CHECK(f.angle_bound == principal.proof.angle_bound);
    CHECK(f.sigma_low == principal.proof.sigma_low);
    CHECK(f.sigma_high == principal.proof.sigma_high);
    CHECK(f.second_bound == principal.proof.alpha);
    CHECK(f.failure_probability == principal.proof.failure_probability);
    CHECK(f.rayleigh == principal.at.rayleigh);
    CHECK(f.residual == principal.at.residual);
    CHECK(f.applications == principal.applications);
    for (index_t d = 0; d < principal.direction.size(); ++d) {
      CHECK(directions[static_cast<std::size_t>(i * shape.hidden_dim + d)] == principal.direction[d]);
    }
    const auto row = certify_row(op, std::as_const(rows).view().row(i), principal);
    CHECK(c.certainty == static_cast<std::int32_t>(row.label));
    CHECK(c.status == static_cast<std::int32_t>(row.state));
    CHECK(c.angle == row.angle);
    CHECK(c.angle_low == row.angle_low);
    CHECK(c.angle_high == row.angle_bound);
    CHECK(c.rayleigh == row.rayleigh);
    CHECK(c.residual == row.residual);
  }

  random_source random{23};
  expert_shape shape;
  stored_experts<T> experts;
  stored_matrix<double> rows;
  std::vector<double> directions;
  std::vector<mpi_router_direction> found;
  std::vector<mpi_router_row_certificate> certificates;
};

}  // namespace

TEST_CASE("small experts are certified rigorously, as C++ does") {
  certify_problem<float> p({3, 12, 20}, expert_layout::ndf);
  p.solve(nullptr);
  for (index_t i = 0; i < 3; ++i) {
    const auto a = p.experts.view()[i];
    Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> dense(a.rows(), a.cols());
    for (index_t k = 0; k < dense.size(); ++k)
      dense(k / a.cols(), k % a.cols()) = widen<double>(a(k / a.cols(), k % a.cols()));
    p.check(i, find_principal(dense, std::as_const(p.rows).view().row(i)), gram_in_double(a, dispatch{}));
    CHECK(p.found[static_cast<std::size_t>(i)].certainty == MPIROUTER_CERTAINTY_RIGOROUS);
  }
  CHECK(p.certificates[2].status == MPIROUTER_STATUS_ZERO_ROW);
}

TEST_CASE("large experts are probed in float, as C++ does") {
  auto options = mpi_router_default_certify_options();
  options.rigorous_up_to = 4;
  certify_problem<bf16> p({2, 40, 30}, expert_layout::nfd);
  p.solve(&options);
  CHECK(p.found[0].certainty == MPIROUTER_CERTAINTY_PROBABILISTIC);
  CHECK(p.found[0].failure_probability == options.failure_probability);

  // Against the same experts in double, rigorously.
  certify_problem<double> exact({2, 40, 30}, expert_layout::pointers);
  const auto from = p.experts.view();
  index_t at = 0;
  exact.experts.fill([&] {
    const index_t i = at++;
    return static_cast<double>(widen<float>(from[i / 1200]((i % 1200) / 30, i % 30)));
  });
  exact.solve(nullptr);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(exact.found[i].certainty == MPIROUTER_CERTAINTY_RIGOROUS);
    CHECK(p.found[i].sigma_low <= exact.found[i].sigma_high);
    CHECK(exact.found[i].sigma_low <= p.found[i].sigma_high);
    if (i == 0) {
      CHECK(p.certificates[i].angle_low <= exact.certificates[i].angle_high);
      CHECK(exact.certificates[i].angle_low <= p.certificates[i].angle_high);
    }
  }

  certify_problem<double> doubles({2, 40, 30}, expert_layout::ndf);
  doubles.experts.fill([&] {
    const index_t i = at++ - 2400;
    return static_cast<double>(widen<float>(from[i / 1200]((i % 1200) / 30, i % 30)));
  });
  doubles.solve(&options);
  CHECK(doubles.found[0].certainty == MPIROUTER_CERTAINTY_PROBABILISTIC);
  CHECK(doubles.found[0].sigma_low <= exact.found[0].sigma_high);
}

TEST_CASE("nothing is claimed of experts that have no direction") {
  certify_problem<float> p({2, 5, 6}, expert_layout::nfd);
  p.experts.fill([] { return 0.0; });
  p.solve(nullptr);
  CHECK(p.found[0].status == MPIROUTER_STATUS_ZERO_IMAGE);
  CHECK(p.found[0].certainty == MPIROUTER_CERTAINTY_NONE);
  CHECK(p.certificates[0].certainty == MPIROUTER_CERTAINTY_NONE);
  for (const double x : p.directions) CHECK(x == 0);
  p.experts.fill([] { return std::numeric_limits<double>::quiet_NaN(); });
  p.solve(nullptr);
  CHECK(p.found[0].status == MPIROUTER_STATUS_NON_FINITE);
}

TEST_CASE("the options are those of the library") {
  const certify_options o;
  const auto c = mpi_router_default_certify_options();
  CHECK(c.residual_tolerance == o.residual_tolerance);
  CHECK(c.max_steps == o.max_steps);
  CHECK(c.basis == o.basis);
  CHECK(c.rigorous_up_to == o.rigorous_up_to);
  CHECK(c.failure_probability == o.probe.failure_probability);
  CHECK(c.probe_starts == o.probe.starts);
  CHECK(c.probe_max_steps == o.probe.max_steps);
  CHECK(c.seed == o.probe.seed);
}
