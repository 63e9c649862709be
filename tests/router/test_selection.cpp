// Selection against a brute-force oracle: random and adversarial cases.
#include <mpi_router/router/gating.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "log_score.hpp"

namespace test_selection {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

template <class S>
struct token {
  std::vector<S> logits;
  std::vector<S> bias;
  gating_options options;
};

/// What should come out, by sorting everything and in as few words as possible.
struct expected {
  status state = status::ok;
  std::vector<index_t> experts;
  std::vector<double> weights;
};

/// What experts are selected by where logits are not enough. As rounded to S, for ties of rounded scores are
/// part of the contract; the functions are held against long double in the gating test.
template <class S>
std::vector<S> rounded_scores(score_function f, const std::vector<S>& x) {
  std::vector<S> out(x.size());
  const auto n = static_cast<index_t>(x.size());
  detail::with_score(f, [&]<class Score>(Score) {
    detail::score_values<Score>(
        x.data(), n, Score::is_exponential ? *std::max_element(x.begin(), x.end()) : S{0}, out.data());
  });
  if (f == score_function::softmax) {
    const S scale =
        S{1} / detail::sum_terms<S>(n, [&](index_t i) { return out[static_cast<std::size_t>(i)]; });
    for (S& value : out) value *= scale;
  }
  return out;
}

/// Indices in order of value, largest first, ties to the lower index.
template <class S>
std::vector<index_t> order_of(const std::vector<S>& value) {
  std::vector<index_t> order(value.size());
  std::iota(order.begin(), order.end(), index_t{0});
  const auto at = [&](index_t i) { return value[static_cast<std::size_t>(i)]; };
  std::sort(order.begin(), order.end(),
            [&](index_t a, index_t b) { return at(a) > at(b) || (at(a) == at(b) && a < b); });
  return order;
}

template <class S>
S nan_is_least(S x) {
  return std::isnan(x) ? -std::numeric_limits<S>::infinity() : x;
}

std::size_t members_that_count(const gating_options& o, std::size_t size) {
  const std::size_t count = o.group_score == group_score::max ? 1
                            : o.group_score == group_score::top2_sum
                                ? 2
                                : static_cast<std::size_t>(std::max(index_t{1}, o.top_k / o.topk_group));
  return std::min(count, size);
}

template <class S>
std::vector<index_t> selected(const token<S>& t) {
  const auto& o = t.options;
  const auto groups = static_cast<std::size_t>(o.n_group);
  const std::size_t size = t.logits.size() / groups;
  const std::size_t count = members_that_count(o, size);
  const bool by_logits = o.order == selection_order::select_then_score ||
                         (t.bias.empty() && (o.n_group == o.topk_group || count == 1));
  std::vector<S> keys = by_logits ? t.logits : rounded_scores(o.score_function, t.logits);
  for (std::size_t i = 0; i < t.bias.size(); ++i) keys[i] = nan_is_least(keys[i] + t.bias[i]);
  std::vector<S> worth(groups);
  for (std::size_t g = 0; g < groups; ++g) {
    std::vector<S> members(keys.begin() + static_cast<std::ptrdiff_t>(g * size),
                           keys.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
    std::sort(members.begin(), members.end(), std::greater<>());
    worth[g] = nan_is_least(
        std::accumulate(members.begin(), members.begin() + static_cast<std::ptrdiff_t>(count), S{0}));
    if (members[0] > -std::numeric_limits<S>::infinity()) {  // an open expert
      worth[g] = std::max(worth[g], std::numeric_limits<S>::lowest());
    }
  }
  const auto group_order = order_of(worth);
  const std::set<index_t> allowed(group_order.begin(), group_order.begin() + o.topk_group);
  std::vector<index_t> out;
  for (const index_t i : order_of(keys)) {
    if (allowed.contains(i / static_cast<index_t>(size)) && static_cast<index_t>(out.size()) < o.top_k) {
      out.push_back(i);
    }
  }
  return out;
}

/// e^x over the sum of e^v, the numbers of which are as large as 1e38 and −1e30.
long double share_of_sum(long double x, const std::vector<long double>& all) {
  const long double largest = *std::max_element(all.begin(), all.end());
  long double sum = 0;
  for (const long double v : all) sum += std::exp(v - largest);
  return std::exp(x - largest) / sum;
}

expected undefined(index_t top_k) {
  expected out{status::non_finite, std::vector<index_t>(static_cast<std::size_t>(top_k)),
               std::vector<double>(static_cast<std::size_t>(top_k), 0.0)};
  std::iota(out.experts.begin(), out.experts.end(), index_t{0});
  return out;
}

template <class S>
expected oracle(const token<S>& t) {
  const auto& o = t.options;
  const bool is_softmax = o.score_function == score_function::softmax;
  const bool score_first = o.order == selection_order::score_then_select;
  if (std::any_of(t.logits.begin(), t.logits.end(), [](S x) { return std::isnan(x); }))
    return undefined(o.top_k);
  if (is_softmax && score_first && std::isinf(*std::max_element(t.logits.begin(), t.logits.end())))
    return undefined(o.top_k);
  expected out{status::ok, selected(t), {}};
  std::vector<long double> logs;  // of the open ones
  const auto is_open = [&](index_t i) {
    return t.bias.empty() ||
           nan_is_least(t.bias[static_cast<std::size_t>(i)]) > -std::numeric_limits<S>::infinity();
  };
  for (const index_t i : out.experts) {
    if (is_open(i)) logs.push_back(log_score(o.score_function, t.logits[static_cast<std::size_t>(i)]));
  }
  out.weights.assign(out.experts.size(), 0.0);
  if (logs.size() < out.experts.size()) out.state = status::closed_expert;
  if (logs.empty()) return out;
  const long double largest = *std::max_element(logs.begin(), logs.end());
  if (largest == std::numeric_limits<long double>::infinity() ||
      (is_softmax && !score_first && std::isinf(largest)))
    return undefined(o.top_k);
  std::vector<long double> divisor{0};
  if (o.renormalize || (is_softmax && !score_first)) {
    divisor = logs;
  } else if (is_softmax) {
    divisor.assign(t.logits.begin(), t.logits.end());
  }
  for (std::size_t k = 0; k < out.experts.size(); ++k) {
    const long double log = log_score(o.score_function, t.logits[static_cast<std::size_t>(out.experts[k])]);
    if (!is_open(out.experts[k]) || std::isinf(largest) || std::isinf(log)) continue;
    out.weights[k] =
        static_cast<double>(share_of_sum(log, divisor) * static_cast<long double>(o.scaling_factor));
    if (!std::isfinite(static_cast<S>(out.weights[k]))) return undefined(o.top_k);
  }
  return out;
}

/// True if the gate agrees with the oracle.
template <class S>
bool agrees(const token<S>& t) {
  const auto n = static_cast<index_t>(t.logits.size());
  const index_t k = t.options.top_k;
  std::vector<S> weights(static_cast<std::size_t>(k)),
      workspace(static_cast<std::size_t>(gating_workspace(1, n)));
  std::vector<expert_id> experts(static_cast<std::size_t>(k), -7);
  std::vector<status> statuses(1);
  gate<S>(row_major(t.logits.data(), 1, n), t.options, t.bias,
          {row_major(weights.data(), 1, k), experts, statuses}, workspace);
  const expected want = oracle(t);
  bool same = statuses[0] == want.state;
  for (std::size_t i = 0; i < experts.size(); ++i) {
    same = same && static_cast<index_t>(experts[i]) == want.experts[i] &&
           std::abs(static_cast<double>(weights[i]) - want.weights[i]) <=
               (sizeof(S) == 4 ? 3e-6 : 1e-12) * std::abs(want.weights[i]) +
                   2 * static_cast<double>(std::numeric_limits<S>::denorm_min());
  }
  const std::set<expert_id> distinct(experts.begin(), experts.end());
  return same && distinct.size() == experts.size() && *distinct.begin() >= 0 && *distinct.rbegin() < n;
}

/// A random setting that fits n experts.
gating_options random_options(random_source& random, index_t n) {
  gating_options o;
  std::vector<index_t> divisors;
  for (index_t g = 1; g <= n; ++g) {
    if (n % g == 0) divisors.push_back(g);
  }
  o.n_group =
      random.integer(0, 1) == 0
          ? 1
          : divisors[static_cast<std::size_t>(random.integer(0, static_cast<index_t>(divisors.size()) - 1))];
  o.topk_group = random.integer(1, o.n_group);
  const index_t reachable = o.topk_group * (n / o.n_group);
  o.top_k = random.integer(0, 9) == 0 ? reachable : random.integer(1, std::min(reachable, index_t{9}));
  o.score_function = static_cast<score_function>(random.integer(0, 2));
  o.order = static_cast<selection_order>(random.integer(0, 1));
  o.renormalize = random.integer(0, 1) == 0;
  o.scaling_factor = random.integer(0, 1) == 0 ? 1 : random.integer(0, 3) == 0 ? 1e30 : 2.5;
  o.group_score = static_cast<group_score>(random.integer(0, 2));
  return o;
}

/// Values that are hard for a selection: few distinct ones, zeros of both signs, infinities, NaN, huge, tiny,
/// and where a sigmoid is 1 or below the least number.
float hard_value(random_source& random) {
  constexpr float values[] = {0.0F,      -0.0F, 1.0F,    1.0F,      -1.0F,     2.0F,  infinity,
                              -infinity, 25.0F, -715.0F, -infinity, nan_value, 3e38F, -3e38F,
                              1e-45F,    88.0F, -104.0F, 20.0F,     -90.0F,    -1e30F};
  return values[random.integer(0, 19)];
}

}  // namespace

TEST_CASE_TEMPLATE("random and adversarial tokens agree with the oracle", S, float, double) {
  random_source random(1);
  index_t wrong = 0;
  index_t undefined = 0;
  index_t closed = 0;
#if defined(MPIROUTER_TEST_SANITIZED)
  constexpr int tokens = 3000;
#else
  constexpr int tokens = 60000;
#endif
  for (int i = 0; i < tokens; ++i) {
    const index_t n = random.integer(0, 3) == 0 ? random.integer(1, 5) : random.integer(1, 48);
    token<S> t;
    t.options = random_options(random, n);
    const index_t kind = random.integer(0, 6);
    const float same = static_cast<float>(random.normal());
    const auto depth = static_cast<float>(-50 * random.integer(1, 18));
    for (index_t e = 0; e < n; ++e) {
      const auto normal = static_cast<float>(3 * random.normal());
      t.logits.push_back(kind == 0   ? hard_value(random)
                         : kind == 1 ? same
                         : kind == 2 ? std::round(normal)  // many ties
                         : kind == 4 ? depth + normal      // all far below zero
                         : kind == 3
                             ? (random.integer(0, 9) == 0 ? hard_value(random) : normal)  // a few hard ones
                             : normal);
    }
    if (random.integer(0, 2) == 0) {
      for (index_t e = 0; e < n; ++e) {
        t.bias.push_back(kind == 3 && random.integer(0, 9) == 0
                             ? hard_value(random)
                             : std::round(static_cast<float>(4 * random.normal())) / 8);
      }
    }
    if (!agrees<S>(t)) {
      ++wrong;
      if (wrong < 5) {
        std::string text;
        for (const S x : t.logits) text += " " + std::to_string(x);
        MESSAGE(i << ": " << text << " top_k " << t.options.top_k << " of groups " << t.options.topk_group
                  << "/" << t.options.n_group << " score " << to_string(t.options.score_function) << " order "
                  << to_string(t.options.order) << " bias " << t.bias.size());
      }
    }
    undefined += oracle<S>(t).state == status::non_finite ? 1 : 0;
    closed += oracle<S>(t).state == status::closed_expert ? 1 : 0;
  }
  CHECK(wrong == 0);
  CHECK(undefined > tokens / 60);  // the hard cases were there
  CHECK(undefined < 30000);
  CHECK(closed >= tokens / 2000);
}

TEST_CASE("every K of every N, all values equal or all different") {
  index_t wrong = 0;
  for (index_t n = 1; n <= 20; ++n) {
    for (index_t k = 1; k <= n; ++k) {
      for (const bool equal : {true, false}) {
        token<float> t{std::vector<float>(static_cast<std::size_t>(n), 0.5F), {}, {.top_k = k}};
        for (index_t i = 0; i < n && !equal; ++i)
          t.logits[static_cast<std::size_t>(i)] = static_cast<float>((i * 7) % n);
        wrong += agrees(t) ? 0 : 1;
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("tokens that nothing can be said of") {
  const auto state_of = [](const std::vector<float>& logits, const gating_options& options) {
    const auto n = static_cast<index_t>(logits.size());
    std::vector<float> weights(static_cast<std::size_t>(options.top_k), 5.0F),
        workspace(static_cast<std::size_t>(gating_workspace(1, n)));
    std::vector<expert_id> experts(static_cast<std::size_t>(options.top_k));
    std::vector<status> statuses(1);
    gate<float>(row_major(logits.data(), 1, n), options, {},
                {row_major(weights.data(), 1, options.top_k), experts, statuses}, workspace);
    if (statuses[0] == status::non_finite) {
      CHECK(experts == std::vector<expert_id>{0, 1});
      CHECK(weights == std::vector<float>{0.0F, 0.0F});
    }
    return statuses[0];
  };
  gating_options softmax{.top_k = 2};
  gating_options sigmoid{.top_k = 2, .score_function = score_function::sigmoid};
  gating_options later{.top_k = 2, .order = selection_order::select_then_score};
  CHECK(state_of({1, nan_value, 2}, softmax) == status::non_finite);
  CHECK(state_of({1, nan_value, 2}, sigmoid) == status::non_finite);
  CHECK(state_of({1, nan_value, 2}, later) == status::non_finite);
  CHECK(state_of({1, infinity, 2}, softmax) == status::non_finite);
  CHECK(state_of({1, infinity, 2}, sigmoid) == status::ok);
  CHECK(state_of({-infinity, -infinity, -infinity}, softmax) == status::non_finite);
  CHECK(state_of({-infinity, -infinity, -infinity}, sigmoid) == status::ok);
  CHECK(state_of({-infinity, 3, -infinity}, softmax) == status::ok);
  CHECK(state_of({-infinity, 3, -infinity}, later) == status::ok);
}

TEST_CASE("a group with one open expert comes before groups without") {
  // Of four groups, the third has one expert that a bias does not close.
  const std::vector<float> logits{4, 3, 3, 4, -5, 1, 2, 2};
  std::vector<float> bias(8, -infinity);
  bias[5] = 0;
  for (const group_score by : {group_score::top2_sum, group_score::top_k_share_sum, group_score::max}) {
    CAPTURE(to_string(by));
    std::vector<float> weights(2), workspace(static_cast<std::size_t>(gating_workspace(1, 8)));
    std::vector<expert_id> ids(2);
    std::vector<status> statuses(1);
    gate<float>(row_major(logits.data(), 1, 8),
                {.top_k = 2,
                 .score_function = score_function::sigmoid,
                 .n_group = 4,
                 .topk_group = 1,
                 .group_score = by},
                bias, {row_major(weights.data(), 1, 2), ids, statuses}, workspace);
    CHECK(ids == std::vector<expert_id>{5, 4});
    CHECK(weights == std::vector<float>{1, 0});
    CHECK(statuses[0] == status::closed_expert);
  }
}

TEST_CASE("a group whose sum is not a number comes last") {
  const std::vector<float> logits{infinity, -infinity, 0, 1, 1, 1, 0.5F, 0.5F, 0.5F};
  std::vector<float> weights(6), workspace(static_cast<std::size_t>(gating_workspace(1, 9)));
  std::vector<expert_id> ids(6);
  gate<float>(row_major(logits.data(), 1, 9),
              {.top_k = 6,
               .score_function = score_function::sigmoid,
               .order = selection_order::select_then_score,
               .n_group = 3,
               .topk_group = 2,
               .group_score = group_score::top_k_share_sum},
              {}, {row_major(weights.data(), 1, 6), ids}, workspace);
  CHECK(ids == std::vector<expert_id>{3, 4, 5, 6, 7, 8});
}

}  // namespace test_selection
