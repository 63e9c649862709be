// The reference against loops in double: panels of columns, lanes, strides, and numbers whose squares leave
// the range.
#include <mpi_router/backend/reference.hpp>

#include <doctest/doctest.h>
#include <support/layouts.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "strided.hpp"

namespace test_reference {
using namespace mpi_router;
using namespace test_support;

TEST_CASE_TEMPLATE("the reference: panels of columns, lanes, strides, scaled and plain", T, float, double,
                   bf16, f16) {
  using S = accumulator_t<T>;
  random_source random(7);
  for (const auto& [F, D] :
       {std::pair<index_t, index_t>{1, 1}, {63, 9}, {64, 8}, {65, 7}, {128, 3}, {129, 17}, {3, 40}}) {
    for (const layout l : all_layouts) {
      CAPTURE(F);
      CAPTURE(D);
      CAPTURE(std::string(to_string(l)));
      const stored_matrix<T> stored(random_matrix<double>(random, F, D), F, D, l, 1);
      const matrix_view<const T> a = stored.view();
      for (const index_t stride : {1, 3}) {
        strided<S> x(random, D, stride), v(random, F, stride), y(F, stride), u(D, stride);
        const auto want_y = product(a, x.read());
        const auto want_u = lifted(a, want_y);
        double energy = 0, size = 0;
        for (const double p : want_y) energy += p * p;
        for (index_t d = 0; d < D; ++d) size += std::pow(static_cast<double>(x.view()[d]), 2);
        const double scale = static_cast<double>(F * D) * std::sqrt(size);
        const auto near = [&](strided<S>& got, const std::vector<double>& want, int exponent = 0) {
          CHECK(got.gaps_untouched());
          for (index_t i = 0; i < got.size; ++i) {
            const double value = std::ldexp(static_cast<double>(got.view()[i]), exponent);
            CHECK(close(value, want[static_cast<std::size_t>(i)], tolerance<T>.arithmetic, scale));
          }
        };
        CHECK(close(reference{}.apply<T, S>(a, x.read(), u.view()), energy, tolerance<T>.identity));
        near(u, want_u);
        reference{}.project<T, S>(a, x.read(), y.view());
        near(y, want_y);
        reference{}.lift<T, S>(a, v.read(), u.view());
        near(u, product(a.transposed(), v.read()));
        const auto scaled = reference{}.apply_scaled<T, S>(a, x.read(), u.view());
        CHECK(close(std::ldexp(static_cast<double>(scaled.energy), scaled.energy_exponent), energy,
                    tolerance<T>.identity));
        near(u, want_u, scaled.image_exponent);
      }
    }
  }
}

TEST_CASE_TEMPLATE("the reference, scaled: squares leave the range, results do not", S, float, double) {
  const int most = std::numeric_limits<S>::max_exponent - 2;
  for (const int a_exponent : {-most, -most / 2, 0, most / 2, most}) {
    for (const int x_exponent : {-most, 0, most}) {
      for (const layout l : {layout::row_major, layout::column_major, layout::both_strided}) {
        std::vector<S> values{3, -1, 0, 2, 5, -7};
        std::vector<S> x{1, -2, 3}, u(3);
        for (S& v : values) v = std::ldexp(v, a_exponent - 3);
        for (S& v : x) v = std::ldexp(v, x_exponent - 3);
        const stored_matrix<S> a(values, 2, 3, l);
        const auto scaled =
            reference{}.template apply_scaled<S, S>(a.view(), vector_view<const S>(x), vector_view<S>(u));
        // y = (5, −29), u = yA = (−43, −150, 203), energy 866, in units of 2^(a + x), 2^(2a + x), 2^(2a +
        // 2x).
        const int a3 = a_exponent - 3, x3 = x_exponent - 3;
        CHECK(std::ldexp(u[0], scaled.image_exponent - 2 * a3 - x3) == S(15 - 58));
        CHECK(std::ldexp(u[1], scaled.image_exponent - 2 * a3 - x3) == S(-5 - 145));
        CHECK(std::ldexp(u[2], scaled.image_exponent - 2 * a3 - x3) == S(203));
        CHECK(std::ldexp(scaled.energy, scaled.energy_exponent - 2 * a3 - 2 * x3) == S(25 + 841));
      }
    }
  }
}

TEST_CASE_TEMPLATE("the reference, scaled: the sign of the largest does not matter", S, float, double) {
  for (const int exponent :
       {-std::numeric_limits<S>::max_exponent + 3, std::numeric_limits<S>::max_exponent - 2}) {
    for (const S sign : {S(1), S(-1)}) {
      const std::vector<S> a(2, std::ldexp(sign, exponent)), x{sign, sign};
      std::vector<S> u(2);
      const auto scaled = reference{}.template apply_scaled<S, S>(row_major(a.data(), 1, 2),
                                                                  vector_view<const S>(x), vector_view<S>(u));
      CHECK(std::ldexp(u[0], scaled.image_exponent - 2 * exponent) == 2 * sign);
      CHECK(std::ldexp(scaled.energy, scaled.energy_exponent - 2 * exponent) == S(4));
    }
  }
}

TEST_CASE("a matrix that is not finite is scaled by what is, and its image says so") {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> a{1e300, inf, 2e300, 1e300}, x{1, 1};
  std::vector<double> u(2);
  const auto scaled = reference{}.apply_scaled<double, double>(
      row_major(a.data(), 2, 2), vector_view<const double>(x), vector_view<double>(u));
  CHECK(std::abs(scaled.image_exponent - 2 * 997) <= 4);
  CHECK_FALSE(std::isfinite(scaled.energy));
}

}  // namespace test_reference
