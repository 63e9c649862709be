// The gate on a GPU against a brute-force choice in f64 on the host.
#include <mpi_router/cuda/logits.cuh>

#include <algorithm>
#include <limits>
#include <numeric>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "order.hpp"

namespace gpu_check {
namespace {

double score_of(score_function f, double x) {
  switch (f) {
    case score_function::softmax: break;
    case score_function::sigmoid: return 1 / (1 + std::exp(-x));
    case score_function::sqrtsoftplus:
      return std::sqrt(std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))));
  }
  return std::nan("");
}

/// e^(x − the largest) over their sum; `ok` says whether that is defined.
std::vector<double> softmax(std::vector<double> v, bool& ok) {
  const double top = *std::max_element(v.begin(), v.end());
  ok = std::isfinite(top);
  double sum = 0;
  for (auto& e : v) {
    sum += e = std::exp(e - top);
  }
  for (auto& e : v) {
    e /= sum;
  }
  return v;
}

struct choice {
  std::vector<int> ids;
  std::vector<double> weights;
  std::vector<double> keys;  // of all experts
  status state = status::ok;
  bool exact = true;  // selected by the logits themselves
};

choice without_experts(const gating_options& o, status state) {
  choice c;
  c.ids.resize(static_cast<std::size_t>(o.top_k), -1);
  if (state == status::non_finite) {
    std::iota(c.ids.begin(), c.ids.end(), 0);
  }
  c.weights.assign(static_cast<std::size_t>(o.top_k), 0.0);
  c.state = state;
  return c;
}

bool sums_groups(const gating_options& o, std::size_t n) {
  return o.topk_group < o.n_group && core::experts_in_group_score(o, static_cast<index_t>(n) / o.n_group) > 1;
}

/// The experts of the best groups.
std::vector<std::size_t> in_best_groups(const std::vector<double>& keys, const gating_options& o) {
  std::vector<std::size_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  if (o.topk_group == o.n_group) {
    return order;
  }
  const auto groups = static_cast<std::size_t>(o.n_group), size = keys.size() / groups;
  std::vector<double> worth;
  for (std::size_t g = 0; g < groups; ++g) {
    std::vector<double> mine(keys.begin() + static_cast<long>(g * size),
                             keys.begin() + static_cast<long>((g + 1) * size));
    std::sort(mine.rbegin(), mine.rend());
    double sum = 0;
    for (index_t i = 0; i < core::experts_in_group_score(o, static_cast<index_t>(size)); ++i) {
      sum += mine[static_cast<std::size_t>(i)];
    }
    const bool has_open = mine.front() > -HUGE_VAL;
    worth.push_back(std::isfinite(sum) || sum > 0 ? sum
                    : has_open                    ? -std::numeric_limits<double>::max()
                                                  : -HUGE_VAL);
  }
  std::vector<std::size_t> best(groups);
  std::iota(best.begin(), best.end(), 0);
  std::stable_sort(best.begin(), best.end(), [&](auto a, auto b) { return worth[a] > worth[b]; });
  best.resize(static_cast<std::size_t>(o.topk_group));
  std::erase_if(order, [&](auto i) { return std::find(best.begin(), best.end(), i / size) == best.end(); });
  return order;
}

/// The weights of the chosen, before their scale, from their logits; a closed expert has the logit −∞.
std::vector<double> weigh(const std::vector<double>& logits, const std::vector<double>& chosen,
                          bool all_closed, const gating_options& o, bool& ok) {
  const bool score_first = o.order == selection_order::score_then_select;
  if (o.score_function == score_function::softmax) {
    if (score_first && !o.renormalize) {
      const double top = *std::max_element(logits.begin(), logits.end());
      double sum = 0;
      for (const double x : logits) sum += std::exp(x - top);
      std::vector<double> shares;
      for (const double x : chosen) shares.push_back(std::exp(x - top) / sum);
      return shares;
    }
    if (*std::max_element(chosen.begin(), chosen.end()) == -HUGE_VAL && (score_first || all_closed)) {
      return std::vector<double>(chosen.size(), 0.0);
    }
    return softmax(chosen, ok);
  }
  std::vector<double> scores;
  for (const double x : chosen) scores.push_back(score_of(o.score_function, x));
  const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
  for (double& s : scores) s /= o.renormalize && sum > 0 ? sum : 1.0;
  return scores;
}

/// The definition in f64, written down without regard for cost.
choice choose(const std::vector<double>& x, const gating_options& o, const std::vector<double>& bias,
              bool routed) {
  if (!routed) {
    return without_experts(o, status::masked);
  }
  const std::size_t n = x.size();
  if (std::any_of(x.begin(), x.end(), [](double v) { return std::isnan(v); })) {
    return without_experts(o, status::non_finite);
  }
  choice c;
  bool ok = true;
  const bool score_first = o.order == selection_order::score_then_select;
  std::vector<double> scores(n);
  if (o.score_function == score_function::softmax) {
    scores = softmax(x, ok);
  } else {
    for (std::size_t i = 0; i < n; ++i) scores[i] = score_of(o.score_function, x[i]);
  }
  if (score_first && !ok) {
    return without_experts(o, status::non_finite);
  }
  ok = true;
  c.exact = !score_first || (bias.empty() && !sums_groups(o, n));
  c.keys = c.exact ? x : scores;
  for (std::size_t i = 0; i < n; ++i) {
    c.keys[i] += bias.empty() ? 0.0 : bias[i];
    c.keys[i] = std::isnan(c.keys[i]) ? -HUGE_VAL : c.keys[i];
  }
  std::vector<std::size_t> order = in_best_groups(c.keys, o);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return c.keys[a] > c.keys[b]; });
  std::vector<double> chosen;
  bool all_closed = true;
  for (index_t k = 0; k < o.top_k; ++k) {
    const auto i = order[static_cast<std::size_t>(k)];
    const bool closed = !bias.empty() && !(bias[i] > -HUGE_VAL);  // −∞ or NaN
    c.ids.push_back(static_cast<int>(i));
    c.state = closed ? status::closed_expert : c.state;
    all_closed = all_closed && closed;
    chosen.push_back(closed ? -HUGE_VAL : x[i]);
  }
  for (const double s : weigh(x, chosen, all_closed, o, ok)) {
    c.weights.push_back(s * o.scaling_factor);
    ok = ok && std::isfinite(c.weights.back());
  }
  return ok ? c : without_experts(o, status::non_finite);
}

/// Logits of every kind: usual ones, few different ones, as deep as −300, saturated, infinite, NaN.
std::vector<float> make_logits(generator& g, index_t tokens, index_t n, index_t stride, bool coarse) {
  std::normal_distribution<float> normal;
  std::vector<float> logits(static_cast<std::size_t>(tokens * stride), std::nanf(""));
  for (index_t t = 0; t < tokens; ++t) {
    index_t kind = uniform(g, 0, 19);
    kind = coarse && kind >= 6 && kind <= 8 ? 19 : kind;  // few different scores, and none that vanish
    float* const row = logits.data() + t * stride;
    const auto base = static_cast<float>(kind == 6   ? uniform(g, -300, 0)
                                         : kind == 7 ? uniform(g, 20, 90)
                                                     : 0);
    const float apart = kind == 8 ? 40.0F : 3.0F;
    for (index_t i = 0; i < n; ++i) {
      float x = coarse ? static_cast<float>(uniform(g, -3, 3)) * 0.5F : normal(g) * apart;
      x = kind == 0 ? 1.0F : kind == 1 && uniform(g, 0, 3) == 0 ? -INFINITY : kind == 9 ? -105.0F : x;
      row[i] = base + x;
    }
    if (kind == 2) row[uniform(g, 0, n - 1)] = std::nanf("");
    if (kind == 3) row[uniform(g, 0, n - 1)] = INFINITY;
    if (kind == 4) std::fill(row, row + n, -INFINITY);
    if (kind == 5) row[uniform(g, 0, n - 1)] = -0.0F;
  }
  return logits;
}

/// Biases, of which none, some or nearly all close their expert.
std::vector<float> make_bias(generator& g, index_t n, bool coarse) {
  std::normal_distribution<float> normal;
  const index_t closed_of_8 = uniform(g, 0, 3) == 0 ? uniform(g, 1, 8) : 0;
  std::vector<float> bias;
  for (index_t i = 0; i < n; ++i) {
    const float x = coarse ? static_cast<float>(uniform(g, -2, 2)) * 4.0F : normal(g);
    bias.push_back(uniform(g, 0, 7) < closed_of_8 ? -INFINITY : x);
  }
  return bias;
}

std::vector<status> make_mask(generator& g, index_t tokens) {
  constexpr status kinds[] = {status::ok, status::masked, status::non_finite, status::closed_expert};
  std::vector<status> mask;
  for (index_t t = 0; t < tokens; ++t) {
    mask.push_back(kinds[uniform(g, 0, 3)]);
  }
  return mask;
}

std::string describe(index_t tokens, index_t n, const gating_options& o) {
  return "gate [" + std::to_string(tokens) + ", " + std::to_string(n) + "] K " + std::to_string(o.top_k) +
         " " + std::string(to_string(o.score_function)) + " " + std::string(to_string(o.order)) +
         (o.renormalize ? " renormalised" : "") + " groups " + std::to_string(o.topk_group) + "/" +
         std::to_string(o.n_group) + " " + std::string(to_string(o.group_score));
}

void check_load(const std::string& what, const device_array<int>& load, const std::vector<int>& counted,
                const device_array<double>& maxvio, const device_array<double>& entropy) {
  check(load.host() == counted, what + ": load");
  double total = 0, top = 0, bits = 0;
  for (const int c : counted) {
    total += c;
    top = std::max(top, static_cast<double>(c));
  }
  for (const int c : counted) {
    bits -= c > 0 ? c / total * std::log(c / total) : 0.0;
  }
  const double mean = total / static_cast<double>(counted.size());
  check(std::abs(maxvio.host()[0] - (total > 0 ? top / mean - 1 : 0)) < 1e-9, what + ": MaxVio");
  check(std::abs(entropy.host()[0] - bits) < 1e-9, what + ": entropy");
}

/// One token against its definition; counts its experts.
void check_token(const std::string& where, const choice& want, const float* weights, const expert_id* ids,
                 status state, bool coarse, std::vector<int>& counted) {
  check(state == want.state, where + ": status " + std::string(to_string(state)) + ", expected " +
                                 std::string(to_string(want.state)));
  const auto n = static_cast<int>(counted.size());
  const bool routed = is_routed(want.state);
  std::vector<bool> seen(counted.size(), false);
  bool in_range = true, same = true, near = true, weighed = true;
  for (std::size_t k = 0; k < want.ids.size(); ++k) {
    same = same && ids[k] == want.ids[k];
    weighed = weighed && std::abs(weights[k] - want.weights[k]) <= 2e-5 * std::abs(want.weights[k]) + 1e-37;
    if (!routed) continue;
    in_range = in_range && ids[k] >= 0 && ids[k] < n && !seen[static_cast<std::size_t>(ids[k])];
    if (!in_range) break;
    seen[static_cast<std::size_t>(ids[k])] = true;
    const double a = want.keys[static_cast<std::size_t>(ids[k])],
                 b = want.keys[static_cast<std::size_t>(want.ids[k])];
    near = near && (a == b || std::abs(a - b) <= 1e-5 * (std::abs(b) + 1e-3));
    counted[static_cast<std::size_t>(ids[k])] += 1;
  }
  check(in_range, where + ": an expert twice, or out of range");
  check(want.exact || coarse || !routed ? same : near, where + ": other experts");
  check(weighed || (!same && near), where + ": weights");
}

void check_tokens(const cuda::context& ctx, generator& g, index_t tokens, index_t n, const gating_options& o,
                  bool coarse, bool biased, bool masked) {
  const index_t stride = n + uniform(g, 0, 3);
  const std::vector<float> logits = make_logits(g, tokens, n, stride, coarse);
  const std::vector<float> bias = biased ? make_bias(g, n, coarse) : std::vector<float>();
  const std::vector<status> mask = masked ? make_mask(g, tokens) : std::vector<status>();
  const auto count = static_cast<std::size_t>(tokens * o.top_k);
  const device_array<float> device_logits(logits), device_bias(bias), weights(count);
  const device_array<expert_id> experts(count);
  // The statuses of the tokens may be where the results go.
  const device_array<status> statuses =
      masked ? device_array<status>(mask) : device_array<status>(static_cast<std::size_t>(tokens));
  const device_array<int> load(std::vector<int>(static_cast<std::size_t>(n), 0));
  const device_array<double> maxvio(1), entropy(1);
  cuda::gate(ctx, {device_logits.data(), tokens, n, stride, 1}, o, biased ? device_bias.data() : nullptr,
             {weights.data(), experts.data(), statuses.data(), load.data()},
             masked ? statuses.data() : nullptr);
  cuda::balance(ctx, load.data(), n, maxvio.data(), entropy.data());
  sync();
  const std::string what = describe(tokens, n, o) + (biased ? " biased" : "") + (coarse ? " coarse" : "") +
                           (masked ? " masked" : "");
  check(weights.intact() && experts.intact() && statuses.intact() && load.intact(), what + ": out of bounds");
  const auto w = weights.host();
  const auto ids = experts.host();
  const auto states = statuses.host();
  std::vector<int> counted(static_cast<std::size_t>(n), 0);
  for (index_t t = 0; t < tokens; ++t) {
    const std::vector<double> x(logits.begin() + t * stride, logits.begin() + t * stride + n);
    const bool routed = !masked || is_routed(mask[static_cast<std::size_t>(t)]);
    const choice want = choose(x, o, std::vector<double>(bias.begin(), bias.end()), routed);
    check_token(what + " token " + std::to_string(t), want, w.data() + t * o.top_k, ids.data() + t * o.top_k,
                states[static_cast<std::size_t>(t)], coarse, counted);
  }
  check_load(what, load, counted, maxvio, entropy);
}

/// Weights of one token, by name of what is wanted of them.
void check_weights(const cuda::context& ctx, const char* what, const std::vector<float>& logits,
                   const gating_options& o, const std::vector<float>& bias, const std::vector<expert_id>& ids,
                   const std::vector<double>& want, status state) {
  const auto n = static_cast<index_t>(logits.size());
  const device_array<float> x(logits), b(bias), weights(want.size());
  const device_array<expert_id> experts(ids.size());
  const device_array<status> statuses(1);
  cuda::gate(ctx, row_major<device_space>(static_cast<const float*>(x.data()), 1, n), o,
             bias.empty() ? nullptr : b.data(), {weights.data(), experts.data(), statuses.data()});
  sync();
  const auto w = weights.host();
  check(experts.host() == ids && statuses.host()[0] == state, std::string(what) + ": experts or status");
  for (std::size_t k = 0; k < want.size(); ++k) {
    check(std::abs(w[k] - want[k]) <= 1e-5 * want[k],
          std::string(what) + ": weight " + std::to_string(w[k]) + ", not " + std::to_string(want[k]));
  }
}

/// What reports of users were about; for both kernels, the second takes more experts than 256.
void check_depths(const cuda::context& ctx, index_t n) {
  const auto at = [n](std::initializer_list<float> first, float rest) {
    std::vector<float> x(first);
    x.resize(static_cast<std::size_t>(n), rest);
    return x;
  };
  using enum score_function;
  constexpr auto ok = status::ok;
  for (const score_function f : {softmax, sigmoid, sqrtsoftplus}) {
    for (const float depth : {0.0F, -50.0F, -87.5F, -93.0F, -105.0F, -1e4F}) {
      const std::string what = std::string(to_string(f)) + " of equal logits " + std::to_string(depth);
      check_weights(ctx, what.c_str(), at({}, depth), {.top_k = 4, .score_function = f}, {}, {0, 1, 2, 3},
                    {0.25, 0.25, 0.25, 0.25}, ok);
    }
    const std::string what = "saturated " + std::string(to_string(f));
    const double e = std::exp(-5.0), s = 1 + e, t = std::sqrt(30.0) + 5;
    const std::vector<double> want = f == softmax   ? std::vector<double>{1 / s, e / s}
                                     : f == sigmoid ? std::vector<double>{0.5, 0.5}
                                                    : std::vector<double>{std::sqrt(30.0) / t, 5 / t};
    check_weights(ctx, what.c_str(), at({20.0F, 25.0F, 30.0F}, -1.0F), {.top_k = 2, .score_function = f}, {},
                  {2, 1}, want, ok);
  }
  const double e = std::exp(-0.5), sum = 1 + e;
  check_weights(ctx, "sigmoid at −100 and −100.5", at({-100.5F, -100.0F}, -200.0F),
                {.top_k = 2, .score_function = sigmoid}, {}, {1, 0}, {1 / sum, e / sum}, ok);
  const double root = std::exp(-0.25), roots = 1 + root;
  check_weights(ctx, "sqrtsoftplus at −100 and −100.5", at({-100.5F, -100.0F}, -200.0F),
                {.top_k = 2, .score_function = sqrtsoftplus}, {}, {1, 0}, {1 / roots, root / roots}, ok);
  check_weights(ctx, "sqrtsoftplus as it is", at({-100.0F}, -120.0F),
                {.top_k = 1, .score_function = sqrtsoftplus, .renormalize = false}, {}, {0},
                {std::exp(-50.0)}, ok);
  check_weights(ctx, "sigmoid at −110, times 1e30", at({-110.0F}, -120.0F),
                {.top_k = 1, .score_function = sigmoid, .renormalize = false, .scaling_factor = 1e30}, {},
                {0}, {1e30 * std::exp(-110.0)}, ok);
  check_weights(ctx, "softmax at −110, times 1e30", at({0.0F, -110.0F}, -INFINITY),
                {.top_k = 2, .renormalize = false, .scaling_factor = 1e30}, {}, {0, 1},
                {1e30, 1e30 * std::exp(-110.0)}, ok);
  check_weights(ctx, "a bias to experts 120 below the best", at({-120.0F, -120.0F}, 0.0F), {.top_k = 2},
                at({2.0F, 1.0F}, 0.0F), {0, 1}, {0.5, 0.5}, ok);
  check_weights(ctx, "two of three are closed", at({1.0F, 2.0F, 3.0F}, 4.0F),
                {.top_k = 3, .score_function = sigmoid}, at({0.0F}, -INFINITY), {0, 1, 2}, {1, 0, 0},
                status::closed_expert);
  check_weights(ctx, "a NaN among the biases closes, too", at({1.0F, 2.0F, 3.0F}, 4.0F),
                {.top_k = 2, .score_function = sigmoid}, at({0.0F, std::nanf("")}, -INFINITY), {0, 1}, {1, 0},
                status::closed_expert);
  check_weights(ctx, "all are closed", at({}, 4.0F), {.top_k = 2}, at({}, -INFINITY), {0, 1}, {0, 0},
                status::closed_expert);
}

template <class T>
void check_logits(const cuda::context& ctx, generator& g, cublasLtHandle_t handle) {
  const index_t t = uniform(g, 1, 40) * 8, n = uniform(g, 1, 16) * 8, d = uniform(g, 1, 40) * 8;
  std::normal_distribution<double> normal;
  std::vector<T> tokens(static_cast<std::size_t>(t * d)), rows(static_cast<std::size_t>(n * d));
  for (auto& x : tokens) x = make<T>(normal(g));
  for (auto& x : rows) x = make<T>(normal(g));
  const cuda::logits_product<T> product(handle, t, n, d);
  const device_array<T> device_tokens(tokens), device_rows(rows);
  const device_array<float> logits(static_cast<std::size_t>(t * n));
  const std::size_t bytes = product.workspace_bytes();
  void* scratch = nullptr;
  must(cudaMalloc(&scratch, bytes + 1), "cudaMalloc");
  product(ctx, device_tokens.data(), device_rows.data(), logits.data(), {scratch, bytes});
  sync();
  cudaFree(scratch);
  const auto got = logits.host();
  double worst = 0;
  for (index_t i = 0; i < t; ++i) {
    for (index_t j = 0; j < n; ++j) {
      double sum = 0;
      for (index_t k = 0; k < d; ++k) {
        sum += value(tokens[static_cast<std::size_t>(i * d + k)]) *
               value(rows[static_cast<std::size_t>(j * d + k)]);
      }
      const double off = std::abs(got[static_cast<std::size_t>(i * n + j)] - sum);
      worst = std::isnan(off) ? HUGE_VAL : std::max(worst, off);
    }
  }
  check(worst <= 2e-5 * std::sqrt(static_cast<double>(d)) * 4,
        std::string("logits ") + type_name<T> + " off by " + std::to_string(worst));
}

template <class T>
void check_empty_logits(const cuda::context& ctx, cublasLtHandle_t handle) {
  const device_array<float> logits(12);
  const device_array<T> nothing(1);
  cuda::logits_product<T>(handle, 4, 3, 0)(ctx, nothing.data(), nothing.data(), logits.data(), {});
  cuda::logits_product<T>(handle, 0, 3, 8)(ctx, nothing.data(), nothing.data(), logits.data() + 12, {});
  sync();
  check(logits.intact() && logits.host() == std::vector<float>(12, 0.0F),
        std::string("logits of D = 0 are zero ") + type_name<T>);
}

void check_order(const cuda::context& ctx, index_t n, generator& g) {
  constexpr index_t tokens = 300, top_k = 4;
  const device_array<float> logits(values_of(g, static_cast<std::size_t>(tokens * n)));
  const device_array<float> weights(static_cast<std::size_t>(tokens * top_k));
  const device_array<expert_id> experts(static_cast<std::size_t>(tokens * top_k));
  const auto select = [&] {
    cuda::gate(ctx, row_major<device_space>(static_cast<const float*>(logits.data()), tokens, n),
               {.top_k = top_k}, nullptr, {weights.data(), experts.data()});
  };
  select();
  sync();
  const auto chosen = experts.host();
  const auto weighed = weights.host();
  const late_array late(logits);
  after({late.restore()}, select);
  check(same(experts, chosen) && same(weights, weighed),
        "gate of " + std::to_string(n) + " experts: not in order");
}

}  // namespace

void check_gating(const cuda::context& ctx, int effort) {
  generator g(4242);
  for (const index_t n : {16, 128, 300}) {
    if (effort >= 4) {  // sanitizers take kernels one after the other
      check_order(ctx, n, g);
    }
  }
  for (const index_t n : {40, 100, 250, 400, 600}) {
    check_depths(ctx, n);
  }
  for (int i = 0; i < effort * 12; ++i) {
    const bool many = i % 17 == 0;
    gating_options o;
    o.n_group = uniform(g, 0, 2) == 0 ? uniform(g, 1, 8) : 1;
    const index_t size = uniform(g, 1, many ? 300 : 40);
    const index_t n = o.n_group * size;
    o.topk_group = uniform(g, 1, o.n_group);
    o.top_k = uniform(g, 1, std::min<index_t>(o.topk_group * size, uniform(g, 0, 5) == 0 ? 100 : 10));
    o.score_function = static_cast<score_function>(uniform(g, 0, 2));
    o.order = static_cast<selection_order>(uniform(g, 0, 1));
    o.renormalize = uniform(g, 0, 1) == 0;
    o.scaling_factor = uniform(g, 0, 1) == 0 ? 1.0 : 2.5;
    o.group_score = static_cast<group_score>(uniform(g, 0, 2));
    const bool coarse = uniform(g, 0, 1) == 0;
    check_tokens(ctx, g, uniform(g, 1, 200), n, o, coarse, uniform(g, 0, 2) == 0, uniform(g, 0, 3) == 0);
  }
  if (effort >= 4) {
    check_tokens(ctx, g, 20, 4096, {.top_k = 40}, false, true, true);
    check_tokens(ctx, g, 5000, 128, {.top_k = 8}, true, false, false);
    check_tokens(ctx, g, 5000, 128, {.top_k = 8}, false, false, true);
  }
  cublasLtHandle_t handle = nullptr;
  if (cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
    check(false, "cublasLtCreate");
    return;
  }
  check_empty_logits<bf16>(ctx, handle);
  for (int i = 0; i < effort / 4 + 1; ++i) {
    check_logits<bf16>(ctx, g, handle);
    check_logits<f16>(ctx, g, handle);
    check_logits<float>(ctx, g, handle);
  }
  cublasLtDestroy(handle);
  std::printf("gating: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
