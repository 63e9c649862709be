// Gradients of latent experts, M = PᵀAᵀA P: the products that they are by the chain rule, and the slope of
// the loss.
#include <mpi_router/mpi_router.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/executors.hpp>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <string>
#include <vector>

namespace test_latent_vjp {
using namespace mpi_router;
using namespace test_support;

namespace {

std::size_t to_size(index_t count) { return static_cast<std::size_t>(count); }

/// A layer of latent experts, and the gradients of L = Σ grad_rows · rows.
template <class S>
struct latent_layer {
  index_t n, f, l, d;
  router_options options;
  std::vector<S> a, p, router, grad_rows;
  std::vector<S> factors, gate_factors, grad_a, grad_p, scratch, work, tape;

  latent_layer(const expert_shape& gates, index_t hidden_dim, const router_options& o, std::uint64_t seed)
      : n(gates.num_experts), f(gates.ffn_dim), l(gates.hidden_dim), d(hidden_dim), options(o) {
    random_source random(seed);
    a = random_vector<S>(random, n * f * l);
    p = random_vector<S>(random, l * d);
    router = random_vector<S>(random, n * d);
    grad_rows = random_vector<S>(random, n * d);
    factors.resize(to_size(router_factors<S>::size(product_shape(), options)));
    gate_factors.resize(to_size(router_factors<S>::size(gate_shape(), options)));
    grad_a.resize(a.size());
    grad_p.assign(p.size(), S{1});
    scratch.resize(to_size(n * 2 * l));
    work.resize(to_size(router_rows_vjp_workspace(n, f, d)));
    tape.resize(to_size(router_tape_size(product_shape(), options)));
  }
  [[nodiscard]] expert_shape product_shape() const { return {n, f, d}; }
  [[nodiscard]] expert_shape gate_shape() const { return {n, f, l}; }
  [[nodiscard]] router_factors<S> of_products() { return {factors, product_shape(), options}; }
  [[nodiscard]] router_factors<S> of_gates() { return {gate_factors, gate_shape(), options}; }

  auto gates() const {
    return [this](index_t i) { return gram(experts_nfd(a.data(), gate_shape())[i]); };
  }
  auto projections() const {
    return [this](index_t) { return gram(row_major(p.data(), l, d)); };
  }
  auto operators() {
    return [this](index_t i) {
      return composed(projections()(i), gates()(i), vector_view<S>(scratch.data() + i * 2 * l, 2 * l));
    };
  }

  double loss() {
    std::vector<S> rows(router.size());
    router_rows(operators(), row_major(std::as_const(router).data(), n, d), row_major(rows.data(), n, d),
                options, work, {.tape = tape});
    double sum = 0;
    for (std::size_t k = 0; k < rows.size(); ++k) {
      sum += static_cast<double>(rows[k]) * static_cast<double>(grad_rows[k]);
    }
    return sum;
  }
  template <class Run = serial_executor>
  void backward(gradient_mode mode, const Run& run = {}) {
    static_cast<void>(loss());
    std::vector<S> grad_router(router.size());
    router_rows_vjp_factored(operators(), row_major(std::as_const(router).data(), n, d), tape,
                             row_major(std::as_const(grad_rows).data(), n, d), options,
                             row_major(grad_router.data(), n, d), of_products(), gradient_mode::write, work,
                             run);
    std::vector<S> space(to_size(latent_vjp_workspace(of_products(), l)));
    latent_vjp(gates(), projections(), of_products(), of_gates(), row_major(grad_p.data(), l, d), mode, space,
               run);
    add_factors(of_gates(), experts_nfd(grad_a.data(), gate_shape()), gradient_mode::write, S{1}, run);
  }
};

}  // namespace

TEST_CASE("the gradients to A and P are the products of the chain rule") {
  const double same = tolerance<double>.identity;
  for (const index_t steps : {1, 3}) {
    latent_layer<double> layer({3, 9, 5}, 12, {.steps = steps, .through = differentiate::all}, 21);
    layer.backward(gradient_mode::write);
    const auto [n, f, d] = layer.product_shape();
    const index_t l = layer.l;
    std::vector<double> product(to_size(n * f * d));  // Ā′, dense
    add_factors(layer.of_products(), experts_nfd(product.data(), layer.product_shape()),
                gradient_mode::write);
    std::vector<double> want_a(layer.a.size()), want_p(layer.p.size());
    for (index_t i = 0; i < n * f; ++i) {
      for (index_t j = 0; j < d; ++j) {
        const double g = product[to_size(i * d + j)];
        for (index_t k = 0; k < l; ++k) {
          want_a[to_size(i * l + k)] += g * layer.p[to_size(k * d + j)];
          want_p[to_size(k * d + j)] += layer.a[to_size(i * l + k)] * g;
        }
      }
    }
    CHECK(relative_distance(layer.grad_a, want_a) < same);
    CHECK(relative_distance(layer.grad_p, want_p) < same);
    const auto written = layer.grad_p;
    layer.backward(gradient_mode::accumulate);
    for (double& x : want_p) x *= 2;
    CHECK(relative_distance(layer.grad_p, want_p) < same);
    layer.backward(gradient_mode::write, thread_executor{3});
    CHECK(layer.grad_p == written);
  }
}

TEST_CASE("they are the slope of the loss") {
  latent_layer<double> layer({2, 4, 3}, 5, {.radius = 1.5, .steps = 2, .through = differentiate::all}, 22);
  layer.backward(gradient_mode::write);
  const auto check = [&](std::vector<double>& values, const std::vector<double>& gradient) {
    for (std::size_t k = 0; k < values.size(); ++k) {
      const double x = values[k], h = 1e-6;
      values[k] = x + h;
      const double up = layer.loss();
      values[k] = x - h;
      const double down = layer.loss();
      values[k] = x;
      CAPTURE(k);
      CHECK(gradient[k] == doctest::Approx((up - down) / (2 * h)).epsilon(1e-6).scale(1));
    }
  };
  const auto grad_a = layer.grad_a, grad_p = layer.grad_p;
  check(layer.a, grad_a);
  check(layer.p, grad_p);
}

TEST_CASE("an expert without a step gives nothing, and no experts at all write zeros") {
  latent_layer<float> layer({2, 3, 4}, 5, {.radius = 1}, 23);
  std::fill(layer.router.begin(), layer.router.begin() + 5, 0.0F);
  layer.backward(gradient_mode::write);
  CHECK(std::all_of(layer.grad_a.begin(), layer.grad_a.begin() + 12, [](float x) { return x == 0; }));
  const auto with_two = layer.grad_p;
  latent_layer<float> alone({1, 3, 4}, 5, {.radius = 1}, 23);
  std::copy_n(layer.a.begin() + 12, 12, alone.a.begin());
  alone.p = layer.p;
  std::copy_n(layer.router.begin() + 5, 5, alone.router.begin());
  std::copy_n(layer.grad_rows.begin() + 5, 5, alone.grad_rows.begin());
  alone.backward(gradient_mode::write);
  CHECK(alone.grad_p == with_two);
  latent_layer<float> none({0, 3, 4}, 5, {.radius = 1}, 24);
  none.backward(gradient_mode::write);
  CHECK(none.grad_p == std::vector<float>(20));
}

TEST_CASE("what latent_vjp refuses") {
  latent_layer<double> layer({2, 3, 4}, 5, {}, 25);
  layer.backward(gradient_mode::write);
  std::vector<double> space(to_size(latent_vjp_workspace(layer.of_products(), 4)));
  const auto message = [&](const router_factors<double>& of_gates, index_t rows, index_t scratch) {
    return message_of([&] {
      latent_vjp(layer.gates(), layer.projections(), layer.of_products(), of_gates,
                 row_major(layer.grad_p.data(), rows, 5), gradient_mode::write,
                 vector_view<double>(space.data(), scratch));
    });
  };
  const auto size = static_cast<index_t>(space.size());
  CHECK(contains(message(layer.of_products(), 4, size), "P is [L = 5, D = 5], its gradient is [4, 5]"));
  CHECK(contains(message(layer.of_gates(), 3, size), "P is [L = 4, D = 5], its gradient is [3, 5]"));
  CHECK(contains(message(layer.of_gates(), 4, size - 1), "the workspace has 15 elements, not 16"));
  CHECK(contains(message(router_factors<double>(layer.gate_factors, {1, 3, 4}, layer.options), 4, size),
                 "1 factors of A P for [2, 3, 5], 1 of A for [1, 3, 4]"));
  CHECK(contains(message_of([&] {
                   latent_vjp(layer.projections(), layer.projections(), layer.of_products(), layer.of_gates(),
                              row_major(layer.grad_p.data(), 4, 5), gradient_mode::write, space);
                 }),
                 "expert 0 is [4, 5], P is [4, 5], the factors are for F = 3, L = 4, D = 5"));
  CHECK(contains(message(layer.of_gates(), 5, size), "P is [L = 4, D = 5], its gradient is [5, 5]"));
  const std::vector<double> others(24, 1.0);
  const auto mixed = [&](const matrix_view<const double>& gate, const matrix_view<const double>& projection) {
    return message_of([&] {
      latent_vjp([&](index_t) { return gram(gate); }, [&](index_t) { return gram(projection); },
                 layer.of_products(), layer.of_gates(), row_major(layer.grad_p.data(), 4, 5),
                 gradient_mode::write, space);
    });
  };
  const auto of = [&](index_t rows, index_t cols) { return row_major(others.data(), rows, cols); };
  const char* const shapes = ", the factors are for F = 3, L = 4, D = 5";
  CHECK(contains(mixed(of(4, 4), of(4, 5)), std::string("expert 0 is [4, 4], P is [4, 5]") + shapes));
  CHECK(contains(mixed(of(3, 5), of(4, 5)), std::string("expert 0 is [3, 5], P is [4, 5]") + shapes));
  CHECK(contains(mixed(of(3, 4), of(3, 5)), std::string("expert 0 is [3, 4], P is [3, 5]") + shapes));
  CHECK(contains(mixed(of(3, 4), of(4, 6)), std::string("expert 0 is [3, 4], P is [4, 6]") + shapes));
  refuses_every_overlap<double>(
      {{"the factors of A P", layer.factors.size(), false},
       {"the factors of A", layer.gate_factors.size(), true},
       {"the gradient of P", layer.grad_p.size(), true},
       {"the workspace", space.size(), true}},
      [&](const std::vector<double*>& at) {
        const auto view = [&](std::size_t k, std::size_t count) {
          return vector_view<double>(at[k], static_cast<index_t>(count));
        };
        latent_vjp(
            layer.gates(), layer.projections(),
            router_factors<double>(view(0, layer.factors.size()), layer.product_shape(), layer.options),
            router_factors<double>(view(1, layer.gate_factors.size()), layer.gate_shape(), layer.options),
            row_major(at[2], 4, 5), gradient_mode::write, view(3, space.size()));
      });
}

}  // namespace test_latent_vjp
