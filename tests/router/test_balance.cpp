// Losses against their formulas in plain sums, gradients against central differences.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>

#include "all_scores.hpp"
#include "batch.hpp"

namespace test_balance {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t N = 6, K = 2, L = 300, T = 600;  // two sequences, each more than one block of tokens

struct layer {
  std::vector<double> logits, workspace;
  std::vector<expert_id> ids;
  explicit layer(std::uint64_t seed) {
    random_source random(seed);
    logits = random_vector<double>(random, T * N, 1.5);
    for (index_t t = 0; t < T; ++t) {
      const auto first = static_cast<expert_id>(random.integer(0, N - 1));
      ids.push_back(first);
      ids.push_back(static_cast<expert_id>((first + random.integer(1, 2)) % N));
    }
    workspace.resize(static_cast<std::size_t>(balance_workspace(T, N, L)));
  }
  auto view() { return row_major(logits.data(), T, N); }
  double score(score_function f, index_t t, index_t e) const {
    const double x = logits[static_cast<std::size_t>(t * N + e)];
    return f == score_function::softmax   ? std::exp(x)
           : f == score_function::sigmoid ? 1 / (1 + std::exp(-x))
                                          : std::sqrt(std::log(1 + std::exp(x)));
  }
  double probability(score_function f, index_t t, index_t e) const {
    double sum = 0;
    for (index_t i = 0; i < N; ++i) sum += score(f, t, i);
    return score(f, t, e) / sum;
  }
  /// N Σ f_i P_i of the tokens [first, end), f from those tokens.
  double plain_loss(score_function f, index_t first, index_t end) const {
    double loss = 0;
    for (index_t e = 0; e < N; ++e) {
      double count = 0;
      double mean = 0;
      for (index_t t = first; t < end; ++t) {
        for (index_t k = 0; k < K; ++k) count += ids[static_cast<std::size_t>(t * K + k)] == e ? 1 : 0;
        mean += probability(f, t, e) / static_cast<double>(end - first);
      }
      loss += count / static_cast<double>((end - first) * K) * mean * N;
    }
    return loss;
  }
};

/// Some elements of the gradient of f, by central differences.
template <class F>
void check_some(std::vector<double>& x, const std::vector<double>& gradient, double factor, F f) {
  for (std::size_t i = 0; i < x.size(); i += 97) {
    const double at = x[i];
    const auto value = [&](double h) {
      x[i] = at + h;
      return factor * f();
    };
    const double h = 1e-3;
    const double numeric = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h);
    x[i] = at;
    CHECK(close(gradient[i], numeric, 1e-6, 1e-5));
  }
}

}  // namespace

TEST_CASE("sequence, batch and global balance losses, and their gradients") {
  for (const auto f : all_scores) {
    layer l(3);
    std::vector<double> gradient(l.logits.size());
    const auto sequence = [&](index_t length) {
      std::vector<double> scratch(static_cast<std::size_t>(balance_workspace(T, N, length)));
      return balance_loss<double>(l.view(), f, l.ids, K, length, vector_view<double>(scratch));
    };
    CHECK(close(sequence(L), (l.plain_loss(f, 0, L) + l.plain_loss(f, L, T)) / 2, 1e-13));
    CHECK(close(sequence(T), l.plain_loss(f, 0, T), 1e-13));

    for (const index_t length : {L, T, index_t{1}}) {
      std::vector<double> scratch(static_cast<std::size_t>(balance_workspace(T, N, length)));
      balance_loss_vjp(l.view(), f, l.ids, K, length, 50.0, row_major(gradient.data(), T, N),
                       gradient_mode::write, scratch);
      check_some(l.logits, gradient, 50, [&] { return sequence(length); });
      auto twice = gradient;
      balance_loss_vjp(l.view(), f, l.ids, K, length, 50.0, row_major(twice.data(), T, N),
                       gradient_mode::accumulate, scratch);
      for (std::size_t i = 0; i < twice.size(); ++i) CHECK(close(twice[i], 2 * gradient[i], 1e-14, 1e-18));
    }

    std::vector<index_t> load(static_cast<std::size_t>(N));
    count_load(l.ids, K, {}, load);
    std::vector<double> scratch(static_cast<std::size_t>(balance_workspace(T, N, T)));
    const auto global = [&] {
      return global_balance_loss<double>(l.view(), f, load, vector_view<double>(scratch));
    };
    CHECK(close(global(), l.plain_loss(f, 0, T), 1e-13));  // its own counts: the batch loss
    load[0] += 500;                                        // and some of another rank
    global_balance_loss_vjp(l.view(), f, load, 50.0, row_major(gradient.data(), T, N), gradient_mode::write,
                            scratch);
    check_some(l.logits, gradient, 50, global);
  }
}

TEST_CASE("the global loss of the parts is the loss of the whole") {
  layer l(4);
  std::vector<index_t> load(static_cast<std::size_t>(N));
  count_load(l.ids, K, {}, load);
  std::vector<double> scratch(static_cast<std::size_t>(balance_workspace(T, N, T)));
  double mean = 0;
  for (const index_t part : {0, 1}) {
    mean += global_balance_loss<double>(l.view().middle_rows(part * L, L), score_function::softmax, load,
                                        vector_view<double>(scratch)) /
            2;
  }
  CHECK(close(mean, l.plain_loss(score_function::softmax, 0, T), 1e-13));
}

TEST_CASE("even loads cost 1, one favourite costs N / K or less, gradients sum to zero") {
  layer l(5);
  std::fill(l.logits.begin(), l.logits.end(), 0.0);
  for (std::size_t i = 0; i < l.ids.size(); ++i)
    l.ids[i] = static_cast<expert_id>(i % static_cast<std::size_t>(N));
  const auto loss = [&] {
    return balance_loss<double>(l.view(), score_function::softmax, l.ids, K, L,
                                vector_view<double>(l.workspace));
  };
  CHECK(close(loss(), 1, 1e-14));
  for (std::size_t i = 0; i < l.ids.size(); ++i) l.ids[i] = static_cast<expert_id>(i % 2);
  for (std::size_t i = 0; i < l.logits.size(); ++i)
    l.logits[i] = i % static_cast<std::size_t>(N) < 2 ? 40 : -40;
  CHECK(close(loss(), static_cast<double>(N) / K, 1e-14));

  layer any(6);
  std::vector<double> gradient(any.logits.size());
  balance_loss_vjp(any.view(), score_function::softmax, any.ids, K, L, 1.0, row_major(gradient.data(), T, N),
                   gradient_mode::write, any.workspace);
  for (index_t t = 0; t < T; t += 50) {  // the softmax does not see a shift
    double sum = 0;
    for (index_t e = 0; e < N; ++e) sum += gradient[static_cast<std::size_t>(t * N + e)];
    CHECK(std::abs(sum) < 1e-17);
  }
}

TEST_CASE("z-loss and its gradient") {
  layer l(7);
  std::vector<double> scratch(8);
  const auto loss = [&] { return z_loss<double>(l.view(), vector_view<double>(scratch)); };
  double plain = 0;
  for (index_t t = 0; t < T; ++t) {
    double sum = 0;
    for (index_t e = 0; e < N; ++e) sum += std::exp(l.logits[static_cast<std::size_t>(t * N + e)]);
    plain += std::log(sum) * std::log(sum) / T;
  }
  CHECK(close(loss(), plain, 1e-13));
  std::vector<double> gradient(l.logits.size());
  z_loss_vjp(l.view(), 50.0, row_major(gradient.data(), T, N), gradient_mode::write);
  check_some(l.logits, gradient, 50, loss);
  auto twice = gradient;
  z_loss_vjp(l.view(), 50.0, row_major(twice.data(), T, N), gradient_mode::accumulate);
  for (std::size_t i = 0; i < twice.size(); ++i) CHECK(close(twice[i], 2 * gradient[i], 1e-14));
  for (double& x : l.logits) x += 1000;  // far beyond e^x
  CHECK(std::isfinite(loss()));
}

TEST_CASE("a token of NaN adds nothing to the losses and gets no gradient") {
  layer l(8);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  l.logits[static_cast<std::size_t>(5 * N + 1)] = nan;
  CHECK(std::isfinite(z_loss<double>(l.view(), vector_view<double>(l.workspace))));
  for (const auto f : all_scores) {
    CHECK(std::isfinite(balance_loss<double>(l.view(), f, l.ids, K, L, vector_view<double>(l.workspace))));
    std::vector<double> gradient(l.logits.size(), nan);
    balance_loss_vjp(l.view(), f, l.ids, K, L, 1.0, row_major(gradient.data(), T, N), gradient_mode::write,
                     l.workspace);
    z_loss_vjp(l.view(), 1.0, row_major(gradient.data(), T, N), gradient_mode::accumulate);
    for (index_t e = 0; e < N; ++e) CHECK(gradient[static_cast<std::size_t>(5 * N + e)] == 0);
    for (const double g : gradient) CHECK(std::isfinite(g));
  }
}

TEST_CASE("the losses of columns, and of rows backwards, are those of the same logits in rows") {
  layer l(11);
  const auto by_rows = l.view();
  std::vector<double> columns(l.logits.size()), backwards(l.logits.size());
  const auto by_columns = column_major(columns.data(), T, N);
  const matrix_view<double> reversed(backwards.data() + T * N - 1, T, N, -N, -1);
  for (index_t t = 0; t < T; ++t) {
    for (index_t i = 0; i < N; ++i) by_columns(t, i) = reversed(t, i) = by_rows(t, i);
  }
  std::vector<double> want(l.logits.size()), got(l.logits.size());
  const auto to = row_major(got.data(), T, N);
  const vector_view<double> work(l.workspace);
  for (const matrix_view<const double> other : {by_columns, reversed}) {
    CHECK(close(z_loss<double>(other, work), z_loss<double>(by_rows, work), 1e-14));
    z_loss_vjp<double>(by_rows, 1.0, row_major(want.data(), T, N), gradient_mode::write);
    z_loss_vjp<double>(other, 1.0, to, gradient_mode::write);
    for (std::size_t i = 0; i < got.size(); ++i) CHECK(close(got[i], want[i], 1e-14));
    for (const auto f : all_scores) {
      CHECK(balance_loss<double>(other, f, l.ids, K, L, work) ==
            balance_loss<double>(by_rows, f, l.ids, K, L, work));
      balance_loss_vjp<double>(by_rows, f, l.ids, K, L, 1.0, row_major(want.data(), T, N),
                               gradient_mode::write, work);
      balance_loss_vjp<double>(other, f, l.ids, K, L, 1.0, to, gradient_mode::write, work);
      CHECK(got == want);
    }
  }
}

TEST_CASE("a token without a score above zero adds nothing to the losses") {
  layer l(12);
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double value : {-infinity, infinity}) {
    for (const auto f : all_scores) {
      layer with = l;
      std::fill_n(with.logits.begin() + 5 * N, N, value);
      std::vector<status> statuses(static_cast<std::size_t>(T), status::ok);
      const bool counts = f == score_function::sigmoid && value > 0;  // N scores of 1
      statuses[5] = counts ? status::ok : status::masked;
      const auto loss = [&](std::span<const status> mask) {
        return balance_loss<double>(with.view(), f, with.ids, K, L, vector_view<double>(with.workspace), {},
                                    mask);
      };
      CHECK(std::isfinite(loss({})));
      CHECK(loss({}) == loss(statuses));
    }
  }
}

TEST_CASE("sums of counts are whole numbers: a few more tokens than a float holds still count") {
  constexpr index_t full = index_t{1} << 16;  // blocks of 256 tokens, and as many of one
  constexpr index_t blocks = 2 * full;
  const float logit = 0;
  using sums = detail::sequence_sums<detail::sigmoid_score, float>;
  constexpr index_t size = detail::block_sums<float>::size(1);
  std::vector<float> workspace(static_cast<std::size_t>(blocks * size));
  const sums s{{"test", blocks * detail::token_block, blocks * detail::token_block},
               matrix_view<const float>(&logit, blocks * detail::token_block, 1, 0, 1),
               {},
               workspace.data()};
  for (index_t b = 0; b < blocks; ++b) {
    *s.at(b).tokens = *s.at(b).choices = b < full ? 256.0F : 1.0F;
  }
  CHECK(s.tokens(0) == full * 257);
  CHECK(s.choices(0, 0) == full * 257);
}

TEST_CASE("no tokens, no loss") {
  std::vector<double> nothing;
  const matrix_view<const double> none(nullptr, 0, 4, 4, 1);
  CHECK(z_loss<double>(none, vector_view<double>(nothing)) == 0);
  CHECK(balance_loss<double>(none, score_function::softmax, {}, 2, 5, vector_view<double>(nothing)) == 0);
}

#if !defined(MPIROUTER_TEST_SANITIZED)  // minutes there, and nothing that sanitizers see
TEST_CASE("counts of tokens are whole numbers: more than float can count one by one") {
  constexpr index_t many = (index_t{1} << 24) + 4096;
  const std::vector<float> one{0.5F, -0.5F};  // every token has these logits
  const matrix_view<const float> logits(one.data(), many, 2, 0, 1);
  std::vector<expert_id> ids(static_cast<std::size_t>(many), 0);
  std::vector<float> workspace(static_cast<std::size_t>(balance_workspace(many, 2, many)));
  const double p = 1 / (1 + std::exp(-1.0));
  const auto loss = [&] {
    return static_cast<double>(
        balance_loss<float>(logits, score_function::softmax, ids, 1, many, vector_view<float>(workspace)));
  };
  CHECK(close(loss(), 2 * p, tolerance<float>.arithmetic));
#if defined(MPIROUTER_TEST_FULL)
  std::fill(ids.begin(), ids.begin() + many / 4, 1);
  CHECK(close(loss(), 2 * (0.75 * p + 0.25 * (1 - p)), tolerance<float>.arithmetic));
#endif
  const std::vector<index_t> load{many * 1000 + 1, many * 1000 - 1};
  CHECK(close(static_cast<double>(global_balance_loss<float>(logits, score_function::softmax, load,
                                                             vector_view<float>(workspace))),
              1, tolerance<float>.arithmetic));
  CHECK(close(static_cast<double>(z_loss<float>(logits, vector_view<float>(workspace))),
              std::pow(std::log(std::exp(0.5) + std::exp(-0.5)), 2), tolerance<float>.arithmetic));
}
#endif

TEST_CASE("transformers' load_balancing_loss_func is K times the batch loss") {
  layer l(10);
  double theirs = 0;  // N Σ_k Σ_i mean_t[choice k of t is i] · mean_t p_i
  for (index_t e = 0; e < N; ++e) {
    double mean = 0;
    for (index_t t = 0; t < T; ++t) mean += l.probability(score_function::softmax, t, e) / T;
    for (index_t k = 0; k < K; ++k) {
      double fraction = 0;
      for (index_t t = 0; t < T; ++t)
        fraction += l.ids[static_cast<std::size_t>(t * K + k)] == e ? 1.0 / T : 0.0;
      theirs += N * fraction * mean;
    }
  }
  std::vector<double> scratch(static_cast<std::size_t>(balance_workspace(T, N, T)));
  CHECK(close(
      theirs,
      K * balance_loss<double>(l.view(), score_function::softmax, l.ids, K, T, vector_view<double>(scratch)),
      1e-13));
}

TEST_CASE("no tokens as one sequence: no loss in any variant, and no gradient") {
  std::vector<double> nothing;
  const matrix_view<double> none(nullptr, 0, 4, 4, 1);
  const vector_view<double> workspace(nothing);
  const std::vector<index_t> load(4, 3);
  CHECK(balance_loss<double>(none, score_function::softmax, {}, 2, 0, workspace) == 0);
  CHECK(global_balance_loss<double>(none, score_function::softmax, load, workspace) == 0);
  balance_loss_vjp(none, score_function::softmax, {}, 2, 0, 1.0, none, gradient_mode::write, workspace);
  global_balance_loss_vjp(none, score_function::softmax, load, 1.0, none, gradient_mode::write, workspace);
#if MPIROUTER_HAS_EXCEPTIONS
  CHECK_THROWS_AS((void)balance_loss<double>(none, score_function::softmax, {}, 2, -1, workspace),
                  usage_error);
  const std::vector<double> logits(4);
  CHECK_THROWS_AS((void)balance_loss<double>(row_major(logits.data(), 1, 4), score_function::softmax,
                                             std::vector<expert_id>{0, 1}, 2, 0, workspace),
                  usage_error);
#endif
}

}  // namespace test_balance
