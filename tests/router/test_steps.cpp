// Three steps of the batch are three steps of every expert, forward and backward, with one that has no step
// among them, and for a part of the experts as for the whole.
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>

#include <vector>

#include "batch.hpp"

namespace test_steps {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr expert_shape shape{3, 2, 4};
constexpr index_t N = 3, F = 2, D = 4, steps = 3;
constexpr double radius = 4 / 1.7320508075688772935;  // C′/√N of the whole

struct problem {
  std::vector<double> a, router, grad_rows;
  std::vector<double> rows, tape, workspace, rayleigh_of, cosine_of;
  std::vector<status> statuses;
  router_options options;

  explicit problem(degenerate_row policy = degenerate_row::keep, differentiate through = differentiate::all)
      : options{.steps = steps, .degenerate = policy, .through = through} {
    random_source random(3);
    a = random_vector<double>(random, N * F * D, 1000);
    router = random_vector<double>(random, N * D);
    grad_rows = random_vector<double>(random, N * D);
    std::fill_n(a.begin() + F * D, F * D, 0.0);  // expert 1 has no image
    rows.resize(router.size());
    tape.resize(static_cast<std::size_t>(router_tape_size(shape, options)));
    workspace.resize(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
    rayleigh_of.resize(3);
    cosine_of.resize(3);
    statuses.resize(3);
  }
  [[nodiscard]] auto experts() const { return experts_nfd(a.data(), shape); }
  /// The part [first, first + count) of the batch, and of everything that goes with it.
  void forward(index_t first, index_t count, bool saves) {
    const auto of = [&](auto& v) { return row_major(v.data() + first * D, count, D); };
    router_rows(experts().middle_experts(first, count), of(router), of(rows), options, workspace,
                {.statuses = std::span(statuses).subspan(static_cast<std::size_t>(first),
                                                         static_cast<std::size_t>(count)),
                 .rayleigh = {rayleigh_of.data() + first, count},
                 .cosine = {cosine_of.data() + first, count},
                 .tape = saves ? vector_view<double>(tape) : vector_view<double>()});
  }
  /// One row through its steps, with `last_a` in place of A in the last.
  [[nodiscard]] std::vector<step_result<double>> chain(index_t i, std::vector<double>& row,
                                                       const double* first_a, const double* last_a) const {
    std::vector<step_result<double>> all;
    std::vector<double> next(row);
    for (index_t s = 0; s < steps; ++s) {
      const double* at = s + 1 < steps ? first_a : last_a;
      all.push_back(power_step(gram(row_major(at + i * F * D, F, D)), vector_view<const double>(row),
                               vector_view<double>(next), radius, options.degenerate));
      row = next;
    }
    return all;
  }
  /// ⟨rows, ḡ⟩; A of the last step alone moves, or that of none, or that of all.
  [[nodiscard]] double loss(const std::vector<double>& fixed_a) const {
    const double* earlier = options.through == differentiate::all ? a.data() : fixed_a.data();
    const double* later = options.through == differentiate::none ? fixed_a.data() : a.data();
    double sum = 0;
    for (index_t i = 0; i < N; ++i) {
      std::vector<double> row(router.begin() + i * D, router.begin() + (i + 1) * D);
      static_cast<void>(chain(i, row, earlier, later));
      for (index_t d = 0; d < D; ++d)
        sum += row[static_cast<std::size_t>(d)] * grad_rows[static_cast<std::size_t>(i * D + d)];
    }
    return sum;
  }
};

}  // namespace

TEST_CASE("three steps of a batch, of a part of it, with and without a tape, and written back") {
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    problem p(policy);
    std::vector<double> want;
    std::vector<step_result<double>> last;
    for (index_t i = 0; i < N; ++i) {
      std::vector<double> row(p.router.begin() + i * D, p.router.begin() + (i + 1) * D);
      last.push_back(p.chain(i, row, p.a.data(), p.a.data()).back());
      want.insert(want.end(), row.begin(), row.end());
    }
    const auto check = [&] {
      CHECK(p.statuses ==
            std::vector{status::ok, status::zero_image, status::ok});  // of the first that failed
      CHECK(relative_distance(p.rows, want) < 1e-14);
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK(close(p.rayleigh_of[i], last[i].rayleigh, 1e-14));
        CHECK(close(p.cosine_of[i], last[i].cosine, 1e-14));
      }
    };
    for (const bool saves : {false, true}) {
      p.forward(0, 3, saves);
      check();
      p.rows.assign(p.rows.size(), 0);
      p.statuses.assign(3, status::masked);
      for (index_t i = 0; i < N; ++i) p.forward(i, 1, saves);
      check();
    }
    auto state = p.router;
    stateful_router_rows(p.experts(), row_major(state.data(), N, D), p.options, p.workspace,
                         {.statuses = p.statuses, .rayleigh = p.rayleigh_of, .cosine = p.cosine_of});
    p.rows = state;
    check();
  }
}

TEST_CASE("three steps backward: central differences, written and added, factored, of a part") {
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    for (const auto through : {differentiate::all, differentiate::last, differentiate::none}) {
      CAPTURE(static_cast<int>(through));
      problem p(policy, through);
      p.forward(0, 3, true);
      const auto fixed = p.a;
      auto q = p;
      auto to_r = numeric_gradient(q.router, [&] { return q.loss(fixed); });
      auto to_a = numeric_gradient(q.a, [&] { return q.loss(fixed); }, 0.1);
      // A matrix of zeros has no derivative there, and what its row passes on is said by the policy.
      std::fill_n(to_a.begin() + F * D, F * D, 0.0);
      for (index_t d = 0; d < D; ++d) {
        const auto k = static_cast<std::size_t>(D + d);
        to_r[k] = policy == degenerate_row::keep ? p.grad_rows[k] : 0.0;
      }
      for (const auto mode : {gradient_mode::write, gradient_mode::accumulate}) {
        for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 3}, {1, 2}}) {
          p.forward(first, count, true);
          const double before = mode == gradient_mode::write ? std::nan("") : 7;
          std::vector<double> got_r(p.router.size(), before), got_a(p.a.size(), before);
          const auto rows_of = [&](auto& v) { return row_major(v.data() + first * D, count, D); };
          const auto part = p.experts().middle_experts(first, count);
          const auto gradient = experts_nfd(got_a.data(), shape).middle_experts(first, count);
          const auto near = [&](const std::vector<double>& got, const std::vector<double>& want, index_t size,
                                double scale) {
            const double start = mode == gradient_mode::write ? 0 : 7;
            for (index_t k = first * size; k < (first + count) * size; ++k) {
              const auto at = static_cast<std::size_t>(k);
              CHECK(close(got[at] - start, want[at], 1e-6, scale));
            }
          };
          if (through == differentiate::none) {
            router_rows_vjp_detached(part, rows_of(p.router), p.tape, rows_of(p.grad_rows), p.options,
                                     rows_of(got_r), mode, p.workspace);
            near(got_r, to_r, D, 1);
            continue;
          }
          router_rows_vjp(part, rows_of(p.router), p.tape, rows_of(p.grad_rows), p.options, rows_of(got_r),
                          gradient, mode, p.workspace);
          near(got_r, to_r, D, 1);
          near(got_a, to_a, F * D, 1e-3);
          if (mode == gradient_mode::accumulate) {  // what has no gradient is left as it was
            for (index_t k = 0; k < F * D; ++k) CHECK(got_a[static_cast<std::size_t>(F * D + k)] == 7);
          }
          std::vector<double> buffer(
              static_cast<std::size_t>(router_factors<double>::size(part.shape(), p.options)), std::nan(""));
          const router_factors<double> factors(buffer, part.shape(), p.options);
          std::fill(got_r.begin(), got_r.end(), before);
          std::fill(got_a.begin(), got_a.end(), before);
          router_rows_vjp_factored(part, rows_of(p.router), p.tape, rows_of(p.grad_rows), p.options,
                                   rows_of(got_r), factors, mode, p.workspace);
          add_factors(factors, gradient, mode);
          near(got_r, to_r, D, 1);
          near(got_a, to_a, F * D, 1e-3);
        }
      }
    }
  }
}

}  // namespace test_steps
