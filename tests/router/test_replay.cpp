// Experts that others chose, closed experts, and the two biases of a router.
#include <mpi_router/router/gating_vjp.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "all_scores.hpp"
#include "gated.hpp"

namespace test_replay {
using namespace mpi_router;
using namespace test_support;

namespace {}  // namespace

TEST_CASE_TEMPLATE("given experts get the weights that the gate gives them, bit for bit", S, float, double) {
  for (const auto f : all_scores) {
    for (const bool renormalize : {true, false}) {
      gated<S> g(600, 21,
                 {.top_k = 5, .score_function = f, .renormalize = renormalize, .scaling_factor = 2.5}, 3);
      g.bias.assign(21, S{0});
      g.bias[4] = S{1};
      g.forward();
      std::vector<S> again(g.weights.size());
      std::vector<status> told(g.statuses.size(), status::zero_row);
      gate_weights<S>(g.view(), g.options, g.ids, row_major(again.data(), 600, 5), g.workspace, {}, {}, told);
      CHECK(again == g.weights);
      CHECK(told == g.statuses);
    }
  }
}

TEST_CASE_TEMPLATE("a closed expert that fills a place has weight 0, and the open ones share", S, float,
                   double) {
  const S closed = -std::numeric_limits<S>::infinity();
  for (const auto f : all_scores) {
    for (const auto order : {selection_order::score_then_select, selection_order::select_then_score}) {
      gated<S> g(300, 6, {.top_k = 3, .score_function = f, .order = order}, 5);
      g.bias = {closed, S{0}, closed, closed, std::numeric_limits<S>::quiet_NaN(), S{0}};
      g.forward();
      std::vector<S> grad(g.weights.size(), S{1}), got(g.logits.size(), S{7});
      for (std::size_t i = 0; i < grad.size(); ++i) grad[i] = static_cast<S>(i % 7) - S{3};
      gate_vjp<S>(g.view(), g.options, g.ids, row_major(grad.data(), 300, 3), row_major(got.data(), 300, 6),
                  gradient_mode::write, g.workspace, {}, g.statuses, g.bias);
      gated<S> two(300, 6, {.top_k = 2, .score_function = f, .order = order},
                   5);  // the same with the open ones alone
      two.bias = g.bias;
      two.forward();
      std::vector<S> grad_two, want(two.logits.size());
      for (std::size_t t = 0; t < 300; ++t) grad_two.insert(grad_two.end(), {grad[3 * t], grad[3 * t + 1]});
      gate_vjp<S>(two.view(), two.options, two.ids, row_major(grad_two.data(), 300, 2),
                  row_major(want.data(), 300, 6), gradient_mode::write, two.workspace, {}, two.statuses,
                  two.bias);
      for (std::size_t t = 0; t < 300; ++t) {
        CHECK(g.statuses[t] == status::closed_expert);
        CHECK(two.statuses[t] == status::ok);
        CHECK(g.ids[3 * t + 2] == 0);  // closed, and the lowest index among them
        CHECK(g.weights[3 * t + 2] == S{0});
        for (std::size_t k = 0; k < 2; ++k) {
          CHECK(g.ids[3 * t + k] == two.ids[2 * t + k]);
          CHECK(close(static_cast<double>(g.weights[3 * t + k]), static_cast<double>(two.weights[2 * t + k]),
                      tolerance<S>.arithmetic));
        }
        for (std::size_t i = 0; i < 6; ++i) {
          CHECK(close(static_cast<double>(got[6 * t + i]), static_cast<double>(want[6 * t + i]),
                      tolerance<S>.identity, 1e-3));
        }
        CHECK(got[6 * t] == S{0});
      }
      CHECK(refused(
          [&] {
            gate_vjp<S>(g.view(), g.options, g.ids, row_major(grad.data(), 300, 3),
                        row_major(got.data(), 300, 6), gradient_mode::write, g.workspace, {}, g.statuses);
          },
          "gate_vjp: some tokens have closed experts, and no selection bias says which these are"));
    }
  }
}

TEST_CASE("all experts closed, or closed in their groups") {
  const float closed = -std::numeric_limits<float>::infinity();
  for (const auto f : all_scores) {
    gated<float> g(2, 4, {.top_k = 2, .score_function = f}, 6);
    g.bias.assign(4, closed);
    g.forward();
    CHECK(g.ids == std::vector<expert_id>{0, 1, 0, 1});
    CHECK(g.weights == std::vector<float>(4, 0.0F));
    CHECK(g.statuses == std::vector<status>(2, status::closed_expert));

    gated<float> grouped(1, 8, {.top_k = 2, .score_function = f, .n_group = 4, .topk_group = 1}, 7);
    grouped.bias = {closed, closed, 0, 0, 0, closed, closed, closed};  // one whole group is open
    grouped.forward();
    CHECK(grouped.statuses[0] == status::ok);
    CHECK(std::min(grouped.ids[0], grouped.ids[1]) == 2);
    CHECK(std::max(grouped.ids[0], grouped.ids[1]) == 3);
  }
}

TEST_CASE("one expert has its own score as its weight by default, and so a gradient") {
  CHECK(!gating_options{.top_k = 1}.renormalize);
  CHECK(gating_options{.top_k = 2}.renormalize);
  CHECK(gating_options{.top_k = 1, .renormalize = true}.renormalize);
  gated<double> g(1, 4, {.top_k = 1}, 8);
  g.forward();
  CHECK(g.weights[0] < 1);
  const std::vector<double> grad{1};
  std::vector<double> got(4);
  gate_vjp<double>(g.view(), g.options, g.ids, row_major(grad.data(), 1, 1), row_major(got.data(), 1, 4),
                   gradient_mode::write, g.workspace);
  CHECK(std::all_of(got.begin(), got.end(), [](double x) { return x != 0; }));
}

TEST_CASE_TEMPLATE("a bias of the logits is added to them; its gradient is that of the logits, summed", S,
                   float, double) {
  constexpr index_t T = 600, N = 70, D = 9, K = 2;  // more than 64 experts, more than two blocks of tokens
  random_source random(9);
  const auto tokens = random_vector<S>(random, T * D);
  const auto rows = random_vector<S>(random, N * D);
  const auto b = random_vector<S>(random, N);
  const auto selection = random_vector<S>(random, N);
  const auto X = row_major(tokens.data(), T, D);
  const auto R = row_major(rows.data(), N, D);
  std::vector<S> plain(static_cast<std::size_t>(T * N)), biased(plain.size()), routed(plain.size());
  std::vector<S> weights(static_cast<std::size_t>(T * K)), want(weights.size());
  std::vector<S> workspace(static_cast<std::size_t>(gating_workspace(T, N)));
  std::vector<expert_id> ids(weights.size()), want_ids(ids.size());
  router_logits(X, R, row_major(plain.data(), T, N));
  router_logits(X, R, b, row_major(biased.data(), T, N));
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(close(static_cast<double>(biased[i]),
                static_cast<double>(plain[i] + b[i % static_cast<std::size_t>(N)]), tolerance<S>.arithmetic,
                1));
  }
  const gating_options o{.top_k = K, .score_function = score_function::sigmoid};
  route(X, R, o, {.logits = b, .selection = selection}, row_major(routed.data(), T, N),
        gate_output<S>{row_major(weights.data(), T, K), ids}, workspace);
  gate<S>(row_major(biased.data(), T, N), o, selection, {row_major(want.data(), T, K), want_ids}, workspace);
  CHECK(routed == biased);
  CHECK(weights == want);
  CHECK(ids == want_ids);

  const auto grad = random_vector<S>(random, T * N);
  std::vector<S> to_tokens(tokens.size()), to_rows(rows.size()), to_bias(b.size(), S{5});
  const auto backward = [&](gradient_mode mode) {
    router_logits_vjp(X, R, row_major(grad.data(), T, N), row_major(to_tokens.data(), T, D),
                      row_major(to_rows.data(), N, D), vector_view<S>(to_bias), mode);
  };
  const auto check = [&](double times) {
    for (std::size_t i = 0; i < b.size(); ++i) {
      double sum = 0;
      for (std::size_t t = 0; t < static_cast<std::size_t>(T); ++t)
        sum += static_cast<double>(grad[t * static_cast<std::size_t>(N) + i]);
      CHECK(close(static_cast<double>(to_bias[i]), times * sum, tolerance<S>.arithmetic, 1));
    }
  };
  backward(gradient_mode::write);
  check(1);
  backward(gradient_mode::accumulate);
  check(2);
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("given experts are checked: range, and none twice") {
  gated<double> g(3, 4, {.top_k = 2}, 10);
  g.ids = {0, 1, 2, 3, 1, 0};
  const auto weigh = [&] {
    return message_of([&] {
      gate_weights<double>(g.view(), g.options, g.ids, row_major(g.weights.data(), 3, 2), g.workspace);
    });
  };
  CHECK(weigh().empty());
  const auto before = g.weights;
  g.ids[5] = 1;
  CHECK(contains(weigh(), "gate_weights: token 2 has expert 1 twice"));
  g.ids[5] = 4;
  CHECK(contains(weigh(), "gate_weights: token 2 has expert 4 of 4"));
  g.ids[5] = -1;
  CHECK(contains(weigh(), "gate_weights: token 2 has expert -1 of 4"));
  CHECK(g.weights == before);
}
#endif

}  // namespace test_replay
