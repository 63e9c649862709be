// A storage type that the library has not heard of, and all that it takes is its struct: weights, rows and
// gradients in it follow the same step, taken in f64.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/small_floats.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <vector>

namespace test_storage {
using namespace mpi_router;
using namespace test_support;

namespace {

template <class T>
std::vector<double> wide(const std::vector<T>& v) {
  std::vector<double> out;
  for (const T& x : v) out.push_back(widen<double>(x));
  return out;
}

/// A forward of two steps and its backward, all stored in T.
template <class T, class Backend>
struct step_in {
  using S = router_scalar_t<T, T>;
  std::vector<T> rows, grad_router, grad_experts;
  std::vector<S> cosine;

  step_in(const std::vector<T>& a, const std::vector<T>& r, const std::vector<T>& grad,
          const expert_shape& shape, const expert_strides& strides)
      : rows(r.size()),
        grad_router(r.size()),
        grad_experts(a.size()),
        cosine(static_cast<std::size_t>(shape.num_experts)) {
    const auto [n, f, d] = shape;
    const router_options options{.radius = 2, .steps = 2};
    const auto size = [](index_t count) { return static_cast<std::size_t>(count); };
    std::vector<S> tape(size(router_tape_size(shape, options)));
    std::vector<S> work(size(std::max(router_rows_workspace(shape), router_rows_vjp_workspace(shape))));
    const auto experts = experts_strided(a.data(), shape, strides);
    const auto in = row_major(r.data(), n, d);
    router_rows(experts, in, row_major(rows.data(), n, d), options, work, {.cosine = cosine, .tape = tape},
                Backend{});
    router_rows_vjp(experts, in, tape, row_major(grad.data(), n, d), options,
                    row_major(grad_router.data(), n, d), experts_strided(grad_experts.data(), shape, strides),
                    gradient_mode::write, work, Backend{});
  }
};

template <class T, class Backend>
void follows_f64() {
  for (const expert_shape& shape : {expert_shape{3, 9, 70}, {2, 70, 9}, {1, 1, 1}, {2, 130, 140}}) {
    const auto [n, f, d] = shape;
    for (const expert_strides& strides : {expert_strides{f * d, d, 1}, {f * d, 1, f}}) {
      random_source random(static_cast<std::uint64_t>(f + 2 * d));
      const auto a = random_vector<T>(random, n * f * d);
      const auto r = random_vector<T>(random, n * d);
      const auto grad = random_vector<T>(random, n * d);
      const step_in<T, Backend> got(a, r, grad, shape, strides);
      const step_in<double, reference> want(wide(a), wide(r), wide(grad), shape, strides);
      CAPTURE(f);
      CAPTURE(d);
      CHECK(relative_distance(wide(got.rows), want.rows) < 2 * tolerance<T>.storage);
      CHECK(relative_distance(got.cosine, want.cosine) < tolerance<T>.identity);
      if (d == 1) continue;  // no gradient: the row has one direction
      // Each step of a gradient to A is added in its storage; what is small there is subnormal.
      CHECK(relative_distance(wide(got.grad_router), want.grad_router) < 2 * tolerance<T>.storage);
      CHECK(relative_distance(wide(got.grad_experts), want.grad_experts) < 3 * tolerance<T>.storage);
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("the step and its gradients in a storage type of one's own", T, e4m3, e5m2, e6m9, bf16) {
  static_assert(Scalar<T> && std::is_same_v<accumulator_t<T>, float>);
  SUBCASE("reference") { follows_f64<T, reference>(); }
  SUBCASE("simd") { follows_f64<T, simd>(); }
}

TEST_CASE("what a storage type has no number for is an event of its row alone") {
  std::vector<e4m3> a(2 * 3 * 40, narrow<e4m3>(1.0F)), r(2 * 40, narrow<e4m3>(0.5F)), out(r.size());
  a[130] = narrow<e4m3>(1e9F);  // NaN
  std::vector<float> work(static_cast<std::size_t>(router_rows_workspace(expert_shape{2, 3, 40})));
  std::vector<status> statuses(2);
  router_rows(experts_nfd(a.data(), {2, 3, 40}), row_major(r.data(), 2, 40), row_major(out.data(), 2, 40), {},
              work, {.statuses = statuses}, simd{});
  CHECK(statuses == std::vector{status::ok, status::non_finite});
  CHECK(out[40].bits == r[40].bits);
}

}  // namespace test_storage
