// Two versions of one expert: what moved, and that no bound on it is ever broken.
#include <mpi_router/verify/compare.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/svd.hpp>
#include <support/tolerance.hpp>

namespace test_compare {
using namespace mpi_router;
using test_support::close;

namespace {

constexpr auto tol = test_support::tolerance<double>;
constexpr double right_angle = std::numbers::pi / 2;

gate_matrix random_gate(test_support::random_source& random, index_t f, index_t d, double scale = 1) {
  gate_matrix a(f, d);
  for (index_t i = 0; i < f; ++i) {
    for (index_t j = 0; j < d; ++j) {
      a(i, j) = scale * random.normal();
    }
  }
  return a;
}

Eigen::VectorXd random_row(test_support::random_source& random, index_t d) {
  return random_gate(random, 1, d).row(0).transpose();
}

/// One direction that stands out, so that there is a gap for Wedin to stand in.
gate_matrix with_gap(test_support::random_source& random, index_t f, index_t d) {
  const auto known = test_support::random_with_spectrum(
      random, f, d, std::min(f, d) > 1 ? std::vector<double>{9, 2} : std::vector<double>{9});
  return Eigen::Map<const gate_matrix>(known.a.data(), f, d) + random_gate(random, f, d, 0.05);
}

Eigen::VectorXd sigma_of(const gate_matrix& a) {
  return test_support::jacobi_svd(Eigen::MatrixXd(a)).singularValues();
}

/// The angle of the true principal directions.
double true_angle(const gate_matrix& a, const gate_matrix& b) {
  const Eigen::VectorXd x = test_support::jacobi_svd(Eigen::MatrixXd(a)).matrixV().col(0);
  const Eigen::VectorXd y = test_support::jacobi_svd(Eigen::MatrixXd(b)).matrixV().col(0);
  return line_angle<double>(view(x), view(y));
}

expert_comparison compare(const gate_matrix& a, const Eigen::VectorXd& row_a, const gate_matrix& b,
                          const Eigen::VectorXd& row_b) {
  return compare_experts(view(a), view(row_a), view(b), view(row_b));
}

/// Rows of integers, as a format of its own would have them.
struct packed_rows {
  const gate_matrix* a;
  [[nodiscard]] index_t rows() const { return a->rows(); }
  [[nodiscard]] index_t cols() const { return a->cols(); }
  template <class S>
  void load_row(index_t f, S* out) const {
    for (index_t d = 0; d < cols(); ++d) {
      out[d] = static_cast<S>((*a)(f, d));
    }
  }
};

/// Of small integers, which every type holds.
gate_matrix integer_gate(test_support::random_source& random, index_t f, index_t d) {
  return random_gate(random, f, d, 9).array().round().matrix();
}

}  // namespace

TEST_CASE("an expert against itself: nothing moved") {
  test_support::random_source random(70);
  for (const auto& [f, d] : {std::pair<index_t, index_t>{1, 1}, {1, 7}, {7, 1}, {5, 9}, {33, 17}}) {
    const auto a = random_gate(random, f, d);
    const auto row = random_row(random, d);
    const auto same = compare(a, row, a, row);
    CAPTURE(f);
    CAPTURE(d);
    CHECK(same.row.cosine == doctest::Approx(1).epsilon(1e-15));
    CHECK(same.row.angle == 0);
    CHECK(same.direction.cosine == doctest::Approx(1).epsilon(1e-15));
    CHECK(same.direction.angle == 0);
    CHECK(same.a.sigma_1 == same.b.sigma_1);
    CHECK(same.a.sigma_2 == same.b.sigma_2);
    REQUIRE(same.change.has_value());
    CHECK(same.change->state == status::zero_image);
    CHECK(same.change->value == 0);
    CHECK(same.change->high == 0);
    CHECK(same.change->label == certainty::probabilistic);
  }
}

TEST_CASE("a matrix times c: the same direction, its values times |c|, and a change of |c − 1| σ₁") {
  test_support::random_source random(71);
  const auto a = with_gap(random, 12, 19);
  const auto row = random_row(random, 19);
  for (const double c : {0.5, -3.0, 1.25}) {
    const auto scaled = compare(a, row, c * a, 2 * row);
    CHECK(scaled.row.angle < tol.identity);
    CHECK(scaled.direction.angle <= scaled.direction.uncertainty);
    CHECK(scaled.direction.cosine > 1 - tol.identity);
    CHECK(close(scaled.b.sigma_1, std::abs(c) * scaled.a.sigma_1, tol.identity));
    CHECK(close(scaled.b.sigma_2, std::abs(c) * scaled.a.sigma_2, tol.identity));
    CHECK(close(scaled.change->value, std::abs(c - 1) * sigma_of(a)[0], tol.identity));
  }
  CHECK(compare(a, row, a, -row).row.cosine == doctest::Approx(-1));
  CHECK(compare(a, row, a, -row).row.angle == doctest::Approx(std::numbers::pi));
}

TEST_CASE("random changes of random sizes: the norm is that of the SVD, and no bound is broken") {
  test_support::random_source random(72);
  index_t useful = 0;
  for (int trial = 0; trial < 150; ++trial) {
    const index_t f = random.integer(1, 24);
    const index_t d = random.integer(1, 24);
    const auto a = trial % 3 == 0 ? random_gate(random, f, d) : with_gap(random, f, d);
    const gate_matrix delta = random_gate(random, f, d, std::pow(10, random.uniform(-6, 0.3)));
    const gate_matrix b = a + delta;
    const auto moved = compare(a, random_row(random, d), b, random_row(random, d));
    const auto before = sigma_of(a);
    const auto after = sigma_of(b);
    const double norm = sigma_of(b - a)[0];
    CAPTURE(trial);
    CHECK(close(moved.a.sigma_1, before[0], tol.identity));
    CHECK(close(moved.b.sigma_1, after[0], tol.identity));
    if (before.size() > 1) {
      CHECK(moved.a.sigma_2 <= before[1] * (1 + tol.identity));
      CHECK(close(moved.a.sigma_2, before[1], 1e-3));  // of a search that stops when it has settled
    }
    REQUIRE(moved.change.has_value());
    CHECK(close(moved.change->value, norm, tol.identity));
    CHECK(moved.change->high >= norm);
    CHECK(moved.change->high <= 1.006 * norm);
    CHECK((before - after).cwiseAbs().maxCoeff() <= moved.change->high + tol.identity * before[0]);
    const double angle = true_angle(a, b);
    CHECK(angle <= moved.wedin.angle + tol.identity);
    CHECK(moved.direction.angle <= moved.wedin.angle + moved.direction.uncertainty + tol.identity);
    CHECK(std::abs(angle - moved.direction.angle) <= moved.direction.uncertainty + tol.identity);
    CHECK((moved.wedin.label == certainty::none) == (moved.wedin.angle == right_angle));
    useful += moved.wedin.angle < 0.5 ? 1 : 0;
  }
  CHECK(useful > 60);
}

TEST_CASE("Wedin's bound is the norm to the gap of σ₁ of one and σ₂ of the other, whichever is larger") {
  const auto diagonal = [](double first, double second) {
    gate_matrix a = gate_matrix::Zero(3, 3);
    a(0, 0) = first;
    a(1, 1) = second;
    return a;
  };
  const Eigen::VectorXd row = Eigen::VectorXd::Ones(3);
  for (const bool turned : {false, true}) {  // gaps 10 − 1 and 8 − 4; the norm is 3
    const auto one = diagonal(10, 4);
    const auto two = diagonal(8, 1);
    const auto moved = turned ? compare(two, row, one, row) : compare(one, row, two, row);
    CHECK(moved.change->value == doctest::Approx(3));
    CHECK(moved.wedin.angle == doctest::Approx(std::asin(3.0 / 9)).epsilon(0.01));
    CHECK(moved.wedin.angle >= std::asin(3.0 / 9));
    CHECK(moved.wedin.label == certainty::probabilistic);
    CHECK(moved.wedin.failure_probability == doctest::Approx(3e-6));  // of both σ₂ and the norm
  }
  SUBCASE("no gap, no bound") {
    const auto far = compare(diagonal(10, 4), row, diagonal(4, 10), row);
    CHECK(far.wedin.angle == right_angle);
    CHECK(far.wedin.label == certainty::none);
    const auto repeated = compare(diagonal(5, 5), row, diagonal(5, 5), row);
    CHECK(repeated.wedin.label == certainty::none);
  }
}

TEST_CASE("what the certificates say is what is claimed: signs, sums, and the weaker label") {
  principal_direction a;
  principal_direction b;
  CHECK(std::isnan(compare_directions(a, b).cosine));
  a.direction = Eigen::Vector2d(1, 0);
  CHECK(std::isnan(compare_directions(a, b).angle));
  b.direction = Eigen::Vector2d(-1, 0);
  a.proof.angle_bound = 0.1;
  b.proof.angle_bound = 0.2;
  a.proof.label = certainty::rigorous;
  b.proof.label = certainty::heuristic;
  CHECK(compare_directions(a, b).uncertainty == right_angle);
  b.proof.label = certainty::probabilistic;
  const auto opposite = compare_directions(a, b);
  CHECK(opposite.cosine == 1);
  CHECK(opposite.angle == 0);
  CHECK(opposite.uncertainty == doctest::Approx(0.3));
  b.proof.angle_bound = right_angle;
  CHECK(compare_directions(a, b).uncertainty == right_angle);

  norm_bounds change{status::ok, 5, 5.5, certainty::heuristic, 0.25, 1};
  a.proof = {certainty::rigorous, 4, 0, 10, 11, 0};  // σ₁ in [10, 11], σ₂ at most 2
  b.proof = {certainty::probabilistic, 9, 0.5, 12, 13, 0};
  const auto by_b = wedin_limit(a, b, change);  // gaps 10 − 3 and 12 − 2
  CHECK(by_b.angle == doctest::Approx(std::asin(0.55)));
  CHECK(by_b.label == certainty::heuristic);
  CHECK(by_b.failure_probability == 0.75);  // the better of two, one of which may fail
  b.proof.sigma_low = 6;
  const auto by_a = wedin_limit(a, b, change);  // 7 and 4
  CHECK(by_a.angle == doctest::Approx(std::asin(5.5 / 7)));
  CHECK(by_a.failure_probability == 0.75);
  change.high = 7;  // between 5 and this the norm may be as large as the gap
  CHECK(wedin_limit(a, b, change).label == certainty::none);
  change.high = 1;
  change.label = certainty::none;
  CHECK(wedin_limit(a, b, change).angle == right_angle);
}

TEST_CASE("neurons in another order: σ and v₁ stay, the difference does not") {
  test_support::random_source random(73);
  const auto a = with_gap(random, 8, 11);
  const gate_matrix b = a.colwise().reverse();
  const auto row = random_row(random, 11);
  const auto moved = compare(a, row, b, row);
  CHECK(moved.direction.angle < tol.identity);
  CHECK(close(moved.a.sigma_1, moved.b.sigma_1, tol.identity));
  CHECK(close(moved.a.sigma_2, moved.b.sigma_2, tol.identity));
  CHECK(moved.change->value > 1);
}

TEST_CASE("whatever the weights are stored as, and in whatever order") {
  test_support::random_source random(74);
  const auto a = integer_gate(random, 6, 10);
  const auto b = integer_gate(random, 6, 10);
  const auto row = random_row(random, 10);
  const Eigen::MatrixXf turned = a.cast<float>();                                               // [D, F]
  const Eigen::Matrix<bf16, Eigen::Dynamic, Eigen::Dynamic> small = b.unaryExpr([](double x) {  //
    return bf16(static_cast<float>(x));
  });
  const auto expected = compare(a, row, b, row);
  const auto check_same = [&](const expert_comparison& other) {
    CHECK(other.direction.cosine == expected.direction.cosine);
    CHECK(other.a.sigma_1 == expected.a.sigma_1);
    CHECK(other.b.sigma_2 == expected.b.sigma_2);
    CHECK(other.change->value == expected.change->value);
    CHECK(other.wedin.angle == expected.wedin.angle);
  };
  const matrix_view<const bf16> stored(small.data(), 6, 10, 1, 6);
  check_same(compare_experts(view(turned), view(row), stored, view(row)));
  check_same(compare_experts(packed_rows{&a}, view(row), packed_rows{&b}, view(row)));
  check_same(compare_experts(packed_rows{&a}, view(row), view(b), view(row)));
}

TEST_CASE("fewer neurons: directions and values, no difference") {
  test_support::random_source random(75);
  const auto a = with_gap(random, 9, 6);
  const gate_matrix b = a.topRows(5);
  const auto row = random_row(random, 6);
  const auto moved = compare(a, row, b, row);
  CHECK_FALSE(moved.change.has_value());
  CHECK(moved.wedin.label == certainty::none);
  CHECK(close(moved.direction.cosine, std::cos(true_angle(a, b)), tol.identity));
  CHECK_THROWS_AS(compare(a, row, random_gate(random, 9, 7), random_row(random, 7)), usage_error);
  CHECK_THROWS_AS(compare(a, row, a, random_row(random, 5)), usage_error);
}

TEST_CASE("zeros and what is not finite") {
  test_support::random_source random(76);
  const auto a = with_gap(random, 5, 6);
  const gate_matrix zero = gate_matrix::Zero(5, 6);
  const auto row = random_row(random, 6);
  const auto gone = compare(a, row, zero, Eigen::VectorXd::Zero(6));
  CHECK(std::isnan(gone.row.cosine));
  CHECK(std::isnan(gone.row.angle));
  CHECK(std::isnan(gone.direction.cosine));
  const Eigen::VectorXd huge = Eigen::VectorXd::Constant(6, 1.7e308);  // its length is no double
  CHECK(std::isnan(compare_rows(view(row), view(huge)).cosine));
  CHECK(gone.b.sigma_1 == 0);
  CHECK(gone.b.sigma_2 == 0);
  CHECK(close(gone.change->value, sigma_of(a)[0], tol.identity));
  CHECK(gone.wedin.label == certainty::none);
  const auto none = compare(zero, row, zero, row);
  CHECK(none.change->value == 0);
  CHECK(none.row.cosine == doctest::Approx(1));

  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    gate_matrix broken = a;
    broken(2, 3) = bad;
    Eigen::VectorXd bad_row = row;
    bad_row[1] = bad;
    const auto lost = compare(a, row, broken, bad_row);
    CHECK(std::isnan(lost.row.cosine));
    CHECK(std::isnan(lost.direction.cosine));
    CHECK(std::isnan(lost.b.sigma_1));
    CHECK(std::isnan(lost.b.sigma_2));
    CHECK(close(lost.a.sigma_1, sigma_of(a)[0], tol.identity));
    CHECK(lost.change->state == status::non_finite);
    CHECK(lost.change->label == certainty::none);
    CHECK(lost.change->high == std::numeric_limits<double>::infinity());
    CHECK(lost.wedin.label == certainty::none);
  }
  const gate_matrix nothing(0, 6);
  CHECK(compare(nothing, row, nothing, row).change->value == 0);
}

TEST_CASE("the difference, row by row") {
  test_support::random_source random(77);
  const auto a = random_gate(random, 3, 5);
  const auto b = random_gate(random, 3, 5);
  std::vector<double> scratch(10);
  const difference_rows change(as_rows(view(a)), packed_rows{&b}, scratch);
  static_assert(MatrixRowsIn<decltype(change), double>);
  CHECK(change.rows() == 3);
  CHECK(change.cols() == 5);
  double row[5];
  float rounded[5];
  for (index_t f = 0; f < 3; ++f) {
    change.load_row(f, row);
    change.load_row(f, rounded);
    for (index_t d = 0; d < 5; ++d) {
      CHECK(row[d] == b(f, d) - a(f, d));
      CHECK(rounded[d] == static_cast<float>(b(f, d) - a(f, d)));
    }
  }
  const gate_matrix other = a.leftCols(4);
  CHECK_THROWS_AS(difference_rows(as_rows(view(a)), as_rows(view(other)), std::span(scratch).first(8)),
                  usage_error);
  CHECK_THROWS_AS(difference_rows(as_rows(view(a)), as_rows(view(b)), std::span(scratch).first(9)),
                  usage_error);
}

TEST_CASE("the norm: never below the truth from above, whatever the spectrum and however few the steps") {
  test_support::random_source random(78);
  std::vector<double> flat(20, 1.0);
  std::vector<double> crowded;
  for (int k = 0; k < 20; ++k) {
    crowded.push_back(1 - 1e-4 * k);
  }
  for (const auto& sigma : {flat, crowded, std::vector<double>{1}, std::vector<double>{1, 0.1}}) {
    const auto known = test_support::random_with_spectrum(random, 25, 40, sigma);
    const gate_matrix a = Eigen::Map<const gate_matrix>(known.a.data(), 25, 40);
    for (const index_t steps : {1, 2, 3, 8, 300}) {
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const auto norm = spectral_norm(gram(a), {.max_steps = steps, .seed = seed});
        CHECK(norm.state == status::ok);
        CHECK(norm.value <= 1 + tol.identity);
        CHECK(norm.high >= 1 - tol.arithmetic);
        CHECK(norm.applications <= steps);
        CHECK(norm.label == certainty::probabilistic);
        if (steps == 300) {
          CHECK(norm.value >= 1 - tol.identity);
          CHECK(norm.high <= 1.006);
        }
      }
    }
  }
  const gate_matrix one = gate_matrix::Constant(1, 1, -3);
  CHECK(spectral_norm(gram(one)).value == doctest::Approx(3));
  CHECK_THROWS_AS(static_cast<void>(spectral_norm(gram(one), {.max_steps = 0})), usage_error);
  CHECK_THROWS_AS(static_cast<void>(spectral_norm(gram(one), {.failure_probability = 0})), usage_error);
  CHECK_THROWS_AS(static_cast<void>(spectral_norm(gram(one), {.failure_probability = 1})), usage_error);
}

TEST_CASE("what a single step cannot bound with so much certainty is not bounded") {
  test_support::random_source random(31);
  const auto values = test_support::random_vector<double>(random, 48);
  const auto a = row_major(values.data(), 6, 8);
  const auto norm = spectral_norm(gram(a), {.failure_probability = 1e-60, .max_steps = 1});
  CHECK(norm.label == certainty::none);
  CHECK(norm.high == std::numeric_limits<double>::infinity());
  CHECK(norm.value > 0);
}

TEST_CASE("the norm asks for as much as it is told to, of as much certainty") {
  test_support::random_source random(79);
  const auto a = random_gate(random, 60, 90);
  const auto coarse = spectral_norm(gram(a), {.residual_tolerance = 0.1, .slack = 0.5});
  const auto fine = spectral_norm(gram(a));
  const auto surer = spectral_norm(gram(a), {.slack = 0.001, .failure_probability = 1e-12});
  CHECK(coarse.applications < fine.applications);
  CHECK(coarse.high > fine.high);
  CHECK(fine.high * fine.high <= 1.01 * fine.value * fine.value);
  CHECK(surer.high * surer.high <= 1.001 * surer.value * surer.value);
  CHECK(surer.failure_probability == 1e-12);
  CHECK(spectral_norm(gram(a), {.failure_probability = 1e-3, .max_steps = 6}).high <
        spectral_norm(gram(a), {.failure_probability = 1e-9, .max_steps = 6}).high);
}

TEST_CASE("what comparisons and norms refuse, by the words") {
  const gate_matrix a = gate_matrix::Ones(3, 4), b = gate_matrix::Ones(3, 5);
  const Eigen::VectorXd four = Eigen::VectorXd::Ones(4), five = Eigen::VectorXd::Ones(5);
  using test_support::refused;
  CHECK(refused([&] { static_cast<void>(compare(a, four, b, five)); }, "compare_experts: D = 4 and 5"));
  CHECK(refused([&] { static_cast<void>(compare_rows(view(four), view(five))); },
                "compare_rows: 4 and 5 elements"));
  const auto norm = [&](const norm_options& options) {
    return [&a, options] { static_cast<void>(spectral_norm(gram(view(a)), options)); };
  };
  CHECK(refused(norm({.max_steps = 0}), "spectral_norm: 0 steps"));
  for (const double chance : {0.0, 1.0, -0.5, 2.0, std::nan("")}) {
    CHECK(refused(norm({.failure_probability = chance}), "spectral_norm: a failure probability of"));
  }
}

TEST_CASE("a cosine is none beyond one, and a limit that says nothing does not fail") {
  test_support::random_source random(79);
  for (index_t d = 1; d < 200; ++d) {
    const auto row = random_row(random, d);
    const Eigen::VectorXd other = (1.0 / 3) * row;
    CHECK(compare_rows(view(row), view(other)).cosine <= 1);
  }
  const norm_bounds change{.high = 1, .label = certainty::probabilistic, .failure_probability = 0.25};
  const auto nothing = wedin_limit({}, {}, change);
  CHECK(nothing.label == certainty::none);
  CHECK(nothing.failure_probability == 0);
  principal_direction a, b;
  a.proof.sigma_low = 9;
  b.proof.alpha = 4;
  b.proof.label = certainty::probabilistic;
  b.proof.failure_probability = 0.125;
  const auto something = wedin_limit(a, b, change);
  CHECK(something.angle == doctest::Approx(std::asin(1.0 / 7)));
  CHECK(something.failure_probability == 0.375);
}

}  // namespace test_compare
