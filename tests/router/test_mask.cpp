// One mask for all of router/: the loss, the load and the lists of some tokens with others left out are those
// of the tokens that count, alone.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <limits>
#include <vector>

#include "all_scores.hpp"

namespace test_mask {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t N = 6, K = 2, L = 770, sequences = 4,
                  T = L * sequences;  // a sequence is three blocks and two tokens

/// Tokens of which some do not count, in another pattern in each sequence, and in the third none does.
template <class S>
struct batch {
  std::vector<S> logits;
  std::vector<expert_id> ids;
  std::vector<status> statuses;

  explicit batch(std::uint64_t seed) {
    random_source random(seed);
    logits = random_vector<S>(random, T * N, 1.5);
    for (index_t t = 0; t < T; ++t) {
      const index_t sequence = t / L;
      const bool counts = sequence == 0   ? t % L < 300
                          : sequence == 1 ? random.integer(0, 2) == 0
                          : sequence == 2 ? false
                                          : t % L >= 255;
      const auto first = static_cast<expert_id>(random.integer(0, N - 1));
      statuses.push_back(counts ? (t % 5 == 0 ? status::closed_expert : status::ok)
                                : (t % 2 == 0 ? status::masked : status::non_finite));
      ids.push_back(counts ? first : -1);
      ids.push_back(counts ? static_cast<expert_id>((first + random.integer(1, 2)) % N) : -1);
      for (index_t i = 0; !counts && i < N; ++i) {
        logits[static_cast<std::size_t>(t * N + i)] =
            t % 3 == 0 ? std::numeric_limits<S>::quiet_NaN() : static_cast<S>(100 * i);
      }
    }
  }
  bool counts(index_t t) const { return is_routed(statuses[static_cast<std::size_t>(t)]); }
  auto view() const { return row_major(logits.data(), T, N); }

  /// The tokens of [first, end) that count, by themselves.
  batch alone(index_t first, index_t end) const {
    batch out;
    for (index_t t = first; t < end; ++t) {
      if (!counts(t)) continue;
      out.logits.insert(out.logits.end(), logits.begin() + t * N, logits.begin() + (t + 1) * N);
      out.ids.insert(out.ids.end(), ids.begin() + t * K, ids.begin() + (t + 1) * K);
    }
    return out;
  }
  index_t tokens() const { return static_cast<index_t>(logits.size()) / N; }
  auto all() const { return row_major(logits.data(), tokens(), N); }

 private:
  batch() = default;
};

/// Rows of `got` that count are those of `want`, one after the other; the others hold `otherwise`.
template <class S>
void check_rows(const batch<S>& b, const std::vector<S>& got, const std::vector<S>& want, S otherwise,
                S scale) {
  std::size_t other = 0;
  bool right = true;
  for (index_t t = 0; t < T; ++t) {
    for (index_t i = 0; i < N; ++i) {
      const S value = got[static_cast<std::size_t>(t * N + i)];
      right = right && (b.counts(t) ? close(static_cast<double>(value), static_cast<double>(want[other++]),
                                            tolerance<S>.identity, static_cast<double>(scale))
                                    : value == otherwise);
    }
  }
  CHECK(right);
  CHECK(other == want.size());
}

template <class S>
std::vector<S> workspace_for(index_t length) {
  return std::vector<S>(static_cast<std::size_t>(balance_workspace(T, N, length)));
}

}  // namespace

TEST_CASE_TEMPLATE("balance losses of some tokens masked are those of the others alone", S, float, double) {
  const batch<S> b(3);
  for (const auto f : all_scores) {
    for (const index_t length : {L, T}) {
      auto workspace = workspace_for<S>(length);
      double want = 0;
      double counted = 0;  // sequences that have tokens
      std::vector<S> want_gradient;
      for (index_t first = 0; first < T; first += length) {
        counted += b.alone(first, first + length).tokens() > 0 ? 1 : 0;
      }
      CHECK(counted == (length == L ? 3 : 1));
      for (index_t first = 0; first < T; first += length) {
        const auto alone = b.alone(first, first + length);
        std::vector<S> gradient(alone.logits.size());
        want += static_cast<double>(balance_loss<S>(alone.all(), f, alone.ids, K, alone.tokens(),
                                                    vector_view<S>(workspace))) /
                counted;
        balance_loss_vjp<S>(alone.all(), f, alone.ids, K, alone.tokens(), static_cast<S>(7 / counted),
                            row_major(gradient.data(), alone.tokens(), N), gradient_mode::write, workspace);
        want_gradient.insert(want_gradient.end(), gradient.begin(), gradient.end());
      }
      const S got = balance_loss<S>(b.view(), f, b.ids, K, length, vector_view<S>(workspace), {}, b.statuses);
      CHECK(close(static_cast<double>(got), want, tolerance<S>.identity));
      std::vector<S> gradient(b.logits.size(), S{3});
      balance_loss_vjp<S>(b.view(), f, b.ids, K, length, S{7}, row_major(gradient.data(), T, N),
                          gradient_mode::write, workspace, {}, b.statuses);
      check_rows(b, gradient, want_gradient, S{0}, S(1e-3));
      std::fill(gradient.begin(), gradient.end(), S{3});
      balance_loss_vjp<S>(b.view(), f, b.ids, K, length, S{7}, row_major(gradient.data(), T, N),
                          gradient_mode::accumulate, workspace, {}, b.statuses);
      for (S& g : want_gradient) g += S{3};
      check_rows(b, gradient, want_gradient, S{3}, S{3});
    }
  }
}

TEST_CASE_TEMPLATE("tokens of NaN count for nothing without being named", S, float, double) {
  batch<S> b(4);
  auto workspace = workspace_for<S>(L);
  for (index_t t = 0; t < T; ++t) {  // as the gate leaves them
    for (index_t i = 0; !b.counts(t) && i < N; ++i)
      b.logits[static_cast<std::size_t>(t * N + i)] = std::numeric_limits<S>::quiet_NaN();
    for (index_t k = 0; !b.counts(t) && k < K; ++k)
      b.ids[static_cast<std::size_t>(t * K + k)] = static_cast<expert_id>(k);
  }
  for (const auto f : all_scores) {
    CHECK(balance_loss<S>(b.view(), f, b.ids, K, L, vector_view<S>(workspace)) ==
          balance_loss<S>(b.view(), f, b.ids, K, L, vector_view<S>(workspace), {}, b.statuses));
    std::vector<S> named(b.logits.size()), unnamed(b.logits.size(), S{5});
    balance_loss_vjp<S>(b.view(), f, b.ids, K, L, S{1}, row_major(named.data(), T, N), gradient_mode::write,
                        workspace, {}, b.statuses);
    balance_loss_vjp<S>(b.view(), f, b.ids, K, L, S{1}, row_major(unnamed.data(), T, N), gradient_mode::write,
                        workspace);
    CHECK(named == unnamed);
  }
  CHECK(z_loss<S>(b.view(), vector_view<S>(workspace)) ==
        z_loss<S>(b.view(), vector_view<S>(workspace), {}, b.statuses));
}

TEST_CASE_TEMPLATE("the global loss and the z-loss of some tokens masked are those of the others alone", S,
                   float, double) {
  const batch<S> b(5);
  const auto alone = b.alone(0, T);
  auto workspace = workspace_for<S>(T);
  std::vector<S> gradient(b.logits.size(), S{3}), want(alone.logits.size());
  std::vector<index_t> load(static_cast<std::size_t>(N)), load_alone(load.size());
  count_load(b.ids, K, b.statuses, load);
  count_load(alone.ids, K, {}, load_alone);
  CHECK(load == load_alone);
  load[2] += 1000;  // and another rank's
  for (const auto f : all_scores) {
    CHECK(close(static_cast<double>(
                    global_balance_loss<S>(b.view(), f, load, vector_view<S>(workspace), {}, b.statuses)),
                static_cast<double>(global_balance_loss<S>(alone.all(), f, load, vector_view<S>(workspace))),
                tolerance<S>.identity));
    global_balance_loss_vjp<S>(alone.all(), f, load, S{7}, row_major(want.data(), alone.tokens(), N),
                               gradient_mode::write, workspace);
    global_balance_loss_vjp<S>(b.view(), f, load, S{7}, row_major(gradient.data(), T, N),
                               gradient_mode::write, workspace, {}, b.statuses);
    check_rows(b, gradient, want, S{0}, S(1e-3));
  }
  CHECK(close(static_cast<double>(z_loss<S>(b.view(), vector_view<S>(workspace), {}, b.statuses)),
              static_cast<double>(z_loss<S>(alone.all(), vector_view<S>(workspace))), tolerance<S>.identity));
  z_loss_vjp<S>(alone.all(), S{7}, row_major(want.data(), alone.tokens(), N), gradient_mode::write);
  std::fill(gradient.begin(), gradient.end(), S{3});  // also where no token counts, zeros are written
  z_loss_vjp<S>(b.view(), S{7}, row_major(gradient.data(), T, N), gradient_mode::write, {}, b.statuses);
  check_rows(b, gradient, want, S{0}, S(1e-3));
  std::fill(gradient.begin(), gradient.end(), S{3});
  z_loss_vjp<S>(b.view(), S{7}, row_major(gradient.data(), T, N), gradient_mode::accumulate, {}, b.statuses);
  for (S& g : want) g += S{3};
  check_rows(b, gradient, want, S{3}, S{3});
}

TEST_CASE_TEMPLATE("where no token counts, losses are 0 and gradients too", S, float, double) {
  const batch<S> b(6);
  const std::vector<status> none(static_cast<std::size_t>(T), status::masked);
  const std::vector<index_t> load(static_cast<std::size_t>(N), 4);
  auto workspace = workspace_for<S>(L);
  std::vector<S> gradient(b.logits.size(), S{3});
  const auto to = row_major(gradient.data(), T, N);
  const auto is_zero = [&] {
    return std::all_of(gradient.begin(), gradient.end(), [](S g) { return g == S{0}; });
  };
  for (const auto f : all_scores) {
    CHECK(balance_loss<S>(b.view(), f, b.ids, K, L, vector_view<S>(workspace), {}, none) == S{0});
    CHECK(global_balance_loss<S>(b.view(), f, load, vector_view<S>(workspace), {}, none) == S{0});
    std::fill(gradient.begin(), gradient.end(), S{3});
    balance_loss_vjp<S>(b.view(), f, b.ids, K, L, S{1}, to, gradient_mode::write, workspace, {}, none);
    CHECK(is_zero());
    global_balance_loss_vjp<S>(b.view(), f, load, S{1}, to, gradient_mode::accumulate, workspace, {}, none);
    CHECK(is_zero());
  }
  CHECK(z_loss<S>(b.view(), vector_view<S>(workspace), {}, none) == S{0});
  z_loss_vjp<S>(b.view(), S{1}, to, gradient_mode::accumulate, {}, none);
  CHECK(is_zero());
}

TEST_CASE_TEMPLATE("the gate, its backward and given experts leave masked tokens out", S, float, double) {
  batch<S> b(7);
  std::replace(b.statuses.begin(), b.statuses.end(), status::closed_expert, status::ok);
  const auto alone = b.alone(0, T);
  const index_t V = alone.tokens();
  const gating_options o{.top_k = K, .score_function = score_function::sigmoid};
  std::vector<S> workspace(static_cast<std::size_t>(gating_workspace(T, N)));
  std::vector<S> weights(static_cast<std::size_t>(T * K), S{9}), replayed = weights,
                                                                 want(static_cast<std::size_t>(V * K));
  std::vector<expert_id> ids(weights.size(), 9), want_ids(want.size());
  std::vector<status> told(b.statuses), told_by_weights(static_cast<std::size_t>(T));
  gate<S>(alone.all(), o, {}, {row_major(want.data(), V, K), want_ids}, workspace);
  gate<S>(b.view(), o, {}, {row_major(weights.data(), T, K), ids, told}, workspace, {}, told);  // in place
  gate_weights<S>(b.view(), o, ids, row_major(replayed.data(), T, K), workspace, {}, b.statuses,
                  told_by_weights);
  CHECK(replayed == weights);
  CHECK(told_by_weights == told);
  std::size_t other = 0;
  for (index_t t = 0; t < T; ++t) {
    CHECK(told[static_cast<std::size_t>(t)] == (b.counts(t) ? status::ok : status::masked));
    for (auto j = static_cast<std::size_t>(t * K); j < static_cast<std::size_t>((t + 1) * K); ++j) {
      CHECK(weights[j] == (b.counts(t) ? want[other] : S{0}));
      CHECK(ids[j] == (b.counts(t) ? want_ids[other++] : -1));
    }
  }
  random_source random(1);
  auto grad = random_vector<S>(random, T * K);
  std::vector<S> gradient(b.logits.size(), S{3}), want_gradient(alone.logits.size()), grad_alone;
  for (index_t t = 0; t < T; ++t) {
    if (b.counts(t)) grad_alone.insert(grad_alone.end(), grad.begin() + t * K, grad.begin() + (t + 1) * K);
  }
  gate_vjp<S>(alone.all(), o, want_ids, row_major(grad_alone.data(), V, K),
              row_major(want_gradient.data(), V, N), gradient_mode::write, workspace);
  gate_vjp<S>(b.view(), o, ids, row_major(grad.data(), T, K), row_major(gradient.data(), T, N),
              gradient_mode::write, workspace, {}, told);
  check_rows(b, gradient, want_gradient, S{0}, S{0});
  gate_vjp<S>(b.view(), o, ids, row_major(grad.data(), T, K), row_major(gradient.data(), T, N),
              gradient_mode::accumulate, workspace, {}, told);
  for (S& g : want_gradient) g += g;
  check_rows(b, gradient, want_gradient, S{0}, S{0});

  std::vector<index_t> offsets(static_cast<std::size_t>(N + 1)), tokens(ids.size());
  build_dispatch(ids, K, told, {offsets, tokens});
  CHECK(offsets.back() == V * K);
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("ids of -1 are for tokens that are left out, and masks are of the right size") {
  const batch<double> b(8);
  std::vector<double> workspace(
      static_cast<std::size_t>(gating_workspace(T, N) + balance_workspace(T, N, L)));
  std::vector<double> weights(static_cast<std::size_t>(T * K)), gradient(b.logits.size());
  std::vector<index_t> load(static_cast<std::size_t>(N)), offsets(load.size() + 1), tokens(b.ids.size());
  auto few = b.statuses;
  few.pop_back();
  const auto to = row_major(gradient.data(), T, N);
  const auto w = row_major(weights.data(), T, K);
  const auto f = score_function::softmax;
  const auto refuses = [&](const std::vector<status>& mask, const char* part) {
    CHECK(refused(
        [&] {
          (void)balance_loss<double>(b.view(), f, b.ids, K, L, vector_view<double>(workspace), {}, mask);
        },
        part));
    CHECK(refused(
        [&] {
          balance_loss_vjp<double>(b.view(), f, b.ids, K, L, 1.0, to, gradient_mode::write, workspace, {},
                                   mask);
        },
        part));
    CHECK(refused(
        [&] { gate_vjp<double>(b.view(), {}, b.ids, w, to, gradient_mode::write, workspace, {}, mask); },
        part));
    CHECK(refused([&] { gate_weights<double>(b.view(), {}, b.ids, w, workspace, {}, mask); }, part));
    CHECK(refused([&] { count_load(b.ids, K, mask, load); }, part));
    CHECK(refused([&] { build_dispatch(b.ids, K, mask, {offsets, tokens}); }, part));
  };
  refuses({}, "has expert -1 of 6");
  refuses(few, "3079 statuses for 3080 tokens");
  auto many = b.statuses;
  many.push_back(status::ok);
  refuses(many, "3081 statuses for 3080 tokens");
  std::vector<expert_id> ids(b.ids.size());
  CHECK(refused([&] { gate<double>(b.view(), {}, {}, {w, ids}, workspace, {}, few); },
                "3079 statuses for 3080 tokens"));
  CHECK(refused([&] { gate<double>(b.view(), {}, {}, {w, ids, few}, workspace); },
                "3079 statuses for 3080 tokens"));
  CHECK(refused([&] { (void)z_loss<double>(b.view(), vector_view<double>(workspace), {}, few); },
                "3079 statuses"));
  CHECK(refused([&] { z_loss_vjp<double>(b.view(), 1.0, to, gradient_mode::write, {}, few); },
                "3079 statuses"));
  CHECK(refused(
      [&] { (void)global_balance_loss<double>(b.view(), f, load, vector_view<double>(workspace), {}, few); },
      "3079 statuses"));
  CHECK(refused(
      [&] {
        global_balance_loss_vjp<double>(b.view(), f, load, 1.0, to, gradient_mode::write, workspace, {}, few);
      },
      "3079 statuses"));
  CHECK(std::all_of(gradient.begin(), gradient.end(), [](double g) { return g == 0; }));
  CHECK(std::all_of(load.begin(), load.end(), [](index_t count) { return count == 0; }));
}
#endif

}  // namespace test_mask
