// The tests lean on these helpers, so they are tested first.
#include <support/layouts.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <doctest/doctest.h>

using namespace test_support;

TEST_CASE("the random numbers are the same everywhere") {
  random_source random(1);
  CHECK(random.uniform() == 0x1.122deafddb434p-3);
  CHECK(random.normal() == -0x1.65a2ce6800000p-2);
  CHECK(random.integer(-3, 3) == 1);
}

TEST_CASE("normal numbers have mean 0, variance 1 and the kurtosis of a sum of twelve") {
  random_source random(2);
  constexpr int count = 200000;
  double sum = 0;
  double square = 0;
  double fourth = 0;
  for (int i = 0; i < count; ++i) {
    const double x = random.normal();
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  CHECK(std::abs(sum / count) < 0.01);
  CHECK(close(square / count, 1, 0.01));
  CHECK(close(fourth / count, 2.9, 0.03));
}

TEST_CASE("a matrix with a given spectrum has it") {
  random_source random(3);
  const auto m = random_with_spectrum(random, 7, 5, {3.0, 2.0, 0.5});
  for (std::size_t k = 0; k < 3; ++k) {
    std::vector<double> image(7, 0.0);
    for (std::size_t f = 0; f < 7; ++f) {
      for (std::size_t d = 0; d < 5; ++d) image[f] += m.a[f * 5 + d] * m.directions[k * 5 + d];
    }
    double square = 0;
    for (const double y : image) square += y * y;
    CHECK(close(std::sqrt(square), m.sigma[k], tolerance<double>.identity));
  }
}

TEST_CASE_TEMPLATE("every layout holds the same matrix", T, double, float, mpi_router::bf16,
                   mpi_router::f16) {
  random_source random(4);
  for (const layout l : all_layouts) {
    for (const index_t shift : {0, 1}) {
      CAPTURE(to_string(l));
      const auto values = random_matrix<T>(random, 5, 3);
      std::vector<float> wide;
      for (const T x : values)
        wide.push_back(static_cast<float>(static_cast<mpi_router::accumulator_t<T>>(x)));
      const stored_matrix<T> m(values, 5, 3, l, shift);
      bool equal = true;
      for (index_t i = 0; i < 5; ++i) {
        for (index_t j = 0; j < 3; ++j) {
          equal = equal && mpi_router::widen<double>(m.view()(i, j)) ==
                               mpi_router::widen<double>(values[static_cast<std::size_t>(i * 3 + j)]);
        }
      }
      CHECK(equal);
    }
    CHECK(stored_matrix<T>(0, 3, l).view().empty());
    CHECK(stored_matrix<T>(1, 1, l, 1).view().rows() == 1);
  }
}
