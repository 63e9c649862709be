// The mathematics of the step, each line a law, for every storage type, layout and shape.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>
#include <mpi_router/verify/null_model.hpp>
#include <mpi_router/verify/singular.hpp>

#include <doctest/doctest.h>
#include <support/oracle.hpp>

namespace test_laws {
using namespace mpi_router;
using namespace test_support;

#define STORAGE_TYPES double, float, bf16, f16, Eigen::bfloat16, Eigen::half

namespace {

/// Calls law(A as an operator, A in double, row, row in double) for every shape and layout.
template <class T, class Law>
void for_every_expert(Law law) {
  using S = accumulator_t<T>;
  random_source random(7);
  for (const auto& [F, D] : shapes) {
    const auto elements = random_matrix<T>(random, F, D);
    const auto row = random_vector<S>(random, D);
    for (const layout stored_as : all_layouts) {
      const stored_matrix<T> a(elements, F, D, stored_as, 1);
      CAPTURE(F);
      CAPTURE(D);
      CAPTURE(to_string(stored_as));
      law(gram(a.view()), values(a.view()), row, values(row));
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("Eq. 4, 5: the step is C · rM / ‖rM‖", T, STORAGE_TYPES) {
  using S = accumulator_t<T>;
  for_every_expert<T>([](auto op, const matrix& a, const std::vector<S>& row, const column& r) {
    std::vector<S> out(row.size());
    const auto result = power_step(op, row, out, S(2.5));
    CHECK(result.state == status::ok);
    CHECK(relative_distance(values(out), exact_step(a, r, 2.5)) < tolerance<T>.identity);
    CHECK(close(values(out).norm(), 2.5, tolerance<T>.arithmetic));
    const double rho = (a * r).squaredNorm() / r.squaredNorm();
    CHECK(close(result.rayleigh, rho, tolerance<T>.identity));
    CHECK(close(result.cosine, r.normalized().dot(exact_step(a, r, 1)), tolerance<T>.identity));
  });
}

TEST_CASE_TEMPLATE("Eq. 3: rayleigh gives ρ, g = r̂M − ρ r̂ tangent to the sphere, and tan ψ = ‖g‖/ρ", T,
                   STORAGE_TYPES) {
  using S = accumulator_t<T>;
  for_every_expert<T>([](auto op, const matrix& a, const std::vector<S>& row, const column& r) {
    std::vector<S> g(row.size());
    const auto at = rayleigh(op, row, g);
    const column unit = r.normalized();
    const double rho = (a * unit).squaredNorm();
    const column image = a.transpose() * (a * unit);
    CHECK(close(at.rayleigh, rho, tolerance<T>.identity));
    CHECK((values(g) - (image - rho * unit)).norm() <= tolerance<T>.identity * image.norm());
    CHECK(std::abs(values(g).dot(unit)) <= tolerance<T>.identity * image.norm());
    CHECK(close(at.residual, values(g).norm(), tolerance<T>.arithmetic));
    CHECK(close(at.relative_residual * at.rayleigh, at.residual, tolerance<T>.arithmetic));

    std::vector<S> next(row.size());
    power_step(op, row, next, S(1));
    const S psi = angle<S>(row, next);
    const auto length = adaptive_step_length(at);
    CHECK(std::abs(double(length.geodesic) - double(psi)) < tolerance<T>.identity);
    CHECK(close(length.tangential, std::tan(double(length.geodesic)),
                tolerance<T>.identity * (1 + double(length.tangential))));
    CHECK(double(length.tangential) * std::cos(double(psi)) <= std::sin(double(psi)) + tolerance<T>.identity);
    CHECK(geodesic_distance<S>(row, next, S(3)) ==
          doctest::Approx(3 * double(psi)).epsilon(tolerance<T>.identity));
  });
}

TEST_CASE_TEMPLATE("Eq. 9, 10: ascent with η = 1/ρ, retracted, is the power step", T, STORAGE_TYPES) {
  using S = accumulator_t<T>;
  for_every_expert<T>([](auto op, const matrix& a, const std::vector<S>& row, const column& r) {
    std::vector<S> step(row.size()), adaptive(row.size()), given(row.size());
    const S rho = power_step(op, row, step, S(2)).rayleigh;
    const auto result = adaptive_ascent_step(op, row, adaptive, S(2));
    steepest_ascent_step(op, row, given, S(2), adaptive_step(rho));
    CHECK(result.state == status::ok);
    CHECK(relative_distance(adaptive, step) < tolerance<T>.identity);
    CHECK(relative_distance(given, step) < tolerance<T>.identity);
    CHECK(close(result.cosine, r.normalized().dot(exact_step(a, r, 1)), tolerance<T>.identity));
    CHECK(power_shift(rho, adaptive_step(rho)) ==
          doctest::Approx(0).epsilon(tolerance<T>.identity).scale(double(rho)));
  });
}

TEST_CASE_TEMPLATE("every η is a power step with M shifted by s = ρ − 1/η", T, STORAGE_TYPES) {
  using S = accumulator_t<T>;
  for_every_expert<T>([](auto op, const matrix& a, const std::vector<S>& row, const column& r) {
    const column unit = r.normalized();
    const double rho = (a * unit).squaredNorm();
    for (const double times : {-0.5, 0.01, 0.5, 2.0, 7.0}) {  // η in units of 1/ρ
      const S eta = static_cast<S>(times / rho);
      std::vector<S> out(row.size());
      const auto result = steepest_ascent_step(op, row, out, S(1), eta);
      const double shift = power_shift<double>(rho, double(eta));
      const column shifted = (double(eta) > 0 ? 1 : -1) * (a.transpose() * (a * unit) - shift * unit);
      CAPTURE(times);
      CHECK(result.state == status::ok);
      CHECK(relative_distance(values(out), shifted.normalized()) <
            tolerance<T>.identity * (1 + std::abs(times)));
    }
    // η → 0 is Oja's rule: the move is η g to first order.
    if constexpr (std::is_same_v<T, double>) {
      const double eta = 1e-6 / (a.squaredNorm());
      std::vector<double> out(row.size());
      steepest_ascent_step(op, row, out, 1.0, eta);
      const column g = a.transpose() * (a * unit) - rho * unit;
      CHECK(((values(out) - unit) / eta - g).norm() <= 2e-6 * (1 + rho) * (1 + g.norm()));
    }
  });
}

TEST_CASE_TEMPLATE("invariances: A → cA, A → QA, r → −r, and (A, r) → (AQ, rQ)", T, STORAGE_TYPES) {
  using S = accumulator_t<T>;
  random_source random(11);
  for (const auto& [F, D] : shapes) {
    CAPTURE(F);
    CAPTURE(D);
    const stored_matrix<T> stored(random_matrix<T>(random, F, D), F, D, layout::row_major);
    const matrix a = values(stored.view());
    const auto row = random_vector<S>(random, D);
    std::vector<S> out(row.size()), other(row.size());
    power_step(gram(stored.view()), row, out, S(1));

    // A power of two changes no bit.
    std::vector<double> scaled(static_cast<std::size_t>(F * D));
    for (index_t i = 0; i < F * D; ++i) scaled[static_cast<std::size_t>(i)] = 4 * a(i / D, i % D);
    const stored_matrix<T> a4(scaled, F, D, layout::row_major);
    power_step(gram(a4.view()), row, other, S(1));
    CHECK(other == out);

    std::vector<S> minus(row);
    for (S& x : minus) x = -x;
    power_step(gram(stored.view()), minus, other, S(1));
    for (S& x : other) x = -x;
    CHECK(other == out);

    // Rotations, in double: what they make is not exact in a smaller type.
    const auto q_rows = random_orthonormal(random, F, F);
    const auto q_cols = random_orthonormal(random, D, D);
    const Eigen::Map<const matrix> left(q_rows.data(), F, F);
    const Eigen::Map<const matrix> right(q_cols.data(), D, D);
    const matrix qa = left * a;
    const matrix aq = a * right;
    const column r = values(row);
    const column rq = right.transpose() * r;
    column from_qa(D), from_aq(D), plain(D);
    power_step(gram(a), view(r), view(plain), 1.0);
    power_step(gram(qa), view(r), view(from_qa), 1.0);
    power_step(gram(aq), view(rq), view(from_aq), 1.0);
    CHECK(relative_distance(from_qa, plain) < tolerance<double>.identity);
    CHECK(relative_distance(from_aq, right.transpose() * plain) < tolerance<double>.identity);
  }
}

TEST_CASE("range: r′ lies in the row space of A, so a token orthogonal to it gets logit 0") {
  random_source random(13);
  for (const auto& [F, D] : {std::pair<index_t, index_t>{3, 20}, {17, 40}, {40, 17}}) {
    const index_t rank = std::min<index_t>(3, D - 1);
    const auto spectrum = random_with_spectrum(random, F, D, std::vector<double>{3, 2, 1});
    const auto row = random_vector<double>(random, D);
    std::vector<double> out(row.size());
    power_step(gram(row_major(spectrum.a.data(), F, D)), row, out, 2.0);
    const Eigen::Map<const matrix> v(spectrum.directions.data(), D, rank);
    column token = values(random_vector<double>(random, D));
    token -= v * (v.transpose() * token);
    token -= v * (v.transpose() * token);
    CHECK(std::abs(token.dot(values(out))) < tolerance<double>.identity);
    CHECK((values(out) - v * (v.transpose() * values(out))).norm() < tolerance<double>.identity);
  }
}

TEST_CASE_TEMPLATE("the sphere: retract, project to the tangent space, measure angles", S, float, double) {
  random_source random(17);
  for (const index_t D : {1, 2, 3, 8, 31, 257}) {
    const auto x = random_vector<S>(random, D);
    const auto v = random_vector<S>(random, D);
    std::vector<S> on_sphere(x.size()), tangent(x.size()), again(x.size());
    CHECK(retract<S>(x, on_sphere, S(3)) == status::ok);
    CHECK(close(values(on_sphere).norm(), 3, tolerance<S>.arithmetic));
    CHECK(relative_distance(on_sphere, rounded<S>(3 * values(x).normalized())) < tolerance<S>.arithmetic);
    CHECK(project_to_tangent<S>(x, v, tangent) == status::ok);
    CHECK(std::abs(values(tangent).dot(values(x).normalized())) <=
          tolerance<S>.arithmetic * values(v).norm());
    project_to_tangent<S>(x, tangent, again);  // a projection: twice is once
    CHECK((values(again) - values(tangent)).norm() <= tolerance<S>.arithmetic * values(v).norm());
    CHECK(angle<S>(x, x) == 0);
    std::vector<S> minus(x);
    for (S& value : minus) value = -value;
    CHECK(close(angle<S>(x, minus), std::numbers::pi, tolerance<S>.arithmetic));
    CHECK(line_angle<S>(vector_view<const S>(x), minus) <= S(tolerance<S>.arithmetic));
    if (D >= 2) {  // a small angle, where the arc cosine has no digits left
      const double small = std::is_same_v<S, double> ? 1e-12 : 1e-5;
      const auto frame = random_orthonormal(random, 2, D);
      std::vector<S> a(x.size()), b(x.size());
      for (std::size_t i = 0; i < a.size(); ++i) {
        a[i] = static_cast<S>(frame[i]);
        b[i] = static_cast<S>(std::cos(small) * frame[i] + std::sin(small) * frame[i + a.size()]);
      }
      CHECK(close(angle<S>(a, b), small, std::is_same_v<S, double> ? 1e-3 : 2e-2));
    }
    auto in_place = x;
    retract<S>(in_place, in_place, S(3));
    CHECK(in_place == on_sphere);
  }
}

#if !defined(MPIROUTER_TEST_SHORT)  // large matrices, and no access that the others have not
TEST_CASE("λ by both norms, and its null for an untrained Gaussian matrix") {
  random_source random(19);
  for (const auto& [F, D] : {std::pair<index_t, index_t>{300, 600}, {500, 250}}) {
    const auto elements = random_matrix<double>(random, F, D);
    const auto a = row_major(elements.data(), F, D);
    const auto svd = mpi_router::detail::bdc_svd(values(a));
    const double sigma_1 = svd.singularValues()[0];
    const auto null = null_model(F, D);
    double stored = 0, one_step = 0, cosine = 0;
    constexpr int rows = 20;
    for (int k = 0; k < rows; ++k) {
      const auto row = random_vector<double>(random, D);
      std::vector<double> next(row.size()), g(row.size());
      const auto at = rayleigh(gram(a), row, g);
      power_step(gram(a), row, next, 1.0);
      const auto after = rayleigh(gram(a), next, g);
      stored += alignment_spectral(at.rayleigh, sigma_1) / rows;
      one_step += alignment_spectral(after.rayleigh, sigma_1) / rows;
      cosine += std::abs(values(next).dot(svd.matrixV().col(0))) / rows;
      const double frobenius = values(a).norm();
      CHECK(alignment_frobenius(at.rayleigh, frobenius) * frobenius ==
            doctest::Approx(alignment_spectral(at.rayleigh, sigma_1) * sigma_1));
    }
    // 20 rows and the edge of a finite spectrum leave some per cent.
    CHECK(stored == doctest::Approx(null.stored).epsilon(0.03));
    CHECK(one_step == doctest::Approx(null.one_step).epsilon(0.03));
    CHECK(one_step > 0.7);  // λ looks well aligned …
    CHECK(cosine < 0.2);    // … with a direction that it has hardly turned to
  }
}
#endif

#undef STORAGE_TYPES

}  // namespace test_laws
