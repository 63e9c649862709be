// Weights and their gradients: against plain formulas in double and central differences, for every option.
#include <mpi_router/router/gating_vjp.hpp>

#include <doctest/doctest.h>
#include <support/layouts.hpp>

#include "all_scores.hpp"
#include "batch.hpp"
#include "gated.hpp"

namespace test_gating {
using namespace mpi_router;
using namespace test_support;

namespace {

/// Every setting that fits 12 experts and K experts a token.
template <class F>
void for_all_options(index_t top_k, F f) {
  for (const auto score : all_scores) {
    for (const auto order : {selection_order::score_then_select, selection_order::select_then_score}) {
      for (const bool renormalize : {true, false}) {
        for (const double factor : {1.0, 2.5}) {
          for (const auto& [n_group, topk_group] : {std::pair<index_t, index_t>{1, 1}, {4, 2}}) {
            for (const auto group : {group_score::top2_sum, group_score::top_k_share_sum, group_score::max}) {
              if (n_group > 1 || group == group_score::max) {
                f(gating_options{top_k, score, order, renormalize, factor, n_group, topk_group, group});
              }
            }
          }
        }
      }
    }
  }
}

double plain_score(score_function f, double x) {
  return f == score_function::sigmoid ? 1 / (1 + std::exp(-x)) : std::sqrt(std::log(1 + std::exp(x)));
}

}  // namespace

TEST_CASE("weights are the scores of the selected experts") {
  std::uint64_t seed = 1;
  for (const index_t top_k : {1, 4, 6}) {
    for_all_options(top_k, [&](const gating_options& o) {
      ++seed;
      gated<double> p(5, 12, o, seed, seed % 2 == 0);
      p.forward();
      for (index_t t = 0; t < 5; ++t) {
        const auto logit = [&](index_t e) { return p.logits[static_cast<std::size_t>(t * 12 + e)]; };
        const auto id = [&](index_t k) { return p.ids[static_cast<std::size_t>(t * top_k + k)]; };
        const bool all = o.order == selection_order::score_then_select;
        double denominator = 0;
        for (index_t e = 0; e < (all ? 12 : top_k); ++e) denominator += std::exp(logit(all ? e : id(e)));
        const auto score = [&](index_t e) {
          return o.score_function == score_function::softmax ? std::exp(logit(e)) / denominator
                                                             : plain_score(o.score_function, logit(e));
        };
        double sum = 0;
        for (index_t k = 0; k < top_k; ++k) sum += score(id(k));
        for (index_t k = 0; k < top_k; ++k) {
          const double want = score(id(k)) / (o.renormalize ? sum : 1) * o.scaling_factor;
          CHECK(close(p.weights[static_cast<std::size_t>(t * top_k + k)], want, 1e-13));
        }
        CHECK(p.statuses[static_cast<std::size_t>(t)] == status::ok);
      }
    });
  }
}

TEST_CASE("the gradient to the logits equals central differences, for every option") {
  std::uint64_t seed = 100;
  for (const index_t top_k : {1, 4, 6}) {
    for_all_options(top_k, [&](const gating_options& o) {
      ++seed;
      gated<double> p(3, 12, o, seed, seed % 2 == 0);
      p.forward();
      const auto ids = p.ids;
      random_source random(seed);
      const auto grad = random_vector<double>(random, 3 * top_k);
      const auto loss = [&] {
        p.forward();
        CHECK(p.ids == ids);  // no choice flips inside the difference
        double sum = 0;
        for (std::size_t i = 0; i < grad.size(); ++i) sum += grad[i] * p.weights[i];
        return sum;
      };
      const auto numeric = numeric_gradient(p.logits, loss, 1e-5);
      std::vector<double> got(p.logits.size(), 7.0);
      gate_vjp(row_major(p.logits.data(), 3, 12), o, ids, row_major(grad.data(), 3, top_k),
               row_major(got.data(), 3, 12), gradient_mode::write, p.workspace);
      CHECK(distance_above(got, numeric, 1e-2) < 1e-8);
      auto twice = got;
      gate_vjp(row_major(p.logits.data(), 3, 12), o, ids, row_major(grad.data(), 3, top_k),
               row_major(twice.data(), 3, 12), gradient_mode::accumulate, p.workspace);
      for (std::size_t i = 0; i < got.size(); ++i) CHECK(close(twice[i], 2 * got[i], 1e-13, 1e-15));
    });
  }
}

TEST_CASE_TEMPLATE("score functions, their logarithms and the slopes of those hold far out", S, float,
                   double) {
  const double near = 4 * static_cast<double>(std::numeric_limits<S>::epsilon());
  for (const auto f : all_scores) {
    for (const float at : {-1e30F, -3000.0F, -700.0F, -105.0F, -90.0F, -50.0F, -31.0F, -5.0F, -1.0F, -1e-3F,
                           0.0F, 1e-3F, 0.5F, 5.0F, 50.0F, 700.0F}) {
      const long double x = at;
      const long double softplus = std::max(x, 0.0L) + std::log1p(std::exp(-std::abs(x)));
      const long double sigmoid = std::exp(std::min(x, 0.0L)) / (1 + std::exp(-std::abs(x)));
      const bool deep = at < -200;  // log(1 + eˣ) is eˣ
      const long double log = f == score_function::softmax ? x
                              : f == score_function::sigmoid
                                  ? -(std::max(-x, 0.0L) + std::log1p(std::exp(-std::abs(x))))
                                  : (deep ? x : std::log(softplus)) / 2;
      const long double slope = f == score_function::softmax   ? 1
                                : f == score_function::sigmoid ? 1 / (1 + std::exp(x))
                                                               : (deep ? 1 : sigmoid / softplus) / 2;
      std::array<S, detail::score_pack_size> in{}, out{};
      in.fill(static_cast<S>(at));
      detail::with_score(f, [&]<class Score>(Score) {
        CHECK(close(detail::log_score<Score>(static_cast<double>(at)), static_cast<double>(log), 1e-13));
        CHECK(
            close(static_cast<double>(Score::template log_derivative<detail::host_math>(static_cast<S>(at))),
                  static_cast<double>(slope), 4 * near, 1e-30));
        detail::score_pack<Score>(in.data(), S{800}, out.data());
      });
      const long double score = f == score_function::softmax ? std::exp(x - 800) : std::exp(log);
      const double least = 2 * static_cast<double>(std::numeric_limits<S>::denorm_min());
      for (const S value : out)
        CHECK(std::abs(static_cast<double>(value - static_cast<S>(score))) <=
              4 * near * static_cast<double>(score) + least);
    }
  }
}

TEST_CASE("the exponential and the logarithm of scores are those of the standard library") {
  double worst_exp = 0;
  double worst_log = 0;
  for (std::uint32_t bits = 0; bits <= 0x7f800000U; bits += 1009) {  // magnitudes from 0 to infinity
    const auto x = std::bit_cast<float>(bits);
    const double exact = std::exp(-static_cast<double>(x));
    const auto got = static_cast<double>(detail::exp_of_nonpositive(-x));
    worst_exp =
        std::max(worst_exp, (std::abs(got - exact) - 0x1p-149) / exact);  // subnormal results: one unit
    if (x <= 1.0F) {
      const double log = std::log1p(static_cast<double>(x));
      worst_log =
          std::max(worst_log, std::abs(static_cast<double>(detail::log1p_of_unit(x)) - log) - 2e-7 * log);
    }
  }
  CHECK(worst_exp < 1.2e-7);
  CHECK(worst_log <= 0x1p-149);
  CHECK(detail::exp_of_nonpositive(0.0F) == 1.0F);
  CHECK(detail::exp_of_nonpositive(-std::numeric_limits<float>::infinity()) == 0.0F);
  std::vector<float> x;
  for (int n = 0; n < 40; ++n) {
    CHECK(detail::largest_of(x.data(), n) ==
          (n == 0 ? -std::numeric_limits<float>::infinity() : *std::max_element(x.begin(), x.end())));
    x.push_back(static_cast<float>((n * 29) % 31) - 60);
  }
}

TEST_CASE("tokens that nothing can be said of give no gradient") {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits{nan, 1, 2, inf, 0, 1, -inf, -inf, -inf, 0, 1, -inf};
  const std::vector<expert_id> ids{0, 1, 0, 1, 0, 1, 1, 0};
  const std::vector<float> grad(8, 1.0F);
  std::vector<float> got(12), workspace(static_cast<std::size_t>(gating_workspace(4, 3)));
  for (const auto order : {selection_order::score_then_select, selection_order::select_then_score}) {
    gate_vjp(row_major(logits.data(), 4, 3), {.order = order, .renormalize = false}, ids,
             row_major(grad.data(), 4, 2), row_major(got.data(), 4, 3), gradient_mode::write, workspace);
    for (std::size_t i = 0; i < 9; ++i) CHECK(got[i] == 0.0F);
    for (std::size_t i = 9; i < 12; ++i) CHECK(std::isfinite(got[i]));
  }
}

TEST_CASE_TEMPLATE("products agree with sums in double, for all shapes and layouts", S, double, float) {
  random_source random(9);
  const auto check = [&](index_t m, index_t k, index_t n, layout la, layout lb, layout lc) {
    const auto a = random_vector<S>(random, m * k);
    const auto b = random_vector<S>(random, k * n);
    const stored_matrix<S> sa(a, m, k, la);
    const stored_matrix<S> sb(b, k, n, lb);
    stored_matrix<S> sc(std::vector<S>(static_cast<std::size_t>(m * n), S(1)), m, n, lc);
    for (const bool add : {false, true}) {
      plain_products{}.multiply(sa.view(), sb.view(), sc.view(),
                                add ? gradient_mode::accumulate : gradient_mode::write);
      double worst = 0;
      for (index_t i = 0; i < m; ++i) {
        for (index_t j = 0; j < n; ++j) {
          double sum = 0;
          double size = 0;
          for (index_t t = 0; t < k; ++t) {
            const double term = static_cast<double>(sa.view()(i, t)) * static_cast<double>(sb.view()(t, j));
            sum += term;
            size += std::abs(term);
          }
          worst = std::max(
              worst, std::abs(static_cast<double>(sc.view()(i, j)) - (add ? 2 : 1) * sum) / (size + 1e-300));
        }
      }
      CHECK(worst < tolerance<S>.arithmetic);
    }
  };
  for (const layout la : all_layouts) {
    for (const layout lb : all_layouts) check(5, 17, 19, la, lb, layout::row_major);
    check(9, 300, 70, la, layout::row_major, la);
  }
  for (const index_t m : {1, 3, 4, 5, 8}) {
    for (const index_t k : {1, 127, 128, 129}) {
      for (const index_t n : {1, 15, 16, 17, 64, 65, 130})
        check(m, k, n, layout::row_major, layout::column_major, layout::row_major);
    }
  }
  check(3, 0, 4, layout::row_major, layout::row_major, layout::row_major);
}

TEST_CASE("route is the logits and the gate; its backward equals central differences") {
  random_source random(12);
  const index_t T = 300, N = 6, D = 9, K = 2;
  auto tokens = random_vector<double>(random, T * D);
  auto rows = random_vector<double>(random, N * D);
  const auto grad = random_vector<double>(random, T * N);
  std::vector<double> logits(static_cast<std::size_t>(T * N)), separate(logits.size());
  std::vector<double> weights(static_cast<std::size_t>(T * K)),
      workspace(static_cast<std::size_t>(gating_workspace(T, N)));
  std::vector<expert_id> ids(weights.size());
  const auto X = [&] { return row_major(tokens.data(), T, D); };
  const auto R = [&] { return row_major(rows.data(), N, D); };
  route(X(), R(), {}, {}, row_major(logits.data(), T, N), {row_major(weights.data(), T, K), ids}, workspace);
  router_logits(X(), R(), row_major(separate.data(), T, N));
  CHECK(logits == separate);
  for (const index_t t : {index_t{0}, T - 1}) {
    double sum = 0;
    for (index_t d = 0; d < D; ++d)
      sum += tokens[static_cast<std::size_t>(t * D + d)] * rows[static_cast<std::size_t>(2 * D + d)];
    CHECK(close(logits[static_cast<std::size_t>(t * N + 2)], sum, 1e-14, 1));
  }
  std::vector<double> to_tokens(tokens.size()), to_rows(rows.size());
  router_logits_vjp(X(), R(), row_major(grad.data(), T, N), row_major(to_tokens.data(), T, D),
                    row_major(to_rows.data(), N, D), gradient_mode::write);
  auto tokens_twice = to_tokens, rows_twice = to_rows;
  router_logits_vjp(X(), R(), row_major(grad.data(), T, N), row_major(tokens_twice.data(), T, D),
                    row_major(rows_twice.data(), N, D), gradient_mode::accumulate);
  for (std::size_t i = 0; i < to_tokens.size(); ++i) {
    CHECK(close(tokens_twice[i], 2 * to_tokens[i], 1e-13, 1));
  }
  for (std::size_t i = 0; i < to_rows.size(); ++i) CHECK(close(rows_twice[i], 2 * to_rows[i], 1e-13, 100));
  const auto loss = [&] {
    router_logits(X(), R(), row_major(logits.data(), T, N));
    double sum = 0;
    for (std::size_t i = 0; i < grad.size(); ++i) sum += grad[i] * logits[i];
    return sum;
  };
  CHECK(distance_above(to_rows, numeric_gradient(rows, loss, 1e-2), 0) < 1e-10);
  tokens.resize(static_cast<std::size_t>(T * D));
  std::vector<double> part(to_tokens.begin(), to_tokens.begin() + 2 * D);
  for (int i = 0; i < 2 * D; ++i) {
    const auto k = static_cast<std::size_t>(i);
    const double at = tokens[k];
    tokens[k] = at + 1;
    const double up = loss();
    tokens[k] = at - 1;
    CHECK(close(part[k], (up - loss()) / 2, 1e-10, 1));  // linear in the tokens
    tokens[k] = at;
  }
}

}  // namespace test_gating
