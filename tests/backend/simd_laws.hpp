// The laws of a fast backend: it computes what the reference computes in double, for every layout, extent and
// alignment. Instantiated for each storage type in a file of its own.
#pragma once

#include <mpi_router/backend/reference.hpp>

#include "guarded.hpp"

#include <doctest/doctest.h>
#include <support/layouts.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace simd_laws {

using mpi_router::accumulator_t;
using mpi_router::index_t;
using mpi_router::matrix_view;
using mpi_router::reference;
using mpi_router::Scalar;
using mpi_router::vector_view;
using test_support::layout;

enum class mode : unsigned char { write, accumulate };

/// F × D: around one and several vectors of every width, around a panel, around a group of rows. Unoptimised
/// code under sanitizers is some hundred times slower, and gets a choice of them.
#if defined(MPIROUTER_TEST_SANITIZED)
#define MPIROUTER_TEST_FEW_SHAPES
#endif
inline constexpr std::pair<index_t, index_t> shapes[] = {
    {1, 1},    {3, 5},    {8, 16},   {33, 7},   {64, 65},  {12, 300}, {31, 129},
#ifndef MPIROUTER_TEST_FEW_SHAPES
    {1, 64},   {64, 1},   {4, 4},    {5, 8},    {9, 17},   {7, 33},   {16, 64},  {65, 63},
    {130, 17}, {300, 12}, {5, 1100}, {1100, 6}, {1025, 3}, {2049, 3}, {3, 2049}, {4097, 2},
#endif
};

/// Those, and some too large for the kernels of matrices in cache, which must all the same stay small.
template <class T>
std::vector<std::pair<index_t, index_t>> shapes_of() {
  std::vector<std::pair<index_t, index_t>> all(std::begin(shapes), std::end(shapes));
  constexpr index_t many = 1032;
  constexpr index_t fit = (index_t{1} << 17) / (many * static_cast<index_t>(sizeof(T)));
  constexpr index_t few = fit + 2 - fit % 2;  // that do not, an odd number
#ifdef MPIROUTER_TEST_FEW_SHAPES
  if (sizeof(T) < 4) return all;
#endif
  all.emplace_back(few, many);
  all.emplace_back(many, few);
  return all;
}

template <class T>
std::vector<double> wide(const std::vector<T>& x) {
  std::vector<double> out;
  for (const T& v : x) out.push_back(mpi_router::widen<double>(v));
  return out;
}

/// Distance of two vectors relative to a scale that no cancellation can shrink.
template <class A, class B>
double distance(const A& a, const B& b, double scale) {
  double sum = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return scale > 0 ? std::sqrt(sum) / scale : std::sqrt(sum);
}
template <class A>
double norm(const A& a) {
  return distance(a, std::vector<double>(a.size()), 0);
}

template <Scalar T>
struct problem {
  using S = accumulator_t<T>;
  problem(test_support::random_source& random, index_t f, index_t d, layout l, index_t shift)
      : a(test_support::random_matrix<double>(random, f, d), f, d, l, shift),
        p(test_support::random_vector<S>(random, d + 1)),
        q(test_support::random_vector<S>(random, d + 1)) {
    p.erase(p.begin());
    q.erase(q.begin());
  }
  test_support::stored_matrix<T> a;
  std::vector<S> p;
  std::vector<S> q;
  /// ‖A‖ in the Frobenius norm.
  [[nodiscard]] double size() const {
    double sum = 0;
    const auto v = a.view();
    for (index_t i = 0; i < v.rows(); ++i) {
      for (index_t j = 0; j < v.cols(); ++j) sum += std::pow(mpi_router::widen<double>(v(i, j)), 2);
    }
    return std::sqrt(sum);
  }
};

template <Scalar T, class Shapes, class Check>
void for_each_problem(const Shapes& tried, Check&& check) {
  test_support::random_source random(20261122);
  constexpr index_t shifts[] = {0, 1, 7};
  for (const auto& [f, d] : tried) {
    for (const layout l : test_support::all_layouts) {
      for (const index_t shift : shifts) {
#ifndef MPIROUTER_TEST_FULL  // those too large for the kernels of matrices in cache: each layout one, in turn
        if (f * d > 10000 && shift != shifts[(static_cast<index_t>(l) + d) % 3]) continue;
#endif
        CAPTURE(f);
        CAPTURE(d);
        CAPTURE(std::string(test_support::to_string(l)));
        CAPTURE(shift);
        check(problem<T>(random, f, d, l, shift));
      }
    }
  }
}

template <Scalar T, class Backend>
void apply_equals_reference(const Backend& backend) {
  using S = accumulator_t<T>;
  const double bound = test_support::tolerance<T>.arithmetic;
  for_each_problem<T>(shapes_of<T>(), [&](const problem<T>& given) {
    const matrix_view<const T> a = given.a.view();
    const auto d = static_cast<std::size_t>(a.cols());
    const auto f = static_cast<std::size_t>(a.rows());
    const double size = given.size();
    const std::vector<double> x = wide(given.p);
    std::vector<double> image(d);
    std::vector<double> y(f);
    const double energy =
        reference{}.apply<T, double>(a, vector_view<const double>(x), vector_view<double>(image));
    reference{}.project<T, double>(a, vector_view<const double>(x), vector_view<double>(y));

    std::vector<S> u(d, S{7});
    const S e = backend.template apply<T, S>(a, vector_view<const S>(given.p), vector_view<S>(u));
    CHECK(distance(u, image, size * size * norm(x)) <= bound);
    CHECK(std::abs(static_cast<double>(e) - energy) <= bound * size * size * norm(x) * norm(x));

    std::vector<S> projected(f, S{7});
    backend.template project<T, S>(a, vector_view<const S>(given.p), vector_view<S>(projected));
    CHECK(distance(projected, y, size * norm(x)) <= bound);

    std::vector<S> lifted(d, S{7});
    const std::vector<double> from = wide(projected);
    reference{}.lift<T, double>(a, vector_view<const double>(from), vector_view<double>(image));
    backend.template lift<T, S>(a, vector_view<const S>(projected), vector_view<S>(lifted));
    CHECK(distance(lifted, image, size * norm(from)) <= bound);
  });
}

/// Two images in one read, and an image with sums in double.
template <Scalar T, class Backend>
void more_images_equal_reference(const Backend& backend) {
  using S = accumulator_t<T>;
  const double bound = test_support::tolerance<T>.arithmetic;
  for_each_problem<T>(shapes_of<T>(), [&](const problem<T>& given) {
    const matrix_view<const T> a = given.a.view();
    const auto d = static_cast<std::size_t>(a.cols());
    const double size = given.size();
    std::vector<S> two[2] = {std::vector<S>(d, S{7}), std::vector<S>(d, S{7})};
    const vector_view<const S> p(given.p), q(given.q);
    const auto energies =
        backend.template apply_two<T, S>(a, {p, q}, {vector_view<S>(two[0]), vector_view<S>(two[1])});
    for (std::size_t k = 0; k < 2; ++k) {
      const std::vector<double> x = wide(k == 0 ? given.p : given.q);
      std::vector<double> image(d), in_double(d, 7.0);
      const double energy =
          reference{}.apply<T, double>(a, vector_view<const double>(x), vector_view<double>(image));
      CHECK(distance(two[k], image, size * size * norm(x)) <= bound);
      CHECK(std::abs(static_cast<double>(energies[k]) - energy) <= bound * size * size * norm(x) * norm(x));
      const double e =
          backend.template apply<T, double>(a, vector_view<const double>(x), vector_view<double>(in_double));
      const double exact = test_support::tolerance<double>.arithmetic;
      CHECK(distance(in_double, image, size * size * norm(x)) <= exact);
      CHECK(std::abs(e - energy) <= exact * size * size * norm(x) * norm(x));
    }
  });
}

template <Scalar T, Scalar G, class Backend>
void pull_back_equals_reference(const Backend& backend) {
  using S = accumulator_t<T>;
  const double bound = test_support::tolerance<T>.arithmetic;
  const double stored = bound + test_support::tolerance<G>.storage;
  for_each_problem<T>(shapes, [&](const problem<T>& given) {
    const matrix_view<const T> a = given.a.view();
    const auto d = static_cast<std::size_t>(a.cols());
    const auto f = static_cast<std::size_t>(a.rows());
    const double size = given.size();
    const std::vector<double> p = wide(given.p);
    const std::vector<double> q = wide(given.q);
    std::vector<double> y(f);
    std::vector<double> w(f);
    std::vector<double> image(d);
    reference{}.project<T, double>(a, vector_view<const double>(p), vector_view<double>(y));
    reference{}.project<T, double>(a, vector_view<const double>(q), vector_view<double>(w));
    reference{}.lift<T, double>(a, vector_view<const double>(w), vector_view<double>(image));

    std::vector<S> got_y(f, S{7});
    std::vector<S> got_w(f, S{7});
    std::vector<S> got_u(d, S{7});
    const vector_view<const S> in_p(given.p);
    const vector_view<const S> in_q(given.q);
    const auto check_vectors = [&] {
      CHECK(distance(got_y, y, size * norm(p)) <= bound);
      CHECK(distance(got_w, w, size * norm(q)) <= bound);
      CHECK(distance(got_u, image, size * size * norm(q)) <= bound);
    };
    backend.template pull_back<T, S>(a, in_p, in_q, vector_view<S>(got_y), vector_view<S>(got_w),
                                     vector_view<S>(got_u));
    check_vectors();

    for (const mode m : {mode::write, mode::accumulate}) {
      // The gradient in the layout of A, with NaN between its elements; and once in another.
      for (const bool same : {true, false}) {
        const bool by_columns = a.row_stride() == 1;
        const layout l = by_columns == same ? layout::padded_columns : layout::padded_rows;
        test_support::random_source random(3);
        const std::vector<double> before =
            test_support::random_matrix<double>(random, a.rows(), a.cols(), size);
        test_support::stored_matrix<G> gradient(before, a.rows(), a.cols(), l, 1);
        test_support::stored_matrix<G> untouched(before, a.rows(), a.cols(), l, 1);
        std::fill(got_u.begin(), got_u.end(), S{7});
        backend.pull_back(a, in_p, in_q, vector_view<S>(got_y), vector_view<S>(got_w), vector_view<S>(got_u),
                          gradient.view(), m);
        check_vectors();
        double error = 0;
        double scale = 0;
        for (index_t i = 0; i < a.rows(); ++i) {
          for (index_t j = 0; j < a.cols(); ++j) {
            const auto ii = static_cast<std::size_t>(i);
            const auto jj = static_cast<std::size_t>(j);
            const double start =
                m == mode::accumulate ? mpi_router::widen<double>(untouched.view()(i, j)) : 0.0;
            const double change = y[ii] * q[jj] + w[ii] * p[jj];
            error += std::pow(mpi_router::widen<double>(gradient.view()(i, j)) - (start + change), 2);
            scale += std::pow(std::abs(start) + 2 * size * norm(p) * norm(q), 2);
          }
        }
        CHECK(std::sqrt(error) <= stored * std::sqrt(scale));
      }
    }
  });
}

/// Vectors with gaps, and sums in double of most weights: no kernel, but the same function.
template <Scalar T, class Backend>
void falls_back(const Backend& backend) {
  test_support::random_source random(6);
  const problem<T> given(random, 40, 70, layout::row_major, 0);
  const matrix_view<const T> a = given.a.view();
  const std::vector<double> x = test_support::random_vector<double>(random, 140);
  std::vector<double> u(210);
  std::vector<double> expected(210);
  const vector_view<const double> in(x.data(), 70, 2);
  const double e = backend.template apply<T, double>(a, in, vector_view<double>(u.data(), 70, 3));
  CHECK(e == reference{}.apply<T, double>(a, in, vector_view<double>(expected.data(), 70, 3)));
  CHECK(u == expected);
}

/// Everything at the edge of a forbidden page, on either side: the program survives only if nothing else is
/// touched.
template <Scalar T, class Backend>
void touches_nothing_outside(const Backend& backend) {
  using S = accumulator_t<T>;
  using memory = test_support::guarded<T>;
  using sums = test_support::guarded<S>;
  for (const auto& [f, d] : shapes_of<T>()) {
    for (const bool after : {false, true}) {
      for (const bool by_rows : {false, true}) {
        const auto at = after ? memory::side::after : memory::side::before;
        const auto sum_at = after ? sums::side::after : sums::side::before;
        const memory weights(f * d, at);
        const memory narrow_gradient(f * d, at);
        const sums gradient(f * d, sum_at);
        const sums p(d, sum_at);
        const sums q(d, sum_at);
        const sums u(d, sum_at);
        const sums y(f, sum_at);
        const sums w(f, sum_at);
        std::fill(weights.data(), weights.data() + f * d, mpi_router::narrow<T>(S{1}));
        std::fill(p.data(), p.data() + d, S{1});
        std::fill(q.data(), q.data() + d, S{2});
        const auto view = [&](auto* data) {
          return by_rows ? mpi_router::row_major(data, f, d) : mpi_router::column_major(data, f, d);
        };
        const matrix_view<const T> a = view(weights.data());
        const vector_view<const S> in_p(p.data(), d);
        const vector_view<const S> in_q(q.data(), d);
        const vector_view<S> out_u(u.data(), d);
        const vector_view<S> out_y(y.data(), f);
        const vector_view<S> out_w(w.data(), f);
        const S e = backend.template apply<T, S>(a, in_p, out_u);
        CHECK(e == static_cast<S>(f * d * d));
        CHECK(u.data()[d - 1] == static_cast<S>(f * d));
        const sums v(d, sum_at);
        const auto two =
            backend.template apply_two<T, S>(a, {in_p, in_q}, {out_u, vector_view<S>(v.data(), d)});
        CHECK(two[1] == static_cast<S>(4 * f * d * d));
        CHECK(v.data()[d - 1] == static_cast<S>(2 * f * d));
        using doubles = test_support::guarded<double>;
        const auto double_at = after ? doubles::side::after : doubles::side::before;
        const doubles x(d, double_at);
        const doubles image(d, double_at);
        std::fill(x.data(), x.data() + d, 1.0);
        CHECK(backend.template apply<T, double>(a, vector_view<const double>(x.data(), d),
                                                vector_view<double>(image.data(), d)) ==
              static_cast<double>(f * d * d));
        backend.template project<T, S>(a, in_p, out_y);
        backend.template lift<T, S>(a, vector_view<const S>(y.data(), f), out_u);
        backend.pull_back(a, in_p, in_q, out_y, out_w, out_u, view(gradient.data()), mode::write);
        CHECK(gradient.data()[f * d - 1] == static_cast<S>(4 * d));
        backend.pull_back(a, in_p, in_q, out_y, out_w, out_u, view(narrow_gradient.data()), mode::accumulate);
      }
    }
  }
}

/// A NaN or an infinity anywhere in A or x shows in the energy; a zero row is exactly zero.
template <Scalar T, class Backend>
void carries_what_is_not_finite(const Backend& backend) {
  using S = accumulator_t<T>;
  test_support::random_source random(8);
  for (const layout l : {layout::row_major, layout::column_major}) {
    for (const index_t at : {index_t{0}, index_t{500}, index_t{37 * 45 - 1}}) {
      for (const S bad : {std::numeric_limits<S>::quiet_NaN(), std::numeric_limits<S>::infinity()}) {
        problem<T> given(random, 37, 45, l, 0);
        given.a.view()(at / 45, at % 45) = mpi_router::narrow<T>(bad);
        std::vector<S> u(45);
        const S e =
            backend.template apply<T, S>(given.a.view(), vector_view<const S>(given.p), vector_view<S>(u));
        CHECK_FALSE(mpi_router::is_finite(e));
        const std::vector<double> x = wide(given.p);
        std::vector<double> image(45);
        CHECK_FALSE(mpi_router::is_finite(backend.template apply<T, double>(
            given.a.view(), vector_view<const double>(x), vector_view<double>(image))));
      }
    }
    problem<T> given(random, 37, 45, l, 0);
    std::fill(given.p.begin(), given.p.end(), S{0});
    std::vector<S> u(45, S{7});
    CHECK(backend.template apply<T, S>(given.a.view(), vector_view<const S>(given.p), vector_view<S>(u)) ==
          S{0});
    CHECK(u == std::vector<S>(45));
  }
}

template <Scalar T, class Backend>
void all(const Backend& backend) {
  SUBCASE("apply, project and lift equal the reference") { apply_equals_reference<T>(backend); }
  SUBCASE("two images, and images in double") { more_images_equal_reference<T>(backend); }
  SUBCASE("the fused backward, gradient in the accumulator") {
    pull_back_equals_reference<T, accumulator_t<T>>(backend);
  }
  SUBCASE("the fused backward, gradient in the type of A") { pull_back_equals_reference<T, T>(backend); }
  SUBCASE("the fused backward, gradient in another type") {
    pull_back_equals_reference<
        T, std::conditional_t<std::is_same_v<T, mpi_router::bf16>, mpi_router::f16, mpi_router::bf16>>(
        backend);
  }
  SUBCASE("nothing outside the matrix is touched") { touches_nothing_outside<T>(backend); }
  SUBCASE("what has no kernel falls back") { falls_back<T>(backend); }
  SUBCASE("what is not finite is not lost") { carries_what_is_not_finite<T>(backend); }
}

}  // namespace simd_laws
