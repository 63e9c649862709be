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

using namespace mpi_router;
using namespace test_support;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

struct token {
  std::vector<float> logits;
  std::vector<float> bias;
  gating_options options;
};

/// What should come out, by sorting everything and in as few words as possible.
struct expected {
  bool defined = true;
  std::vector<index_t> experts;
  std::vector<double> weights;
};

// The scores in float, as the rule says that selection runs in f32: ties of rounded scores are part of the
// contract.
std::vector<float> scores_of(score_function f, const std::vector<float>& x, bool& defined) {
  std::vector<float> out(x.size());
  if (f == score_function::softmax) {
    float largest = -infinity;
    for (const float v : x) largest = std::max(largest, v);
    defined = defined && std::isfinite(largest);
    if (!defined) return out;
    vector_view<float> view(out);
    std::copy(x.begin(), x.end(), out.begin());
    defined = detail::softmax(view);  // tested against double in the gating test; its rounding decides ties
  } else {
    std::transform(x.begin(), x.end(), out.begin(), [f](float v) { return detail::score_of(f, v); });
  }
  return out;
}

/// Indices in order of value, largest first, ties to the lower index.
std::vector<index_t> order_of(const std::vector<float>& value) {
  std::vector<index_t> order(value.size());
  std::iota(order.begin(), order.end(), index_t{0});
  const auto at = [&](index_t i) { return value[static_cast<std::size_t>(i)]; };
  std::sort(order.begin(), order.end(),
            [&](index_t a, index_t b) { return at(a) > at(b) || (at(a) == at(b) && a < b); });
  return order;
}

float nan_is_least(float x) { return std::isnan(x) ? -infinity : x; }

expected oracle(const token& t) {
  const auto& o = t.options;
  const auto n = t.logits.size();
  expected out;
  const bool score_first = o.order == selection_order::score_then_select;
  out.defined = std::none_of(t.logits.begin(), t.logits.end(), [](float x) { return std::isnan(x); });
  std::vector<float> scores = t.logits;
  if (out.defined && score_first) scores = scores_of(o.score_function, t.logits, out.defined);
  if (out.defined) {
    std::vector<float> keys(n);
    for (std::size_t i = 0; i < n; ++i)
      keys[i] = nan_is_least(t.bias.empty() ? scores[i] : scores[i] + t.bias[i]);

    const auto groups = static_cast<std::size_t>(o.n_group);
    const std::size_t size = n / groups;
    std::vector<float> worth(groups);
    for (std::size_t g = 0; g < groups; ++g) {
      std::vector<float> members(keys.begin() + static_cast<std::ptrdiff_t>(g * size),
                                 keys.begin() + static_cast<std::ptrdiff_t>((g + 1) * size));
      std::sort(members.begin(), members.end(), std::greater<>());
      std::size_t count = o.group_score == group_score::max ? 1
                          : o.group_score == group_score::top2_sum
                              ? 2
                              : static_cast<std::size_t>(std::max(index_t{1}, o.top_k / o.topk_group));
      count = std::min(count, size);
      float sum = 0;
      for (std::size_t i = 0; i < count; ++i) sum += members[i];
      worth[g] = nan_is_least(sum);
    }
    const auto group_order = order_of(worth);
    const std::set<index_t> allowed(group_order.begin(), group_order.begin() + o.topk_group);
    for (const index_t i : order_of(keys)) {
      if (allowed.contains(i / static_cast<index_t>(size)) &&
          static_cast<index_t>(out.experts.size()) < o.top_k) {
        out.experts.push_back(i);
      }
    }

    std::vector<float> chosen;
    chosen.reserve(out.experts.size());
    for (const index_t i : out.experts) chosen.push_back(scores[static_cast<std::size_t>(i)]);
    if (!score_first) chosen = scores_of(o.score_function, chosen, out.defined);
    double sum = 0;
    for (const float s : chosen) sum += static_cast<double>(s);
    for (const float s : chosen) {
      const double weight = static_cast<double>(s) / (o.renormalize && sum > 0 ? sum : 1) * o.scaling_factor;
      out.defined = out.defined && std::isfinite(weight);
      out.weights.push_back(weight);
    }
  }
  if (!out.defined) {
    out.experts.resize(static_cast<std::size_t>(o.top_k));
    std::iota(out.experts.begin(), out.experts.end(), index_t{0});
    out.weights.assign(static_cast<std::size_t>(o.top_k), 0.0);
  }
  return out;
}

/// True if the gate agrees with the oracle.
bool agrees(const token& t) {
  const auto n = static_cast<index_t>(t.logits.size());
  const index_t k = t.options.top_k;
  std::vector<float> weights(static_cast<std::size_t>(k)),
      workspace(static_cast<std::size_t>(gating_workspace(1, n)));
  std::vector<expert_id> experts(static_cast<std::size_t>(k), -7);
  std::vector<status> statuses(1);
  gate<float>(row_major(t.logits.data(), 1, n), t.options, t.bias,
              {row_major(weights.data(), 1, k), experts, statuses}, workspace);
  const expected want = oracle(t);
  bool same = (statuses[0] == status::ok) == want.defined &&
              (statuses[0] == status::ok || statuses[0] == status::non_finite);
  for (std::size_t i = 0; i < experts.size(); ++i) {
    same = same && static_cast<index_t>(experts[i]) == want.experts[i] &&
           std::abs(static_cast<double>(weights[i]) - want.weights[i]) <=
               1e-6 * std::abs(want.weights[i]) + 1e-37;
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
  o.scaling_factor = random.integer(0, 1) == 0 ? 1 : 2.5;
  o.group_score = static_cast<group_score>(random.integer(0, 2));
  return o;
}

/// Values that are hard for a selection: few distinct ones, zeros of both signs, infinities, NaN, huge, tiny.
float hard_value(random_source& random) {
  constexpr float values[] = {0.0F,      -0.0F,     1.0F,  1.0F,   -1.0F,  2.0F,  infinity, -infinity,
                              -infinity, nan_value, 3e38F, -3e38F, 1e-45F, 88.0F, -104.0F,  20.0F};
  return values[random.integer(0, 15)];
}

}  // namespace

TEST_CASE("100000 random and adversarial tokens agree with the oracle") {
  random_source random(1);
  index_t wrong = 0;
  index_t undefined = 0;
  for (int i = 0; i < 100000; ++i) {
    const index_t n = random.integer(0, 3) == 0 ? random.integer(1, 5) : random.integer(1, 48);
    token t;
    t.options = random_options(random, n);
    const index_t kind = random.integer(0, 5);
    const float same = static_cast<float>(random.normal());
    for (index_t e = 0; e < n; ++e) {
      const auto normal = static_cast<float>(3 * random.normal());
      t.logits.push_back(kind == 0   ? hard_value(random)
                         : kind == 1 ? same
                         : kind == 2 ? std::round(normal)  // many ties
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
    if (!agrees(t)) {
      ++wrong;
      if (wrong < 5) {
        std::string text;
        for (const float x : t.logits) text += " " + std::to_string(x);
        MESSAGE(i << ": " << text << " top_k " << t.options.top_k << " of groups " << t.options.topk_group
                  << "/" << t.options.n_group << " score " << to_string(t.options.score_function) << " order "
                  << to_string(t.options.order) << " bias " << t.bias.size());
      }
    }
    undefined += oracle(t).defined ? 0 : 1;
  }
  CHECK(wrong == 0);
  CHECK(undefined > 1000);  // the hard cases were there
  CHECK(undefined < 50000);
}

TEST_CASE("every K of every N, all values equal or all different") {
  index_t wrong = 0;
  for (index_t n = 1; n <= 20; ++n) {
    for (index_t k = 1; k <= n; ++k) {
      for (const bool equal : {true, false}) {
        token t{std::vector<float>(static_cast<std::size_t>(n), 0.5F), {}, {.top_k = k}};
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
