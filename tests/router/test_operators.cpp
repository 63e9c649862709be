// The batched step over operators: of dense gate matrices it is that of dense experts, bit by bit,
// by-products, tape and gradients with it; latent, sharded and hand-made operators are what their explicit
// matrices are.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/row_images.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/executors.hpp>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

namespace test_operators {
using namespace mpi_router;
using namespace test_support;

namespace {

std::size_t to_size(index_t count) { return static_cast<std::size_t>(count); }

/// A router [N, D] and a gradient, and all that steps and their backwards make of them.
template <class S>
struct problem {
  expert_shape shape;
  router_options options;
  std::vector<S> router, grad_rows;

  struct results {
    std::vector<S> rows, tape, grad_router, detached, factors, numbers, images;
    std::vector<status> statuses;
    friend bool operator==(const results&, const results&) = default;
  };

  problem(const expert_shape& s, const router_options& o, std::uint64_t seed) : shape(s), options(o) {
    random_source random(seed);
    router = random_vector<S>(random, s.num_experts * s.hidden_dim);
    grad_rows = random_vector<S>(random, s.num_experts * s.hidden_dim);
  }
  template <class V>
  auto matrix(V& v) const {
    return row_major(v.data(), shape.num_experts, shape.hidden_dim);
  }

  /// call(f, …) calls f with the experts, dense or operators, and what follows the workspace.
  template <class Experts, class... Rest>
  results run(const Experts& experts, const Rest&... rest) const {
    const auto [n, f, d] = shape;
    results r{.rows = std::vector<S>(router.size()),
              .tape = std::vector<S>(to_size(router_tape_size(shape, options))),
              .grad_router = std::vector<S>(router.size()),
              .detached = std::vector<S>(router.size()),
              .factors = std::vector<S>(to_size(router_factors<S>::size(shape, options))),
              .numbers = std::vector<S>(to_size(7 * n)),
              .images = std::vector<S>(router.size()),
              .statuses = std::vector<status>(to_size(n))};
    std::vector<S> work(to_size(router_rows_vjp_workspace(shape)));
    const auto told = [&](index_t k) { return vector_view<S>(r.numbers.data() + k * n, n); };
    const router_by_products<S> all{r.statuses, told(0), told(1), r.tape, told(2), told(3), told(4), told(5)};
    router_rows(experts, matrix(router), matrix(r.rows), options, work, all, rest...);
    auto state = router;
    stateful_router_rows(experts, matrix(state), options, work, {}, rest...);
    CHECK(state == r.rows);
    router_rows_vjp_factored(experts, matrix(router), r.tape, matrix(grad_rows), options,
                             matrix(r.grad_router), router_factors<S>(r.factors, shape, options),
                             gradient_mode::write, work, rest...);
    router_rows_vjp_detached(experts, matrix(router), r.tape, matrix(grad_rows), options, matrix(r.detached),
                             gradient_mode::write, work, rest...);
    images_of_rows(experts, matrix(router), matrix(r.images), told(6), work, rest...);
    return r;
  }
};

template <class T>
auto dense_operators(const expert_batch_view<T>& experts) {
  return [experts](index_t i) { return gram(experts[i]); };
}

template <class S>
double distance(const std::vector<S>& a, const std::vector<S>& b) {
  return relative_distance(a, b);
}

}  // namespace

#if defined(MPIROUTER_TEST_SHORT)
#define STORAGE_TYPES bf16  // one has the memory accesses of all
#else
#define STORAGE_TYPES double, float, bf16
#endif
TEST_CASE_TEMPLATE("operators of dense gate matrices give the bits of dense experts", T, STORAGE_TYPES) {
#undef STORAGE_TYPES
  using S = accumulator_t<T>;
  for (const expert_shape& shape : {expert_shape{1, 1, 1}, {3, 5, 7}, {4, 33, 18}, {2, 64, 130}, {0, 4, 4}}) {
    for (const index_t steps : {1, 3}) {
      for (const auto through : {differentiate::all, differentiate::last}) {
        for (const double scale : {1.0, 1e-30}) {  // squares of the second leave the range of float
          const problem<S> p(shape, {.radius = 2, .steps = steps, .through = through}, 3);
          random_source random(5);
          const auto a =
              random_vector<T>(random, shape.num_experts * shape.ffn_dim * shape.hidden_dim, scale);
          const auto experts = experts_nfd(a.data(), shape);
          const auto want = p.run(experts, reference{});
          CHECK(p.run(dense_operators(experts)) == want);
          CHECK(p.run(dense_operators(experts), thread_executor{3}) == want);
          CHECK(p.run(dense_operators(experts), reverse_executor{}) == want);
        }
      }
    }
  }
}

TEST_CASE("rows without a step are named, whatever the operator") {
  const expert_shape shape{5, 6, 8};
  problem<double> p(shape, {.steps = 2}, 7);
  random_source random(8);
  auto a = random_vector<double>(random, 240);
  std::fill_n(p.router.begin() + 8, 8, 0.0);
  std::fill_n(a.begin() + 96, 48, 0.0);
  p.router[27] = std::nan("");
  a[195] = std::numeric_limits<double>::infinity();
  const auto experts = experts_nfd(a.data(), shape);
  const auto plain = [&](index_t i) {  // knows neither its factor nor other scales
    return gram_operator<double>(8, [op = gram(experts[i])](auto x, auto u) { return op.apply(x, u); });
  };
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    p.options.degenerate = policy;
    std::vector<double> rows(40), cosine(5), tape(to_size(router_tape_size(shape, p.options))),
        work(to_size(router_rows_vjp_workspace(5, 0, 8))), grad(40);
    std::vector<status> statuses(5);
    router_rows(plain, p.matrix(p.router), p.matrix(rows), p.options, work,
                {.statuses = statuses, .cosine = cosine, .tape = tape});
    CHECK(statuses == std::vector{status::ok, status::zero_row, status::zero_image, status::non_finite,
                                  status::non_finite});
    CHECK(cosine[0] > 0);
    router_rows_vjp_detached(plain, p.matrix(p.router), tape, p.matrix(p.grad_rows), p.options,
                             p.matrix(grad), gradient_mode::write, work);
    for (std::size_t k = 8; k < 40; ++k) {
      const double before = p.router[k];
      const double kept = policy == degenerate_row::keep ? before : 0.0;
      CHECK((rows[k] == kept || (std::isnan(rows[k]) && std::isnan(kept))));
      CHECK(grad[k] == (policy == degenerate_row::keep ? p.grad_rows[k] : 0.0));
    }
  }
}

TEST_CASE("a latent expert is its explicit product, its gradients too") {
  constexpr index_t N = 3, F = 9, L = 5, D = 12;
  random_source random(11);
  const auto a = random_vector<double>(random, N * F * L);
  const auto projection = random_vector<double>(random, L * D);
  const auto latent = experts_nfd(a.data(), {N, F, L});
  const auto P = row_major(projection.data(), L, D);
  std::vector<double> product(to_size(N * F * D));
  for (index_t i = 0; i < N * F; ++i) {
    for (index_t d = 0; d < D; ++d) {
      double& sum = product[to_size(i * D + d)];
      for (index_t l = 0; l < L; ++l) sum += a[to_size(i * L + l)] * projection[to_size(l * D + d)];
    }
  }
  std::vector<double> scratch(to_size(N * 2 * L));
  const auto operators = [&](index_t i) {
    return composed(gram(P), gram(latent[i]), vector_view<double>(scratch.data() + i * 2 * L, 2 * L));
  };
  const problem<double> p({N, F, D}, {.steps = 2}, 12);
  const auto got = p.run(operators);
  const auto want = p.run(experts_nfd(product.data(), {N, F, D}));
  CHECK(got.statuses == want.statuses);
  CHECK(distance(got.rows, want.rows) < 1e-12);
  CHECK(distance(got.numbers, want.numbers) < 1e-12);
  CHECK(distance(got.images, want.images) < 1e-12);
  CHECK(distance(got.grad_router, want.grad_router) < 1e-12);
  CHECK(distance(got.detached, want.detached) < 1e-12);
  CHECK(distance(got.factors, want.factors) < 1e-12);
  CHECK(p.run(operators, thread_executor{3}) == got);
  CHECK(refused(
      [&] { static_cast<void>(composed(gram(P), gram(P), vector_view<double>(scratch.data(), 2 * L))); },
      "composed: P is [L = 5, D = 12], the inner operator has dimension 12"));
  CHECK(refused(
      [&] {
        static_cast<void>(composed(gram(P), gram(latent[0]), vector_view<double>(scratch.data(), 2 * L - 1)));
      },
      "composed: the scratch has 9 elements, not 10"));
}

TEST_CASE("neurons over shards: each gives its part, the sum is the whole") {
  const expert_shape shape{2, 11, 6};
  random_source random(13);
  const auto a = random_vector<double>(random, 132);
  const auto experts = experts_nfd(a.data(), shape);
  const auto operators = [&](index_t i) {
    return gram_operator<double>(6, [&, i](auto x, auto u) {
      std::vector<double> other(6);
      const double energy = gram(experts[i].middle_rows(0, 4)).apply(x, u) +
                            gram(experts[i].middle_rows(4, 7)).apply(x, vector_view<double>(other));
      for (index_t d = 0; d < 6; ++d) u[d] += other[to_size(d)];
      return energy;
    });
  };
  const problem<double> p(shape, {.steps = 3}, 14);
  std::vector<double> rows(12), want(12), work(to_size(router_rows_workspace(2, 6)));
  CHECK(router_rows_workspace(2, 6) == 26);
  router_rows(operators, p.matrix(p.router), p.matrix(rows), p.options, work);
  router_rows(experts, p.matrix(p.router), p.matrix(want), p.options, work);
  CHECK(distance(rows, want) < 1e-12);
}

TEST_CASE("an operator by reference, which the caller keeps") {
  struct counting {
    using scalar = float;
    index_t applications = 0;
    static index_t dimension() { return 3; }
    float apply(vector_view<const float> x, vector_view<float> u) {
      ++applications;
      float energy = 0;
      for (index_t d = 0; d < 3; ++d) {
        u[d] = static_cast<float>(d + 1) * x[d];
        energy += u[d] * x[d];
      }
      return energy;
    }
  };
  std::vector<counting> kept(4);
  const auto operators = [&](index_t i) -> counting& { return kept[to_size(i)]; };
  const std::vector<float> router(12, 1);
  std::vector<float> rows(12), work(28);
  router_rows(operators, row_major(router.data(), 4, 3), row_major(rows.data(), 4, 3),
              {.radius = 1, .steps = 5}, work);
  for (const counting& op : kept) CHECK(op.applications == 5);
  for (index_t i = 0; i < 4; ++i) CHECK(rows[to_size(3 * i + 2)] > 0.99F);
}

TEST_CASE("what operators and their memory must be") {
  constexpr expert_shape shape{4, 3, 5};
  constexpr router_options options{.steps = 2};
  std::vector<float> a(60, 1);
  const auto experts = experts_nfd(static_cast<const float*>(a.data()), shape);
  const auto operators = dense_operators(experts);
  const auto rows_at = [](float* data) { return row_major(data, 4, 5); };
  const auto at_size = [](float* data, index_t size) { return vector_view<float>(data, size); };
  const index_t work = router_rows_workspace(4, 5), tape = router_tape_size(shape, options);
  refuses_every_overlap<float>(
      {{"the router", 20, false},
       {"the output", 20, true},
       {"the workspace", to_size(work), true},
       {"the tape", to_size(tape), true},
       {"cosine", 4, true},
       {"residual", 4, true}},
      [&](const auto& at) {
        router_rows(
            operators, rows_at(at[0]), rows_at(at[1]), options, at_size(at[2], work),
            {.cosine = at_size(at[4], 4), .tape = at_size(at[3], tape), .residual = at_size(at[5], 4)});
      });
  const index_t back = router_rows_vjp_workspace(4, 3, 5),
                of_factors = router_factors<float>::size(shape, options);
  refuses_every_overlap<float>({{"the router", 20, false},
                                {"the tape", to_size(tape), false},
                                {"the gradient of the rows", 20, false},
                                {"the gradient to the router", 20, true},
                                {"the gradient to the experts", to_size(of_factors), true},
                                {"the workspace", to_size(back), true}},
                               [&](const auto& at) {
                                 router_rows_vjp_factored(
                                     operators, rows_at(at[0]), at_size(at[1], tape), rows_at(at[2]), options,
                                     rows_at(at[3]),
                                     router_factors<float>(at_size(at[4], of_factors), shape, options),
                                     gradient_mode::write, at_size(at[5], back));
                               },
                               {{"the gradient to the router", "the gradient of the rows"}});

  std::vector<float> r(24, 1), out(24), scratch(to_size(back)), taped(to_size(tape)), factored(400);
  CHECK(refused([&] { router_rows(operators, rows_at(r.data()), rows_at(r.data()), {}, scratch); },
                "router_rows: the router and the output overlap"));
  CHECK(refused(
      [&] { router_rows(operators, row_major(r.data(), 4, 6), row_major(out.data(), 4, 6), {}, scratch); },
      "router_rows: operator 0 has dimension 5, the router is [4, 6]"));
  CHECK(refused([&] { router_rows(operators, rows_at(r.data()), row_major(out.data(), 3, 5), {}, scratch); },
                "the output is [3, 5]"));
  CHECK(refused(
      [&] {
        router_rows(operators, rows_at(r.data()), rows_at(out.data()), {}, at_size(scratch.data(), work - 1));
      },
      "the workspace has 43 elements"));
  CHECK(
      refused([&] { stateful_router_rows(operators, rows_at(r.data()), options, scratch, {.tape = taped}); },
              "stateful_router_rows: a tape is for the stateless form"));
  CHECK(refused(
      [&] {
        const router_factors<float> other(factored, {4, 2, 5}, options);
        router_rows_vjp_factored(operators, rows_at(r.data()), taped, rows_at(r.data()), options,
                                 rows_at(out.data()), other, gradient_mode::write, scratch);
      },
      "router_rows_vjp_factored: operator 0 has F = 3, the factors have F = 2"));
}

}  // namespace test_operators
