// The batched step is the single step of every expert; statuses, radius, layouts, storage types, both modes.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/router/router_rows.hpp>

#include <doctest/doctest.h>
#include <support/layouts.hpp>
#include <support/messages.hpp>

#include "batch.hpp"

#include <numeric>

namespace test_rows {
using namespace mpi_router;
using namespace test_support;

namespace {

template <class S>
std::vector<double> as_double(const std::vector<S>& x) {
  std::vector<double> out;
  out.reserve(x.size());
  for (const S& v : x) out.push_back(widen<double>(v));
  return out;
}

template <class T, class Backend>
void equals_single_steps(batch_layout l, const expert_shape& shape, index_t steps, const Backend& backend) {
  using S = accumulator_t<T>;
  random_source random(static_cast<std::uint64_t>(shape.num_experts * 100 + shape.ffn_dim + 7 * steps));
  const auto [n, f, d] = shape;
  stored_batch<T> experts(random_vector<float>(random, n * f * d), shape, l);
  const auto router = random_vector<T>(random, n * d);
  router_options options;
  options.radius = router_radius::scale_free(3);
  options.steps = steps;
  std::vector<T> rows(router.size());
  std::vector<S> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  std::vector<S> rayleigh_of(static_cast<std::size_t>(n)), cosine_of(rayleigh_of), residual(rayleigh_of),
      energy(rayleigh_of), row_norm(rayleigh_of), image_norm(rayleigh_of);
  std::vector<S> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
  std::vector<status> statuses(static_cast<std::size_t>(n));
  router_rows(experts.view(), row_major(router.data(), n, d), row_major(rows.data(), n, d), options,
              workspace, {statuses, rayleigh_of, cosine_of, tape, residual, energy, row_norm, image_norm},
              backend);
  std::vector<T> without_tape(rows.size());
  router_rows(experts.view(), row_major(router.data(), n, d), row_major(without_tape.data(), n, d), options,
              workspace, {}, backend);
  auto state = router;
  stateful_router_rows(experts.view(), row_major(state.data(), n, d), options, workspace, {}, backend);

  for (index_t i = 0; i < n; ++i) {
    std::vector<double> a;
    a.reserve(static_cast<std::size_t>(f * d));
    for (index_t k = 0; k < f * d; ++k) a.push_back(widen<double>(experts.view()[i](k / d, k % d)));
    std::vector<double> row = as_double(std::vector<T>(router.begin() + i * d, router.begin() + (i + 1) * d));
    std::vector<double> out(row);
    step_result<double> last;
    rayleigh_result<double> at;
    double norm = 0;
    for (index_t s = 0; s < steps; ++s) {
      norm = std::sqrt(std::inner_product(row.begin(), row.end(), row.begin(), 0.0));
      at =
          rayleigh(gram(row_major(a.data(), f, d)), vector_view<const double>(row), vector_view<double>(out));
      last = power_step(gram(row_major(a.data(), f, d)), vector_view<const double>(row),
                        vector_view<double>(out), 3.0 / std::sqrt(static_cast<double>(n)));
      row = out;
    }
    const std::vector<T> got(rows.begin() + i * d, rows.begin() + (i + 1) * d);
    CHECK(relative_distance(as_double(got), row) < tolerance<T>.identity + 2 * tolerance<T>.storage);
    const auto k = static_cast<std::size_t>(i);
    CHECK(statuses[k] == status::ok);
    CHECK(close(static_cast<double>(rayleigh_of[k]), last.rayleigh, tolerance<T>.identity));
    CHECK(close(static_cast<double>(cosine_of[k]), last.cosine, tolerance<T>.identity));
    CHECK(std::abs(static_cast<double>(residual[k]) - at.residual) <=
          4 * tolerance<T>.identity * (at.residual + at.rayleigh));
    CHECK(close(static_cast<double>(energy[k]), last.rayleigh * norm * norm, tolerance<T>.identity));
    CHECK(close(static_cast<double>(row_norm[k]), norm, tolerance<T>.identity));
    CHECK(
        close(static_cast<double>(image_norm[k]), last.rayleigh * norm / last.cosine, tolerance<T>.identity));
  }
  for (std::size_t k = 0; k < rows.size(); ++k) {
    CHECK(widen<double>(rows[k]) == widen<double>(without_tape[k]));
    CHECK(widen<double>(rows[k]) == widen<double>(state[k]));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("router_rows takes the step of every expert", T, double, float, bf16, f16) {
  for (const batch_layout l : all_batch_layouts) {
    CAPTURE(to_string(l));
    for (const index_t steps : {1, 3}) {
      for (const expert_shape shape : {expert_shape{1, 1, 1}, expert_shape{3, 5, 7}, expert_shape{5, 33, 64},
                                       expert_shape{2, 64, 33}, expert_shape{4, 17, 130}}) {
        equals_single_steps<T>(l, shape, steps, reference{});
        equals_single_steps<T>(l, shape, steps, simd{});
      }
    }
  }
}

TEST_CASE("rows may be stored otherwise than the experts, in any strides") {
  random_source random(5);
  const expert_shape shape{3, 9, 11};
  stored_batch<bf16> experts(random_vector<float>(random, 297), shape, batch_layout::nfd);
  const auto router = random_vector<float>(random, 33);
  std::vector<float> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  std::vector<float> plain(33);
  router_rows(experts.view(), row_major(router.data(), 3, 11), row_major(plain.data(), 3, 11), {}, workspace);
  for (const layout l : all_layouts) {
    const stored_matrix<float> in(router, 3, 11, l);
    stored_matrix<float> out(3, 11, l);
    router_rows(experts.view(), in.view(), out.view(), {}, workspace);
    for (index_t k = 0; k < 33; ++k) CHECK(out.view()(k / 11, k % 11) == plain[static_cast<std::size_t>(k)]);
  }
}

TEST_CASE("every row lies on the sphere of its radius") {
  CHECK(router_radius::scale_free(4).of(64) == 0.5);
  CHECK(router_radius::scale_free(4, 64).of(3) == 0.5);
  CHECK(router_radius{}.of(64) == 0.5);
  CHECK(router_radius::fixed(4).of(64) == 4);
  CHECK(router_options{.radius = 4}.radius.of(64) == 4);  // a plain number is C itself
  random_source random(6);
  const expert_shape shape{16, 6, 20};
  stored_batch<double> experts(random_vector<double>(random, 1920), shape, batch_layout::nfd);
  const auto router = random_vector<double>(random, 320);
  std::vector<double> rows(router.size()), workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  for (const auto radius : {router_radius::scale_free(4), router_radius::fixed(0.3)}) {
    router_options options;
    options.radius = radius;
    router_rows(experts.view(), row_major(router.data(), 16, 20), row_major(rows.data(), 16, 20), options,
                workspace);
    for (std::size_t i = 0; i < 16; ++i) {
      double square = 0;
      for (std::size_t d = 0; d < 20; ++d) square += rows[i * 20 + d] * rows[i * 20 + d];
      CHECK(close(std::sqrt(square), radius.of(16), 1e-14));
    }
  }
}

TEST_CASE("the step of a part of the experts is that part of the step") {
  random_source random(8);
  const expert_shape shape{7, 5, 12};
  stored_batch<double> stored(random_vector<double>(random, 420), shape, batch_layout::nfd);
  const expert_batch_view<const double> experts = stored.view();
  const auto router = random_vector<double>(random, 84);
  const auto all_rows = row_major(router.data(), 7, 12);
  std::vector<double> whole(84), part(84);
  std::vector<double> workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  router_rows(experts, all_rows, row_major(whole.data(), 7, 12), {}, workspace);
  for (index_t first = 0; first < 7; first += 3) {
    const index_t count = std::min<index_t>(3, 7 - first);
    const auto rows = all_rows.middle_rows(first, count);
    const auto out = row_major(part.data(), 7, 12).middle_rows(first, count);
    router_rows(experts.middle_experts(first, count), rows, out, {}, workspace);
    CHECK(std::equal(part.begin() + first * 12, part.begin() + (first + count) * 12,
                     whole.begin() + first * 12));
    // A rank holds its experts alone, and says how many there are.
    const auto local = experts_nfd(experts[first].data(), {count, 5, 12});
    router_rows(local, rows, out, {.radius = router_radius::scale_free(4, 7)}, workspace);
    CHECK(std::equal(part.begin() + first * 12, part.begin() + (first + count) * 12,
                     whole.begin() + first * 12));
  }
  CHECK(refused(
      [&] {
        router_rows(experts, all_rows, row_major(part.data(), 7, 12),
                    {.radius = router_radius::scale_free(4, 6)}, workspace);
      },
      "6 experts in all, where the call has 7"));
}

TEST_CASE_TEMPLATE("a degenerate row is named and leaves its neighbours alone", Backend, reference, simd) {
  random_source random(7);
  const expert_shape shape{5, 8, 40};
  auto values = random_vector<float>(random, 1600);
  auto router = random_vector<float>(random, 200);
  std::fill_n(router.begin() + 40, 40, 0.0F);                    // expert 1: no row
  std::fill_n(values.begin() + 640, 320, 0.0F);                  // expert 2: no image
  router[3 * 40 + 5] = std::numeric_limits<float>::quiet_NaN();  // expert 3: NaN row
  values[static_cast<std::size_t>(4 * 8 * 40 + 3)] =
      std::numeric_limits<float>::infinity();  // expert 4: infinite image
  stored_batch<float> experts(values, shape, batch_layout::nfd);
  std::vector<float> rows(router.size()), workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  std::vector<status> statuses(5);
  std::vector<float> numbers(25);
  const auto told = [&](index_t k) { return vector_view<float>(numbers.data() + 5 * k, 5); };
  router_options options;
  options.steps = 2;
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    options.degenerate = policy;
    router_rows(experts.view(), row_major(router.data(), 5, 40), row_major(rows.data(), 5, 40), options,
                workspace,
                {.statuses = statuses,
                 .rayleigh = told(0),
                 .residual = told(1),
                 .energy = told(2),
                 .row_norm = told(3),
                 .image_norm = told(4)},
                Backend{});
    for (std::size_t k = 0; k < 25; ++k)
      CHECK((numbers[k] == 0.0F) == (k % 5 != 0));  // only expert 0 has a step
    CHECK(statuses == std::vector{status::ok, status::zero_row, status::zero_image, status::non_finite,
                                  status::non_finite});
    for (std::size_t d = 0; d < 40; ++d) {
      CHECK(std::isfinite(rows[d]));
      CHECK(rows[40 + d] == 0.0F);
      CHECK(rows[80 + d] == (policy == degenerate_row::keep ? router[80 + d] : 0.0F));
      CHECK(rows[160 + d] == (policy == degenerate_row::keep ? router[160 + d] : 0.0F));
    }
  }
}

TEST_CASE("no experts at all is no work") {
  const expert_shape shape{0, 4, 4};
  float nothing = 0;
  std::vector<float> workspace;
  router_rows(experts_nfd(&nothing, shape), row_major(&nothing, 0, 4), row_major(&nothing, 0, 4), {},
              workspace);
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("a radius is refused before any task where the type of the sums does not hold it") {
  const expert_shape shape{2, 3, 4};
  std::vector<float> a(24, 1), r(8, 1), out(8),
      workspace(static_cast<std::size_t>(router_rows_workspace(shape)));
  for (const auto& [radius, digits] : {std::pair{1e-50, "1e-50"}, std::pair{1e50, "1e+50"}}) {
    bool ran = false;
    std::string message;
    try {
      router_rows(experts_nfd(a.data(), shape), row_major(r.data(), 2, 4), row_major(out.data(), 2, 4),
                  {.radius = router_radius::fixed(radius)}, workspace, {}, reference{},
                  [&](index_t, auto&&) { ran = true; });
    } catch (const usage_error& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK_FALSE(ran);
    CHECK(message.find(digits) != std::string::npos);
  }
}
#endif

}  // namespace test_rows
