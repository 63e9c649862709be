// The backward of the step against central differences, and its laws (DESIGN: the vector-Jacobian product).
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>

#include <tuple>

#include "batch.hpp"

namespace test_rows_vjp {
using namespace mpi_router;
using namespace test_support;

namespace {

/// A random problem, its forward, and its backward in the three forms.
template <class S>
struct problem {
  expert_shape shape;
  router_options options;
  std::vector<double> values, router_values, grad_values;
  std::vector<S> router, rows, grad_rows, tape, workspace, grad_router;

  problem(const expert_shape& s, const router_options& o, std::uint64_t seed) : shape(s), options(o) {
    random_source random(seed);
    const auto [n, f, d] = shape;
    values = random_vector<double>(random, n * f * d);
    router_values = random_vector<double>(random, n * d);
    grad_values = random_vector<double>(random, n * d);
    set_rows();
    rows.resize(router.size());
    grad_router.resize(router.size());
    tape.resize(static_cast<std::size_t>(router_tape_size(shape, options)));
    workspace.resize(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  }
  void set_rows() {
    router.assign(router_values.begin(), router_values.end());
    grad_rows.assign(grad_values.begin(), grad_values.end());
  }
  auto matrix(std::vector<S>& x) { return row_major(x.data(), shape.num_experts, shape.hidden_dim); }

  template <class Backend = reference>
  void forward(stored_batch<S>& experts, const Backend& backend = {}) {
    router_rows(experts.view(), matrix(router), matrix(rows), options, workspace, {.tape = tape}, backend);
  }
  template <class Backend = reference, class G>
  void backward(stored_batch<S>& experts, stored_batch<G>& gradient, gradient_mode mode,
                const Backend& backend = {}) {
    router_rows_vjp(experts.view(), matrix(router), tape, matrix(grad_rows), options, matrix(grad_router),
                    gradient.view(), mode, workspace, backend);
  }
};

const std::vector<expert_shape> shapes{{1, 1, 2},   {1, 4, 1},   {3, 5, 7},
                                       {2, 33, 18}, {2, 17, 35}, {1, 20, 64}};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
double norm_of(const std::vector<double>& a) { return std::sqrt(dot(a, a)); }

}  // namespace

TEST_CASE_TEMPLATE(
    "gradients equal central differences: sizes, steps, what is differentiated, degenerate policy", Backend,
    reference, simd) {
  std::uint64_t seed = 1;
#if defined(MPIROUTER_TEST_SANITIZED)
  const std::vector<index_t> many{2};
#else
  const std::vector<index_t> many{1, 2, 3};
#endif
  for (const expert_shape shape : {shapes[1], shapes[2], shapes[3], shapes[4]}) {
    for (const index_t steps : many) {
      for (const auto through : {differentiate::all, differentiate::last, differentiate::none}) {
        for (const auto radius : {router_radius::fixed(0.7), router_radius::scale_free(4)}) {
          CAPTURE(steps);
          CAPTURE(static_cast<int>(through));
          problem<double> p(shape, {radius, steps, degenerate_row::zero, through}, seed++);
          const auto [n, f, d] = shape;
          // The loss as a function of the rows and of one copy of A for each step: what is not differentiated
          // is held.
          const auto fixed = p.values;
          const auto loss = [&](bool hold) {
            std::vector<double> at = p.router_values;
            std::vector<double> next(at.size());
            for (index_t s = 0; s < steps; ++s) {
              const bool moves = !hold && (through == differentiate::all ||
                                           (through == differentiate::last && s == steps - 1));
              const auto& a = moves ? p.values : fixed;
              for (index_t i = 0; i < n; ++i) {
                power_step(gram(row_major(a.data() + i * f * d, f, d)),
                           vector_view<const double>(at.data() + i * d, d),
                           vector_view<double>(next.data() + i * d, d), radius.of(n));
              }
              at = next;
            }
            return dot(at, p.grad_values);
          };
          stored_batch<double> experts(p.values, shape, batch_layout::nfd);
          p.forward(experts, Backend{});
          const auto numeric_router = numeric_gradient(p.router_values, [&] { return loss(true); });
          const double scale = norm_of(p.grad_values) * radius.of(n);
          if (through == differentiate::none) {
            router_rows_vjp_detached(experts.view(), p.matrix(p.router), p.tape, p.matrix(p.grad_rows),
                                     p.options, p.matrix(p.grad_router), gradient_mode::write, p.workspace,
                                     Backend{});
          } else {
            stored_batch<double> gradient(shape, batch_layout::nfd);
            p.backward(experts, gradient, gradient_mode::write, Backend{});
            const auto numeric = numeric_gradient(p.values, [&] { return loss(false); });
            CHECK(distance_above(gradient.values(), numeric, scale) < 1e-8);
          }
          CHECK(distance_above(p.grad_router, numeric_router, scale) < 1e-8);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("the gradients are orthogonal to what they are gradients of", S, double, float) {
  std::uint64_t seed = 50;
  for (const auto& shape : shapes) {
    for (const index_t steps : {1, 2}) {
      problem<S> p(shape, {.steps = steps}, seed++);
      stored_batch<S> experts(p.values, shape, batch_layout::nfd);
      stored_batch<S> gradient(shape, batch_layout::nfd);
      p.forward(experts);
      p.backward(experts, gradient, gradient_mode::write);
      const std::vector<double> to_a = gradient.values();
      const std::vector<double> a = experts.values();
      const auto [n, f, d] = shape;
      for (index_t i = 0; i < n; ++i) {
        const auto part = [i](const auto& all, index_t size) {
          return std::vector<double>(all.begin() + i * size, all.begin() + (i + 1) * size);
        };
        const auto r = part(p.router, d);
        const auto g = part(p.grad_router, d);
        // Relative to what the gradient would be without the projection: ‖ḡ‖ C/‖r‖, ‖ḡ‖ C/‖A‖ times a few
        // condition numbers.
        const double bound = 200 * tolerance<S>.identity * norm_of(p.grad_values) * p.options.radius.of(n);
        CHECK(std::abs(dot(r, g)) < bound);
        CHECK(std::abs(dot(part(a, f * d), part(to_a, f * d))) < bound);
      }
    }
  }
}

TEST_CASE_TEMPLATE("factored, accumulated and materialised agree, in every layout and backend", S, double,
                   float) {
  std::uint64_t seed = 90;
  for (const auto& shape : shapes) {
    for (const auto& [steps, through] :
         {std::tuple{index_t{1}, differentiate::all}, std::tuple{index_t{3}, differentiate::all},
          std::tuple{index_t{3}, differentiate::last}}) {
      problem<S> p(shape, {.steps = steps, .through = through}, seed++);
      stored_batch<S> plain(p.values, shape, batch_layout::nfd);
      stored_batch<S> expected(shape, batch_layout::nfd);
      p.forward(plain);
      p.backward(plain, expected, gradient_mode::write);
      const auto to_a = expected.values();
      const auto to_r = p.grad_router;
      const double floor = norm_of(p.grad_values) * p.options.radius.of(shape.num_experts);

      for (const batch_layout l : all_batch_layouts) {
        CAPTURE(to_string(l));
        stored_batch<S> experts(p.values, shape, l);
        const auto check = [&](const auto& backend) {
          stored_batch<S> gradient(shape, l);
          p.forward(experts, backend);
          p.backward(experts, gradient, gradient_mode::write, backend);
          CHECK(distance_above(gradient.values(), to_a, floor) < tolerance<S>.identity);
          CHECK(distance_above(p.grad_router, to_r, floor) < tolerance<S>.identity);
          CHECK(gradient.gaps_untouched());

          const auto first = gradient.values();
          const auto first_router = p.grad_router;
          p.backward(experts, gradient, gradient_mode::accumulate, backend);
          std::vector<double> twice(first), twice_router(first_router.begin(), first_router.end());
          for (double& x : twice) x *= 2;
          for (double& x : twice_router) x *= 2;
          CHECK(distance_above(gradient.values(), twice, floor) < tolerance<S>.identity);
          CHECK(distance_above(p.grad_router, twice_router, floor) < tolerance<S>.identity);

          std::vector<S> buffer(static_cast<std::size_t>(router_factors<S>::size(shape, p.options)));
          const router_factors<S> factors(buffer, shape, p.options);
          router_rows_vjp_factored(experts.view(), p.matrix(p.router), p.tape, p.matrix(p.grad_rows),
                                   p.options, p.matrix(p.grad_router), factors, gradient_mode::write,
                                   p.workspace, backend);
          CHECK(distance_above(p.grad_router, to_r, floor) < tolerance<S>.identity);
          add_factors(factors, gradient.view(), gradient_mode::write);
          CHECK(distance_above(gradient.values(), to_a, floor) < tolerance<S>.identity);
          add_factors(factors, gradient.view(), gradient_mode::accumulate,
                      S(-1));  // a step of descent undoes it
          CHECK(distance_above(gradient.values(), std::vector<double>(to_a.size()), floor) <
                tolerance<S>.identity);
        };
        check(reference{});
        check(simd{});
      }
    }
  }
}

TEST_CASE("large experts, cut into blocks of neurons, agree with one expert at a time") {
  const expert_shape shape{2, 4500, 130};
  const auto [N, F, D] = shape;
  REQUIRE(detail::blocks_of(shape, detail::block_unit({.ffn = 1})) > 1);  // cut in every layout
  REQUIRE(detail::blocks_of(shape, detail::block_unit({.hidden = 1})) > 1);
#if defined(MPIROUTER_TEST_SANITIZED)
  const std::vector<differentiate> depths{differentiate::all};
#else
  const std::vector<differentiate> depths{differentiate::all, differentiate::last};
#endif
  for (const auto through : depths) {
    problem<double> p(shape, {.radius = router_radius::fixed(2), .steps = 2, .through = through}, 12);
    std::vector<double> rows, to_r, to_a;
    for (index_t i = 0; i < N; ++i) {
      using in = vector_view<const double>;
      using out = vector_view<double>;
      const auto op = gram(row_major(p.values.data() + i * F * D, F, D));
      const auto zeros = [](index_t size) { return std::vector<double>(static_cast<std::size_t>(size)); };
      const std::vector<double> first(p.router.begin() + i * D, p.router.begin() + (i + 1) * D);
      const std::vector<double> grad(p.grad_values.begin() + i * D, p.grad_values.begin() + (i + 1) * D);
      std::vector<double> second = zeros(D), third = zeros(D), back = zeros(D), to_first = zeros(D);
      std::vector<double> y = zeros(F), w = zeros(F), q = zeros(D), r = zeros(D), a = zeros(F * D);
      const rank2_factors<double> factors{y, q, w, r};
      saved_norm<double> norms[2];
      power_step(op, in(first), out(second), 2.0, degenerate_row::keep, norms[0]);
      power_step(op, in(second), out(third), 2.0, degenerate_row::keep, norms[1]);
      power_step_vjp(op, in(second), in(third), norms[1], in(grad), 2.0, out(back), factors);
      add_rank2(factors, row_major(a.data(), F, D), gradient_mode::write);
      power_step_vjp(op, in(first), in(second), norms[0], in(back), 2.0, out(to_first), factors);
      if (through == differentiate::all)
        add_rank2(factors, row_major(a.data(), F, D), gradient_mode::accumulate);
      rows.insert(rows.end(), third.begin(), third.end());
      to_r.insert(to_r.end(), to_first.begin(), to_first.end());
      to_a.insert(to_a.end(), a.begin(), a.end());
    }
    for (const batch_layout l :
         {batch_layout::nfd, batch_layout::ndf, batch_layout::df_pointers, batch_layout::strided}) {
      CAPTURE(to_string(l));
      stored_batch<double> experts(p.values, shape, l);
      stored_batch<double> gradient(shape, l);
      const auto check = [&](const auto& backend) {
        p.forward(experts, backend);
        p.backward(experts, gradient, gradient_mode::write, backend);
        CHECK(relative_distance(p.rows, rows) < tolerance<double>.identity);
        CHECK(relative_distance(p.grad_router, to_r) < tolerance<double>.identity);
        CHECK(relative_distance(gradient.values(), to_a) < tolerance<double>.identity);

        std::vector<double> buffer(static_cast<std::size_t>(router_factors<double>::size(shape, p.options)));
        const router_factors<double> factors(buffer, shape, p.options);
        router_rows_vjp_factored(experts.view(), p.matrix(p.router), p.tape, p.matrix(p.grad_rows), p.options,
                                 p.matrix(p.grad_router), factors, gradient_mode::write, p.workspace,
                                 backend);
        add_factors(factors, gradient.view(), gradient_mode::write);
        CHECK(relative_distance(gradient.values(), to_a) < tolerance<double>.identity);
      };
      check(reference{});
      check(simd{});
    }
  }
}

TEST_CASE_TEMPLATE("narrow gradients are rounded once", G, bf16, f16) {
  const expert_shape shape{3, 20, 70};
  random_source random(3);
  problem<float> p(shape, {}, 3);
  stored_batch<float> wide(p.values, shape, batch_layout::nfd);
  stored_batch<float> expected(shape, batch_layout::nfd);
  p.forward(wide);
  p.backward(wide, expected, gradient_mode::write);
  const auto exact = expected.values();
  stored_batch<G> gradient(shape, batch_layout::n2fd_interleaved);
  for (const bool vectorised : {false, true}) {
    if (vectorised) {
      p.backward(wide, gradient, gradient_mode::write, simd{});
    } else {
      p.backward(wide, gradient, gradient_mode::write);
    }
    const auto got = gradient.values();
    for (std::size_t i = 0; i < exact.size(); ++i) {
      CHECK(close(got[i], exact[i], 1.01 * tolerance<G>.storage, 1e-3));
    }
  }
}

TEST_CASE_TEMPLATE("weights of any scale that can be stored have a backward", Backend, reference, simd) {
  const expert_shape shape{2, 9, 33};
  problem<double> exact(shape, {}, 4);
  stored_batch<double> experts(exact.values, shape, batch_layout::nfd);
  stored_batch<double> gradient(shape, batch_layout::nfd);
  exact.forward(experts);
  exact.backward(experts, gradient, gradient_mode::write);
  const auto to_a = gradient.values();
  for (const double scale : {0x1p-70, 0x1p-40, 0x1p40, 0x1p60}) {
    for (const double row_scale : {0x1p-60, 1.0, 0x1p60}) {
      CAPTURE(scale);
      CAPTURE(row_scale);
      // r′ depends on neither scale, so Ā scales with 1/scale and r̄ with 1/row_scale.
      problem<float> p(shape, {}, 4);
      auto values = p.values;
      for (double& x : values) x *= scale;
      for (float& x : p.router) x *= static_cast<float>(row_scale);
      stored_batch<float> scaled_experts(values, shape, batch_layout::nfd);
      stored_batch<float> scaled_gradient(shape, batch_layout::nfd);
      p.forward(scaled_experts, Backend{});
      p.backward(scaled_experts, scaled_gradient, gradient_mode::write, Backend{});
      auto got = scaled_gradient.values();
      for (double& x : got) x *= scale;
      std::vector<double> got_router(p.grad_router.begin(), p.grad_router.end());
      for (double& x : got_router) x *= row_scale;
      CHECK(relative_distance(got, to_a) < tolerance<float>.identity);
      CHECK(relative_distance(got_router, exact.grad_router) < tolerance<float>.identity);
    }
  }
}

TEST_CASE("a row without a step passes its gradient on as its policy says, and gives none to A") {
  const expert_shape shape{3, 4, 6};
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    for (const index_t steps : {1, 2}) {
      problem<double> p(shape, {.steps = steps, .degenerate = policy}, 8);
      std::fill_n(p.values.begin() + 24, 24, 0.0);  // expert 1 has no image
      stored_batch<double> experts(p.values, shape, batch_layout::nfd);
      stored_batch<double> gradient(shape, batch_layout::nfd);
      p.forward(experts);
      p.backward(experts, gradient, gradient_mode::write);
      const auto to_a = gradient.values();
      for (std::size_t k = 0; k < 24; ++k) CHECK(to_a[24 + k] == 0);
      for (std::size_t k = 0; k < 6; ++k) {
        CHECK(p.grad_router[6 + k] == (policy == degenerate_row::keep ? p.grad_values[6 + k] : 0.0));
        CHECK(p.grad_router[k] != 0);
      }
      std::vector<double> buffer(static_cast<std::size_t>(router_factors<double>::size(shape, p.options)),
                                 9.0);
      const router_factors<double> factors(buffer, shape, p.options);
      router_rows_vjp_factored(experts.view(), p.matrix(p.router), p.tape, p.matrix(p.grad_rows), p.options,
                               p.matrix(p.grad_router), factors, gradient_mode::write, p.workspace);
      add_factors(factors, gradient.view(), gradient_mode::write);
      CHECK(distance_above(gradient.values(), to_a, 0) < 1e-14);
    }
  }
}

TEST_CASE("one expert alone: power_step_vjp with any operator") {
  random_source random(11);
  const auto a = random_vector<double>(random, 40);
  auto r = random_vector<double>(random, 8);
  const auto g = random_vector<double>(random, 8);
  const auto op = gram(row_major(a.data(), 5, 8));
  std::vector<double> out(8), to_r(8), detached(8), y(5), w(5), q(8), p(8), scratch(8);
  saved_norm<double> saved;
  power_step(op, vector_view<const double>(r), vector_view<double>(out), 2.0, degenerate_row::keep, saved);
  power_step_vjp(op, vector_view<const double>(r), vector_view<const double>(out), saved,
                 vector_view<const double>(g), 2.0, vector_view<double>(to_r),
                 rank2_factors<double>{y, q, w, p});
  power_step_vjp(op, vector_view<const double>(out), saved, vector_view<const double>(g), 2.0,
                 vector_view<double>(detached), vector_view<double>(scratch));
  CHECK(distance_above(detached, to_r, 0) < 1e-13);
  const auto loss = [&] {
    std::vector<double> at(8);
    power_step(op, vector_view<const double>(r), vector_view<double>(at), 2.0);
    return dot(at, g);
  };
  CHECK(distance_above(to_r, numeric_gradient(r, loss), 0) < 1e-9);
}

}  // namespace test_rows_vjp
