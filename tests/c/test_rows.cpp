// The step and its gradients through the C interface: the bits of the C++ library, for every type, layout,
// number of steps, and with the caller's threads.
#include <mpi_router/backend/runtime_dispatch.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>

#include "arrays.hpp"

using namespace c_tests;
using test_support::layout;
using test_support::stored_matrix;

namespace {

constexpr expert_shape small{3, 5, 7}, wide{2, 33, 70}, one{1, 1, 1}, no_experts{0, 4, 6},
    no_neurons{2, 0, 6};

template <class T>
stored_matrix<T> random_rows(random_source& random, const expert_shape& s, layout l) {
  return {test_support::random_matrix<double>(random, s.num_experts, s.hidden_dim), s.num_experts,
          s.hidden_dim, l};
}
template <class T>
stored_matrix<T> zeros(const expert_shape& s, layout l) {
  return {std::vector<double>(static_cast<std::size_t>(s.num_experts * s.hidden_dim)), s.num_experts,
          s.hidden_dim, l};
}
template <class T>
std::vector<T> elements(const stored_matrix<T>& m) {
  std::vector<T> out;
  const auto view = m.view();
  for (index_t i = 0; i < view.rows() * view.cols(); ++i)
    out.push_back(view(i / view.cols(), i % view.cols()));
  return out;
}
mpi_router_options c_options(index_t steps, std::int32_t through = MPIROUTER_THROUGH_ALL) {
  mpi_router_options o = mpi_router_default_options();
  o.steps = steps;
  o.through = through;
  return o;
}

/// Everything that a step tells, through C++ and through C.
template <class T, class R>
struct told_both_ways {
  using S = router_scalar_t<T, R>;
  explicit told_both_ways(const expert_shape& s, const router_options& o)
      : n(static_cast<std::size_t>(s.num_experts)),
        tape(static_cast<std::size_t>(router_tape_size(s, o))),
        c_tape(tape.size()) {}

  void check() {
    CHECK(same_bits(tape, c_tape));
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(c_statuses[i] == static_cast<std::uint8_t>(statuses[i]));
      for (std::size_t k = 0; k < 6; ++k) CHECK(c_numbers[k][i] == static_cast<double>(numbers[k][i]));
    }
  }
  router_by_products<S> cpp() {
    return {.statuses = statuses,
            .rayleigh = numbers[0],
            .cosine = numbers[1],
            .tape = tape,
            .residual = numbers[2],
            .energy = numbers[3],
            .row_norm = numbers[4],
            .image_norm = numbers[5]};
  }
  mpi_router_by_products c() {
    return {c_statuses.data(),   c_numbers[0].data(), c_numbers[1].data(), c_numbers[2].data(),
            c_numbers[3].data(), c_numbers[4].data(), c_numbers[5].data()};
  }
  mpi_router_buffer buffer() { return {c_tape.data(), static_cast<std::int64_t>(c_tape.size() * sizeof(S))}; }

  std::size_t n;
  std::vector<S> tape, c_tape;
  std::vector<status> statuses{std::vector<status>(n)};
  std::vector<std::uint8_t> c_statuses = std::vector<std::uint8_t>(n, 77);
  std::vector<std::vector<S>> numbers{6, std::vector<S>(n)};
  std::vector<std::vector<double>> c_numbers{6, std::vector<double>(n, -1)};
};

/// One problem, solved by both; the backward in all its forms.
template <class T, class R>
class both_ways {
 public:
  using S = router_scalar_t<T, R>;
  both_ways(const expert_shape& s, expert_layout l, layout rows_layout, index_t steps)
      : shape(s),
        options{.steps = steps},
        o(c_options(steps)),
        rows_in(rows_layout),
        experts(s, l),
        router(random_rows<R>(random, s, rows_layout)),
        incoming(random_rows<R>(random, s, rows_layout)),
        told(s, options) {
    experts.fill([&] { return random.normal(); });
    if (s.num_experts > 2) {
      for (index_t d = 0; d < s.hidden_dim; ++d) router.view()(1, d) = R{};  // a row without a step
    }
  }

  void forward() {
    auto rows = zeros<R>(shape, rows_in);
    auto c_rows = zeros<R>(shape, layout::row_major);
    std::vector<S> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
    const auto in = std::as_const(router).view();
    router_rows(experts.view(), in, rows.view(), options, workspace, told.cpp(), dispatch{});
    const auto ce = c_experts(experts.view());
    const auto cr = c_matrix(in), co = c_matrix(c_rows.view());
    const auto by = told.c();
    const auto tape = told.buffer();
    three_threads threads;
    const auto run = threads.c();
    std::int64_t bytes = 0;
    CHECK(mpi_router_tape_size(&ce, &o, &bytes) == MPIROUTER_OK);
    CHECK(bytes == tape.bytes);
    CHECK(mpi_router_rows(&ce, &cr, &o, &co, &by, &tape, &run) == MPIROUTER_OK);
    CHECK((threads.tasks > 0) == (shape.num_experts > 0));
    CHECK(same_bits(elements(rows), elements(c_rows)));
    told.check();

    auto state = router;
    const auto cs = c_matrix(state.view());
    CHECK(mpi_router_stateful_rows(&ce, &cs, &o, nullptr, nullptr) == MPIROUTER_OK);
    CHECK(same_bits(elements(rows), elements(state)));
  }

  template <class G>
  void written(gradient_mode mode, expert_layout l) {
    auto grad_router = router, c_grad_router = router;
    stored_experts<G> gradient(shape, l), c_gradient(shape, l);
    for (auto* g : {&gradient, &c_gradient}) {
      random_source same(7);
      g->fill([&] { return same.normal(); });
    }
    router_rows_vjp(experts.view(), router.view(), told.tape, incoming.view(), options, grad_router.view(),
                    gradient.view(), mode, scratch(), dispatch{});
    const auto cg = c_experts(c_gradient.view());
    CHECK(call(c_grad_router, mode, [&](auto... a) {
            return mpi_router_rows_vjp(a..., &cg, c_mode(mode), nullptr);
          }) == MPIROUTER_OK);
    CHECK(same_bits(elements(grad_router), elements(c_grad_router)));
    CHECK(same_bits(gradient.elements(), c_gradient.elements()));
  }

  void factored(std::int32_t through) {
    options.through = static_cast<differentiate>(through);
    o.through = through;
    std::vector<S> buffer(static_cast<std::size_t>(router_factors<S>::size(shape, options))),
        c_buffer(buffer.size());
    auto grad_router = router, c_grad_router = router;
    const router_factors<S> factors(buffer, shape, options);
    router_rows_vjp_factored(experts.view(), router.view(), told.tape, incoming.view(), options,
                             grad_router.view(), factors, gradient_mode::write, scratch(), dispatch{});
    const mpi_router_buffer cf{c_buffer.data(), static_cast<std::int64_t>(c_buffer.size() * sizeof(S))};
    const auto ce = c_experts(experts.view());
    std::int64_t bytes = 0;
    CHECK(mpi_router_factors_size(&ce, &o, &bytes) == MPIROUTER_OK);
    CHECK(bytes == cf.bytes);
    CHECK(call(c_grad_router, gradient_mode::write, [&](auto... a) {
            return mpi_router_rows_vjp_factored(a..., &cf, MPIROUTER_WRITE, nullptr);
          }) == MPIROUTER_OK);
    CHECK(same_bits(elements(grad_router), elements(c_grad_router)));
    CHECK(same_bits(buffer, c_buffer));

    stored_experts<T> sum(shape, expert_layout::ndf), c_sum(shape, expert_layout::ndf);
    add_factors(factors, sum.view(), gradient_mode::accumulate, S{-0.5});
    const auto cs = c_experts(c_sum.view());
    CHECK(mpi_router_add_factors(&cf, dtype_of<T>(), &o, -0.5, &cs, MPIROUTER_ACCUMULATE, nullptr) ==
          MPIROUTER_OK);
    CHECK(same_bits(sum.elements(), c_sum.elements()));
  }

  void detached() {
    auto grad_router = router, c_grad_router = router;
    router_rows_vjp_detached(experts.view(), router.view(), told.tape, incoming.view(), options,
                             grad_router.view(), gradient_mode::accumulate, scratch(), dispatch{});
    CHECK(call(c_grad_router, gradient_mode::accumulate, [&](auto... a) {
            return mpi_router_rows_vjp_detached(a..., MPIROUTER_ACCUMULATE, nullptr);
          }) == MPIROUTER_OK);
    CHECK(same_bits(elements(grad_router), elements(c_grad_router)));
  }

 private:
  static std::int32_t c_mode(gradient_mode mode) { return static_cast<std::int32_t>(mode); }
  std::vector<S> scratch() {
    return std::vector<S>(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  }

  /// The arguments that all forms of the backward begin with.
  template <class Call>
  mpi_router_code call(stored_matrix<R>& grad_router, gradient_mode, const Call& backward) {
    const auto ce = c_experts(experts.view());
    const auto cr = c_matrix(router.view()), cg = c_matrix(incoming.view()),
               out = c_matrix(grad_router.view());
    const auto tape = told.buffer();
    return backward(&ce, &cr, &o, &tape, &cg, &out);
  }

  random_source random{17};
  expert_shape shape;
  router_options options;
  mpi_router_options o;
  layout rows_in;
  stored_experts<T> experts;
  stored_matrix<R> router, incoming;
  told_both_ways<T, R> told;
};

template <class T, class R>
void same_both_ways() {
  for (const auto& shape : {small, wide, one, no_experts, no_neurons}) {
    for (const auto& [experts_in, name] : expert_layouts) {
      for (const index_t steps : {1, 3}) {
        CAPTURE(name);
        CAPTURE(shape.hidden_dim);
        CAPTURE(steps);
        const layout rows_in = steps == 1 ? layout::row_major : layout::both_strided;
        both_ways<T, R> problem(shape, experts_in, rows_in, steps);
        problem.forward();
        problem.template written<T>(gradient_mode::write, experts_in);
        problem.template written<router_scalar_t<T, R>>(gradient_mode::accumulate, expert_layout::nfd);
        problem.factored(MPIROUTER_THROUGH_ALL);
        problem.factored(MPIROUTER_THROUGH_LAST);
        problem.detached();
      }
    }
  }
}

}  // namespace

TEST_CASE("doubles, with rows in doubles and in floats") {
  same_both_ways<double, double>();
  same_both_ways<double, float>();
}
TEST_CASE("floats") { same_both_ways<float, float>(); }
TEST_CASE("bf16, with rows in floats and in bf16") {
  same_both_ways<bf16, float>();
  same_both_ways<bf16, bf16>();
}
TEST_CASE("f16, with rows in f16") { same_both_ways<f16, f16>(); }

TEST_CASE("the options are those of the library") {
  const router_options o;
  const auto c = mpi_router_default_options();
  CHECK(c.radius_rule == MPIROUTER_RADIUS_SCALE_FREE);
  CHECK(router_radius::scale_free(c.radius, c.total_experts).of(9) == o.radius.of(9));
  CHECK(c.steps == o.steps);
  CHECK(c.degenerate == static_cast<std::int32_t>(o.degenerate));
  CHECK(c.through == static_cast<std::int32_t>(o.through));
}
