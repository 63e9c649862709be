// The sum of Gram operators is the operator of the stacked matrix: images, energies, projections, the batched
// step and its factored gradients.
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/core/stacked.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>

#include <array>
#include <cmath>
#include <vector>

namespace test_stacked {
using namespace mpi_router;
using namespace test_support;

namespace {

std::size_t to_size(index_t count) { return static_cast<std::size_t>(count); }

constexpr index_t D = 7;
constexpr std::array<index_t, 3> F{5, 3, 4};
constexpr std::array<double, 3> weights{1.5, 0.25, 2};

/// Gate, up and the transposed down projection, which is stored as [D, F], and the stacked matrix.
struct matrices {
  std::vector<double> gate, up, down, stack;

  explicit matrices(std::uint64_t seed, double size = 1) {
    random_source random(seed);
    gate = random_vector<double>(random, F[0] * D);
    up = random_vector<double>(random, F[1] * D);
    down = random_vector<double>(random, F[2] * D);
    for (auto* part : {&gate, &up, &down}) {
      for (auto& x : *part) x *= size;
    }
    const auto below = [&](double weight, const matrix_view<const double>& a) {
      for (index_t f = 0; f < a.rows(); ++f) {
        for (index_t d = 0; d < D; ++d) stack.push_back(std::sqrt(weight) * a(f, d));
      }
    };
    below(weights[0], gate_view());
    below(weights[1], up_view());
    below(weights[2], down_view());
  }
  [[nodiscard]] matrix_view<const double> gate_view() const { return row_major(gate.data(), F[0], D); }
  [[nodiscard]] matrix_view<const double> up_view() const { return row_major(up.data(), F[1], D); }
  [[nodiscard]] matrix_view<const double> down_view() const { return column_major(down.data(), F[2], D); }
  [[nodiscard]] matrix_view<const double> stack_view() const { return row_major(stack.data(), 12, D); }
  [[nodiscard]] auto sum(std::vector<double>& scratch) const {
    return stacked(vector_view<double>(scratch), weighted(gram(gate_view()), weights[0]),
                   weighted(gram(up_view()), weights[1]), weighted(gram(down_view()), weights[2]));
  }
};

void check_close(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    CHECK(a[i] == doctest::Approx(b[i]).epsilon(1e-13));
  }
}

}  // namespace

TEST_CASE("image, energy, projection and lift are those of the stacked matrix") {
  const matrices m(1);
  std::vector<double> scratch(D);
  auto sum = m.sum(scratch);
  auto whole = gram(m.stack_view());
  static_assert(FactoredGramOperator<decltype(sum)> && ScalableGramOperator<decltype(sum)>);
  random_source random(2);
  const auto x = random_vector<double>(random, D);
  std::vector<double> u(D), expected(D), y(12), y_expected(12);
  CHECK(sum.dimension() == D);
  CHECK(sum.ffn_dim() == 12);
  const double energy = sum.apply(x, vector_view<double>(u));
  CHECK(energy == doctest::Approx(whole.apply(x, vector_view<double>(expected))).epsilon(1e-13));
  check_close(u, expected);
  sum.project(x, vector_view<double>(y));
  whole.project(x, vector_view<double>(y_expected));
  check_close(y, y_expected);
  u.assign(D, 9);  // what was there does not matter
  sum.lift(vector_view<const double>(y), vector_view<double>(u));
  whole.lift(vector_view<const double>(y_expected), vector_view<double>(expected));
  check_close(u, expected);
}

TEST_CASE("elements whose squares leave the range of double, of one part more than of another") {
  for (const double size : {1e-200, 1e+200}) {
    matrices m(3, size);
    for (auto& x : m.up) x *= 1e+50;  // far above the others, and behind the first
    std::vector<double> scratch(D), u(D), expected(D);
    auto sum = m.sum(scratch);
    auto up = gram(m.up_view());
    random_source random(4);
    const auto x = random_vector<double>(random, D);
    const auto got = sum.apply_scaled(x, vector_view<double>(u));
    const auto alone = up.apply_scaled(x, vector_view<double>(expected));
    CHECK(std::ldexp(got.energy, got.energy_exponent - alone.energy_exponent) ==
          doctest::Approx(weights[1] * alone.energy).epsilon(1e-13));
    for (auto& v : u) v = std::ldexp(v, got.image_exponent - alone.image_exponent);
    for (auto& v : expected) v *= weights[1];
    check_close(u, expected);
  }
}

TEST_CASE("a part without an image has no say in the exponents") {
  const std::vector<double> zero(to_size(F[0] * D)), tiny(to_size(F[1] * D), 1e-200), x(D, 1.0);
  const auto a = row_major(zero.data(), F[0], D);
  const auto b = row_major(tiny.data(), F[1], D);
  std::vector<double> scratch(D), u(D), expected(D);
  const auto alone = gram(b).apply_scaled(x, vector_view<double>(expected));
  const auto check = [&](auto sum) {
    const auto got = sum.apply_scaled(x, vector_view<double>(u));
    CHECK(got.energy == alone.energy);
    CHECK(got.image_exponent == alone.image_exponent);
    CHECK(got.energy_exponent == alone.energy_exponent);
    CHECK(u == expected);
  };
  check(stacked(vector_view<double>(scratch), weighted(gram(a)), weighted(gram(b))));
  check(stacked(vector_view<double>(scratch), weighted(gram(b)), weighted(gram(a))));
}

TEST_CASE("the batched step over sums is that of stacked experts, and so are its factored gradients") {
  constexpr index_t n = 3;
  const std::array experts{matrices(10), matrices(11), matrices(12)};
  std::vector<double> stacks;
  for (const auto& m : experts) stacks.insert(stacks.end(), m.stack.begin(), m.stack.end());
  const expert_shape shape{n, 12, D};
  const auto dense = experts_nfd(std::as_const(stacks).data(), shape);
  const router_options options{.steps = 2};
  random_source random(5);
  const auto router = random_vector<double>(random, n * D);
  const auto grad = random_vector<double>(random, n * D);
  std::array<std::vector<double>, n> scratch;
  for (auto& s : scratch) s.resize(D);
  const auto sums = [&](index_t i) {
    return experts[static_cast<std::size_t>(i)].sum(scratch[static_cast<std::size_t>(i)]);
  };
  const auto run = [&](const auto& over) {
    std::vector<double> rows(router.size()), to_router(router.size());
    std::vector<double> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
    std::vector<double> factors(static_cast<std::size_t>(router_factors<double>::size(shape, options)));
    std::vector<double> work(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
    std::vector<double> to_experts(stacks.size());
    router_rows(over, row_major(router.data(), n, D), row_major(rows.data(), n, D), options, work,
                {.tape = tape});
    const router_factors<double> terms(factors, shape, options);
    router_rows_vjp_factored(over, row_major(router.data(), n, D), tape, row_major(grad.data(), n, D),
                             options, row_major(to_router.data(), n, D), terms, gradient_mode::write, work);
    add_factors(terms, experts_nfd(to_experts.data(), shape), gradient_mode::write);
    return std::array{rows, to_router, to_experts};
  };
  const auto expected = run(dense);
  const auto got = run(sums);
  for (std::size_t k = 0; k < got.size(); ++k) check_close(got[k], expected[k]);
}

TEST_CASE("one operator is itself; an operator without a factor has a sum without one") {
  const matrices m(6);
  std::vector<double> scratch(D), u(D), expected(D);
  auto one = stacked(vector_view<double>(scratch), weighted(gram(m.gate_view())));
  random_source random(7);
  const auto x = random_vector<double>(random, D);
  CHECK(one.apply(x, vector_view<double>(u)) == gram(m.gate_view()).apply(x, vector_view<double>(expected)));
  CHECK(u == expected);
  const auto identity = gram_operator<double>(D, [](auto from, auto to) {
    for (index_t i = 0; i < D; ++i) to[i] = from[i];
    return 1.0;
  });
  auto mixed = stacked(vector_view<double>(scratch), weighted(identity), weighted(gram(m.gate_view())));
  static_assert(GramOperator<decltype(mixed)> && !FactoredGramOperator<decltype(mixed)> &&
                !ScalableGramOperator<decltype(mixed)>);
  mixed.apply(x, vector_view<double>(u));
  CHECK(u[3] == doctest::Approx(x[3] + expected[3]).epsilon(1e-15));
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("what cannot be added is refused") {
  const matrices m(8);
  std::vector<double> scratch(D), y(11);
  const auto narrow = gram(row_major(m.up.data(), F[1], D - 1));
  CHECK(refused([&] { (void)weighted(narrow, 0.0); }, "weighted: a weight of"));
  CHECK(refused([&] { (void)weighted(narrow, INFINITY); }, "is not positive and finite"));
  CHECK(refused(
      [&] { (void)stacked(vector_view<double>(scratch), weighted(gram(m.gate_view())), weighted(narrow)); },
      "stacked: an operator has dimension 6, the first has 7"));
  CHECK(refused(
      [&] { (void)stacked(vector_view<double>(scratch.data(), D - 1), weighted(gram(m.gate_view()))); },
      "stacked: the scratch has 6 elements, not 7"));
  std::vector<double> wide(2 * D);
  CHECK(refused([&] { (void)stacked(vector_view<double>(wide.data(), D, 2), weighted(gram(m.gate_view()))); },
                "stacked: the scratch has 7 elements"));
  auto sum = m.sum(scratch);
  const std::vector<double> x(D);
  CHECK(refused([&] { sum.project(x, vector_view<double>(y)); }, "stacked: project of 11 neurons, not 12"));
  const std::vector<double> neurons(12);
  std::vector<double> long_image(D + 1);
  CHECK(refused([&] { sum.lift(neurons, vector_view<double>(long_image)); },
                "stacked: lift to 8 elements, not 7"));
}
#endif

}  // namespace test_stacked
