// Rows nearly across all that A sees, down to the least subnormal number: h = r̂M/ρ and tan ψ leave the range
// of S there, ρ and cos ψ go below it. What S can hold is right all the same; what it cannot is infinite or
// zero.
#include <mpi_router/backend/dense.hpp>
#include <mpi_router/core/matrix_rows.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step_vjp.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/row_images.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <utility>
#include <vector>

#include "across.hpp"
#include "vectors.hpp"

namespace test_across {

TEST_CASE_TEMPLATE("rows nearly across all that A sees have a quotient, a residual and a step", S, float,
                   double) {
  for_each_problem<S>([](const problem& p) {
    const auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    auto op = gram(row_major(a.data(), F, D));
    std::vector<S> got(D);
    const auto step = power_step(op, in<S>(row), out<S>(got), static_cast<S>(radius));
    REQUIRE(step.state == status::ok);
    CHECK(same(step.rayleigh, p.rayleigh()));
    CHECK(same(step.cosine, p.cosine()));
    const wides u = p.image(p.row);
    CHECK(same_vector(got, times(radius / norm(u), u)));
    CHECK(adaptive_ascent_step(op, in<S>(row), out<S>(got), static_cast<S>(radius)).state == status::ok);
    CHECK(same_vector(got, times(radius / norm(u), u)));
    const auto at = rayleigh(op, in<S>(row), out<S>(got));
    REQUIRE(at.state == status::ok);
    const wides g = p.residual();
    CHECK(same(at.rayleigh, p.rayleigh()));
    CHECK(same(at.residual, norm(g)));
    CHECK(same(at.relative_residual, norm(g) / p.rayleigh()));
    CHECK(same_vector(got, g));
  });
}

TEST_CASE_TEMPLATE("rows nearly across all that A sees ascend by any η", S, float, double) {
  for_each_problem<S>([](const problem& p) {
    const auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    auto op = gram(row_major(a.data(), F, D));
    std::vector<S> got(D);
    for (const wide share : {-0x1p-40L, 0x1p-20L, 0.5L, -1.0L, 3.0L, 0x1p30L}) {  // of ‖ηg‖
      const auto eta = static_cast<S>(share / norm(p.residual()));
      if (!std::isfinite(eta) || std::abs(eta) < std::numeric_limits<S>::min()) continue;
      CAPTURE(share);
      const auto ascent = steepest_ascent_step(op, in<S>(row), out<S>(got), static_cast<S>(radius), eta);
      REQUIRE(ascent.state == status::ok);
      const wide tan = static_cast<wide>(eta) * norm(p.residual());
      CHECK(same(ascent.cosine, 1 / std::sqrt(1 + tan * tan)));
      CHECK(same_vector(got, p.ascent(static_cast<wide>(eta))));
    }
  });
}

TEST_CASE_TEMPLATE("an iteration from a row nearly across all that A sees tells the truth", S, float,
                   double) {
  for_each_problem<S>([](const problem& p) {
    const auto a = in_range<S>(p.a);
    auto op = gram(row_major(a.data(), F, D));
    std::vector<S> workspace(2 * D);
    for (const auto& rule :
         {momentum<S>::none(), momentum<S>::fixed(p.small_beta<S>()), momentum<S>::estimated()}) {
      auto row = in_range<S>(p.row);
      const iteration_options<S> options{
          .max_steps = 12, .radius = static_cast<S>(radius), .acceleration = rule};
      bool first = true;
      const auto result = power_iteration(op, out<S>(row), out<S>(workspace), options,
                                          [&](const iteration_record<S>& record, const auto&) {
                                            const wide tan = norm(p.residual()) / p.rayleigh();
                                            if (std::exchange(first, false)) {
                                              CHECK(same(record.rayleigh, p.rayleigh()));
                                              CHECK(same(record.residual, norm(p.residual())));
                                              CHECK(same(record.relative_residual, tan));
                                              CHECK(same(record.step_angle, std::atan(tan)));
                                            }
                                          });
      if (rule.rule == momentum<S>::kind::fixed && result.reason == stop_reason::degenerate) {
        CHECK(result.state != status::ok);  // β is out of range beside such a row, and no step right
        continue;
      }
      CHECK(result.state == status::ok);
      CHECK(result.steps == 12);
      if (rule.rule == momentum<S>::kind::fixed) continue;  // how fast is not told
      wides x = p.row;
      for (int k = 0; k < 12; ++k) {
        x = p.image(x);
        x = times(1 / norm(x), x);
      }
      const wide share = std::abs(dot(x, wides(row.begin(), row.end()))) / radius;
      CHECK(share >= 1 - 1e-3L);
    }
  });
}

TEST_CASE_TEMPLATE("the gradients of rows nearly across all that A sees", S, float, double) {
  for_each_problem<S>([](const problem& p) {
    const auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    auto op = gram(row_major(a.data(), F, D));
    std::vector<S> next(D), to_r(D), scratch(D), y(F), q(D), w(F), v(D), to_a(a.size());
    saved_norm<S> saved;
    power_step(op, in<S>(row), out<S>(next), static_cast<S>(radius), degenerate_row::keep, saved);
    const wides grad{1, 2, 3, -4, 5};
    const auto grad_in = in_range<S>(grad);
    const wides z = p.image(p.row), unit = times(1 / norm(z), z);
    const wides dual = times(radius / norm(z), plus(grad, -dot(unit, grad), unit));
    const wides ar = p.project(p.row), adual = p.project(dual);
    wides want(a.size());
    wide largest = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      want[i] = ar[i / D] * dual[i % D] + adual[i / D] * p.row[i % D];
      largest = std::max(largest, std::abs(want[i]));
    }
    const wides want_r = p.image(dual);
    const wide most = static_cast<wide>(std::numeric_limits<S>::max()) / 64;
    if (norm(dual) > most * most || norm(want_r) > most || largest > most) return;  // S cannot hold it
    power_step_vjp(op, in<S>(row), in<S>(next), saved, in<S>(grad_in), static_cast<S>(radius), out<S>(to_r),
                   rank2_factors<S>{y, q, w, v});
    add_rank2(rank2_factors<S>{y, q, w, v}, row_major(to_a.data(), F, D), gradient_mode::write);
    CHECK(same_vector(to_r, want_r));
    CHECK(same_vector(to_a, want));
    power_step_vjp(op, in<S>(next), saved, in<S>(grad_in), static_cast<S>(radius), out<S>(to_r),
                   out<S>(scratch));
    CHECK(same_vector(to_r, want_r));
    const expert_shape shape{1, F, D};
    const router_options options{.radius = router_radius::fixed(static_cast<double>(radius))};
    std::vector<S> tape(static_cast<std::size_t>(router_tape_size(shape, options))), workspace(1000);
    const auto router = row_major(row.data(), 1, D);
    router_rows(experts_nfd(a.data(), shape), router, row_major(next.data(), 1, D), options,
                out<S>(workspace), router_by_products<S>{.tape = tape});
    router_rows_vjp(experts_nfd(a.data(), shape), router, in<S>(tape), row_major(grad_in.data(), 1, D),
                    options, row_major(to_r.data(), 1, D), experts_nfd(to_a.data(), shape),
                    gradient_mode::write, out<S>(workspace));
    CHECK(same_vector(to_r, want_r));
    CHECK(same_vector(to_a, want));
  });
}

TEST_CASE_TEMPLATE("batched steps of rows nearly across all that A sees, and their gradients", S, float,
                   double) {
  for_each_problem<S>([](const problem& p) {
    const index_t n = 2;  // the second turned the other way
    auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    a.insert(a.end(), a.begin(), a.end());
    for (index_t d = 0; d < D; ++d) row.push_back(-row[static_cast<std::size_t>(d)]);
    const auto experts = experts_nfd(a.data(), {n, F, D});
    const auto router = row_major(std::as_const(row).data(), n, D);
    std::vector<S> next(row.size()), workspace(1000), told(6 * n), tape(100);
    std::vector<status> statuses(n);
    const auto put = [&](index_t i) { return out<S>(told.data() + i * n, n); };
    const router_options options{.radius = router_radius::fixed(static_cast<double>(radius))};
    const out<S> saved(tape.data(), router_tape_size({n, F, D}, options));
    const router_by_products<S> all{statuses, put(0), put(1), saved, put(2), put(3), put(4), put(5)};
    const wides u = p.image(p.row), want = times(radius / norm(u), u);
    const auto check = [&] {
      CHECK(same_vector(std::vector<S>(next.begin(), next.begin() + D), want));
      CHECK(same_vector(std::vector<S>(next.begin() + D, next.end()), times(-1, want)));
      for (std::size_t i = 0; i < 2; ++i) {
        CHECK(statuses[i] == status::ok);
        CHECK(same(told[i], p.rayleigh()));
        CHECK(same(told[2 + i], p.cosine()));
        CHECK(same(told[4 + i], norm(p.residual())));
        CHECK(same(told[6 + i], dot(u, p.row)));
        CHECK(same(told[8 + i], norm(p.row)));
        CHECK(same(told[10 + i], norm(u)));
      }
    };
    const auto rows = row_major(next.data(), n, D);
    router_rows(experts, router, rows, options, out<S>(workspace), all);
    check();
    std::vector<S> scratch(D);
    const auto by_rows = [&](index_t i) {
      return gram_of_rows<S>(stored_rows<S>{a.data() + i * F * D}, std::span<S>(scratch));
    };
    router_rows(by_rows, router, rows, options, out<S>(workspace), all);
    check();
    // In two halves it cannot be multiplied anew: right, or an image that counts as zero or is out of range.
    std::vector<S> images(row.size()), energies(n);
    images_of_rows(experts, router, row_major(images.data(), n, D), out<S>(energies), out<S>(workspace));
    for (const index_t known : {index_t{0}, n}) {
      retract_images(row_major(std::as_const(images).data(), n, D), in<S>(energies.data(), known), router,
                     rows, options, all);
      if (statuses[0] == status::ok) {
        check();
      } else {
        const bool is_small = norm(u) < 1000 * static_cast<wide>(detail::smallest_image<S>);
        CHECK((is_small || norm(u) > static_cast<wide>(std::numeric_limits<S>::max()) / 4));
        CHECK(statuses[0] == (is_small ? status::zero_image : status::non_finite));
        CHECK(next == row);
      }
    }
  });
}

TEST_CASE_TEMPLATE("a sphere of any radius takes rows nearly across all that A sees", S, float, double) {
  for_each_problem<S>([](const problem& p) {
    const auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    auto op = gram(row_major(a.data(), F, D));
    const wides u = p.image(p.row);
    std::vector<S> got(D);
    for (const S c : {std::numeric_limits<S>::max() / 2, std::numeric_limits<S>::min()}) {
      REQUIRE(power_step(op, in<S>(row), out<S>(got), c).state == status::ok);
      CHECK(same_vector(got, times(static_cast<wide>(c) / norm(u), u)));
    }
  });
}

TEST_CASE_TEMPLATE("any η whose step is in range, where the energy is near the largest number", S, float,
                   double) {
  const std::vector<S> a{S(1.4), 0, S(1.3), 1},
      row{std::ldexp(S{1}, std::numeric_limits<S>::max_exponent / 2 - 1), 0};
  const std::vector<S> same_direction{1, 0};
  std::vector<S> got(2), want(2);
  auto op = gram(row_major(a.data(), 2, 2));
  for (const S eta : {S(1.9), S(-0.95), S(1.9) * 1024}) {
    const auto step = steepest_ascent_step(op, in<S>(row), out<S>(got), S{2}, eta);
    const auto expected = steepest_ascent_step(op, in<S>(same_direction), out<S>(want), S{2}, eta);
    CHECK(step.state == status::ok);
    CHECK(relative_distance(got, want) <= tolerance<S>.identity);
    CHECK(close(step.cosine, expected.cosine, tolerance<S>.identity));
  }
}

TEST_CASE_TEMPLATE("the residual of a row that is principal is zero, whatever the weights", S, float,
                   double) {
  const S most = std::numeric_limits<S>::max();
  for (const S weight :
       {most, most / 2, S{1}, std::numeric_limits<S>::min(), std::numeric_limits<S>::denorm_min()}) {
    CAPTURE(weight);
    const std::vector<S> a{weight, 0, weight, 0, weight, 0, weight, 0}, row{1, 0};
    std::vector<S> got(2);
    auto op = gram(row_major(a.data(), 4, 2));
    const auto at = rayleigh(op, in<S>(row), out<S>(got));
    CHECK(at.state == status::ok);
    CHECK(at.residual == S{0});
    CHECK(got == std::vector<S>(2));
  }
}

TEST_CASE_TEMPLATE("what S cannot tell from a zero image is one", S, float, double) {
  // Of what A sees the row has so little that larger numbers hold it with few bits, or not at all.
  const int least = std::numeric_limits<S>::min_exponent - std::numeric_limits<S>::digits;
  for (const int of_row : {std::same_as<S, float> ? 80 : 900, std::numeric_limits<S>::max_exponent - 8}) {
    const problem p(0, of_row, least);
    const auto a = in_range<S>(p.a), row = in_range<S>(p.row);
    std::vector<S> got(D, S{7});
    auto op = gram(row_major(a.data(), F, D));
    CHECK(power_step(op, in<S>(row), out<S>(got), S{3}).state == status::zero_image);
    CHECK(got == row);
    CHECK(rayleigh(op, in<S>(row), out<S>(got)).state == status::zero_image);
    CHECK(got == std::vector<S>(D));
  }
}

}  // namespace test_across
