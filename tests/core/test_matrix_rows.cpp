// A matrix seen row by row is the operator of the same matrix: against plain sums in double.
#include <mpi_router/core/matrix_rows.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>

#include <vector>

namespace test_matrix_rows {
using namespace mpi_router;
using namespace test_support;

namespace {

/// Rows that lie in memory, times a factor; counts how often one is loaded.
struct counted_rows {
  const std::vector<float>* a;
  index_t f_count;
  index_t d_count;
  index_t* loads;
  float factor = 1;
  [[nodiscard]] index_t rows() const { return f_count; }
  [[nodiscard]] index_t cols() const { return d_count; }
  void load_row(index_t f, float* out) const {
    ++*loads;
    for (index_t d = 0; d < d_count; ++d) out[d] = factor * (*a)[static_cast<std::size_t>(f * d_count + d)];
  }
};
/// a[f, d] = (f + d + 1) / 3, in whichever type is asked for.
struct thirds {
  index_t f_count;
  index_t d_count;
  [[nodiscard]] index_t rows() const { return f_count; }
  [[nodiscard]] index_t cols() const { return d_count; }
  template <Accumulator S>
  void load_row(index_t f, S* out) const {
    for (index_t d = 0; d < d_count; ++d) out[d] = static_cast<S>(f + d + 1) / S{3};
  }
};
static_assert(MatrixRows<counted_rows>);
static_assert(MatrixRowsIn<thirds, double> && !MatrixRowsIn<counted_rows, double>);
static_assert(ScalableGramOperator<rows_operator<thirds, double, double>>);
static_assert(FactoredGramOperator<rows_operator<counted_rows, float>>);
static_assert(ScalableGramOperator<rows_operator<counted_rows, double>>);

std::vector<double> projected(const std::vector<float>& a, index_t f_count, index_t d_count,
                              const std::vector<double>& x) {
  std::vector<double> y(static_cast<std::size_t>(f_count));
  for (index_t f = 0; f < f_count; ++f) {
    for (index_t d = 0; d < d_count; ++d) {
      y[static_cast<std::size_t>(f)] +=
          double{a[static_cast<std::size_t>(f * d_count + d)]} * x[static_cast<std::size_t>(d)];
    }
  }
  return y;
}
std::vector<double> lifted(const std::vector<float>& a, index_t f_count, index_t d_count,
                           const std::vector<double>& y) {
  std::vector<double> u(static_cast<std::size_t>(d_count));
  for (index_t f = 0; f < f_count; ++f) {
    for (index_t d = 0; d < d_count; ++d) {
      u[static_cast<std::size_t>(d)] +=
          double{a[static_cast<std::size_t>(f * d_count + d)]} * y[static_cast<std::size_t>(f)];
    }
  }
  return u;
}

/// Whether got is expected to within `tolerance` of the largest of them.
template <class S>
bool near(vector_view<const S> got, const std::vector<double>& expected, double tolerance) {
  double largest = 0;
  for (const double e : expected) largest = std::max(largest, std::abs(e));
  for (index_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(double{got[i]} - expected[static_cast<std::size_t>(i)]) <= tolerance * largest))
      return false;
  }
  return got.size() == static_cast<index_t>(expected.size());
}

}  // namespace

TEST_CASE("rows of doubles are not rounded to float") {
  const thirds rows{3, 5};
  const std::vector<double> x{1, -2, 0, 1, 3};
  std::vector<double> scratch(5);
  std::vector<float> rounded(5);
  std::vector<double> y(3);
  std::vector<double> of_rounded(3);
  const vector_view<const double> in(x.data(), 5);
  gram_of_rows<double>(rows, scratch).project(in, {y.data(), 3});
  gram_of_rows<double>(rows, rounded).project(in, {of_rounded.data(), 3});
  std::vector<double> u(5);
  const double energy = gram_of_rows(rows, scratch).apply(in, {u.data(), 5});
  const auto scaled = gram_of_rows(rows, scratch).apply_scaled(in, {u.data(), 5});
  const auto x_of = [&](index_t f) {  // Σ_d (f + d + 1) x_d, whole numbers
    double sum = 0;
    for (index_t d = 0; d < 5; ++d) sum += static_cast<double>(f + d + 1) * x[static_cast<std::size_t>(d)];
    return sum;
  };
  double expected = 0;
  for (index_t f = 0; f < 3; ++f) {
    const auto i = static_cast<std::size_t>(f);
    CHECK(std::abs(y[i] - x_of(f) / 3) < 1e-14);
    CHECK(std::abs(of_rounded[i] - x_of(f) / 3) > 1e-9);
    expected += x_of(f) * x_of(f) / 9;
  }
  CHECK(std::abs(energy - expected) < 1e-13 * expected);
  CHECK(std::abs(std::ldexp(scaled.energy, scaled.energy_exponent) - expected) < 1e-13 * expected);
}

TEST_CASE_TEMPLATE("apply, project and lift are those of the dense matrix", S, float, double) {
  const double tolerance = std::same_as<S, float> ? 2e-5 : 1e-13;
  random_source random(1);
  for (const auto& [f_count, d_count] :
       {std::array<index_t, 2>{1, 1}, {3, 31}, {7, 32}, {5, 33}, {20, 100}, {9, 65}, {0, 5}, {4, 0}}) {
    for (const index_t stride : {1, 3}) {
      const auto a = random_matrix<float>(random, f_count, d_count);
      const auto x_values = random_vector<S>(random, d_count * stride);
      const auto y_values = random_vector<S>(random, f_count * stride);
      std::vector<S> u_values(x_values.size() + 1, S{-7});
      std::vector<S> p_values(y_values.size() + 1, S{-7});
      const vector_view<const S> x(x_values.data(), d_count, stride);
      const vector_view<const S> y(y_values.data(), f_count, stride);
      const vector_view<S> u(u_values.data(), d_count, stride);
      const vector_view<S> p(p_values.data(), f_count, stride);
      std::vector<double> exact_x, exact_y;
      for (index_t d = 0; d < d_count; ++d) exact_x.push_back(x[d]);
      for (index_t f = 0; f < f_count; ++f) exact_y.push_back(y[f]);
      const auto exact_p = projected(a, f_count, d_count, exact_x);
      double exact_energy = 0;
      for (const double e : exact_p) exact_energy += e * e;

      index_t loads = 0;
      std::vector<float> scratch(static_cast<std::size_t>(d_count));
      auto op = gram_of_rows<S>(counted_rows{&a, f_count, d_count, &loads}, scratch);
      CAPTURE(f_count);
      CAPTURE(d_count);
      CHECK(op.dimension() == d_count);
      CHECK(op.ffn_dim() == f_count);
      CHECK(op.rows().rows() == f_count);
      const S energy = op.apply(x, u);
      CHECK(loads == f_count);  // each row once
      CHECK(double{energy} == doctest::Approx(exact_energy).epsilon(10 * tolerance));
      CHECK(near<S>(u, lifted(a, f_count, d_count, exact_p), tolerance));
      op.project(x, p);
      CHECK(near<S>(p, exact_p, tolerance));
      op.lift(y, u);
      CHECK(near<S>(u, lifted(a, f_count, d_count, exact_y), tolerance));
      CHECK(u_values.back() == S{-7});
      CHECK(p_values.back() == S{-7});
    }
  }
}

TEST_CASE("apply_scaled: squares that leave the range of float") {
  random_source random(2);
  const index_t f_count = 6;
  const index_t d_count = 37;
  const auto a = random_matrix<float>(random, f_count, d_count);
  const auto x = random_vector<float>(random, d_count);
  index_t loads = 0;
  std::vector<float> scratch(static_cast<std::size_t>(d_count)), u(scratch), reference(scratch);
  auto plain = gram_of_rows(counted_rows{&a, f_count, d_count, &loads}, scratch);
  const float energy = plain.apply(x, vector_view<float>(reference));
  for (const float factor : {0x1p-70F, 0x1p70F, 1.0F, 0x1p-126F}) {
    for (const float x_factor : {1.0F, 0x1p-100F, 0x1p90F}) {
      std::vector<float> scaled_x(x);
      for (float& value : scaled_x) value *= x_factor;
      auto op = gram_of_rows(counted_rows{&a, f_count, d_count, &loads, factor}, scratch);
      const auto result = op.apply_scaled(scaled_x, vector_view<float>(u));
      const int a_power = std::ilogb(factor);
      const int x_power = std::ilogb(x_factor);
      CAPTURE(a_power);
      CAPTURE(x_power);
      CHECK(std::ldexp(double{result.energy}, result.energy_exponent - 2 * (a_power + x_power)) ==
            doctest::Approx(double{energy}).epsilon(1e-5));
      std::vector<double> expected(reference.begin(), reference.end());
      const int image_power = result.image_exponent - 2 * a_power - x_power;
      std::vector<double> got(u.begin(), u.end());
      for (double& value : got) value = std::ldexp(value, image_power);
      CHECK(near<double>(vector_view<const double>(got), expected, 1e-5));
      CHECK(std::isfinite(result.energy));
      CHECK(result.energy > 0);
    }
  }
}

TEST_CASE("apply_scaled: zeros stay zero, and what is not finite is not scaled by") {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> a{0, 0, 0, 0}, x{0, 0}, scratch(2), u(2);
  index_t loads = 0;
  auto op = gram_of_rows(counted_rows{&a, 2, 2, &loads}, scratch);
  auto zero = op.apply_scaled(x, vector_view<float>(u));
  CHECK(zero.energy == 0);
  CHECK(zero.image_exponent == 0);
  a = {infinity, 1, 1, 1};
  x = {1, 1};
  CHECK(op.apply_scaled(x, vector_view<float>(u)).energy == infinity);
  CHECK(u[0] == infinity);
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("sizes that do not fit and memory that overlaps are refused") {
  const std::vector<float> a(6);
  index_t loads = 0;
  const counted_rows rows{&a, 2, 3, &loads};
  std::vector<float> scratch(3), x(3), u(3), two(2), six(6);
  CHECK(refused([&] { (void)gram_of_rows(rows, two); },
                "gram_of_rows: the rows have 3 elements, the scratch 2"));
  auto op = gram_of_rows(rows, scratch);
  const auto view = [](std::vector<float>& v) { return vector_view<float>(v); };
  CHECK(refused([&] { op.apply(two, view(u)); },
                "apply: the rows are [F = 2, D = 3], but the vectors have 2 and 3 elements, not 3 and 3"));
  CHECK(refused([&] { op.apply(x, view(two)); }, "have 3 and 2 elements, not 3 and 3"));
  CHECK(refused([&] { op.project(x, view(u)); }, "project: the rows"));
  CHECK(refused([&] { op.lift(x, view(u)); }, "lift: the rows"));
  CHECK(refused([&] { op.apply_scaled(x, view(six)); }, "apply_scaled: the rows"));
  CHECK(refused([&] { op.apply(x, view(x)); }, "apply: input, output and scratch overlap"));
  CHECK(refused([&] { op.apply(scratch, view(u)); }, "scratch overlap"));
  CHECK(refused([&] { op.apply(x, view(scratch)); }, "scratch overlap"));
  CHECK(loads == 0);
}
#endif

}  // namespace test_matrix_rows
