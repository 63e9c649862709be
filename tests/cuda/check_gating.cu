// The gate on a GPU against a brute-force choice in f64 on the host.
#include <mpi_router/cuda/logits.cuh>

#include <algorithm>
#include <numeric>

#include "gpu_checks.hpp"
#include "gpu_support.hpp"
#include "order.hpp"

namespace gpu_check {
namespace {

double score_of(score_function f, double x) {
  return f == score_function::sigmoid ? 1 / (1 + std::exp(-x))
                                      : std::sqrt(std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))));
}

struct choice {
  std::vector<int> ids;
  std::vector<double> weights;
  std::vector<double> keys;  // of all experts, those of groups left out −∞
  bool defined = true;
};

/// The definition, written down without regard for cost.
choice choose(const std::vector<double>& x, const gating_options& o, const std::vector<double>& bias) {
  const std::size_t n = x.size();
  choice c;
  const auto undefined = [&] {
    c.ids.resize(static_cast<std::size_t>(o.top_k));
    std::iota(c.ids.begin(), c.ids.end(), 0);
    c.weights.assign(static_cast<std::size_t>(o.top_k), 0.0);
    c.defined = false;
    return c;
  };
  if (std::any_of(x.begin(), x.end(), [](double v) { return std::isnan(v); })) {
    return undefined();
  }
  const auto softmax = [](std::vector<double> v, bool& ok) {
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
  };
  bool ok = true;
  std::vector<double> scores = x;
  if (o.order == selection_order::score_then_select) {
    if (o.score_function == score_function::softmax) {
      scores = softmax(x, ok);
    } else {
      for (auto& s : scores) {
        s = score_of(o.score_function, s);
      }
    }
  }
  if (!ok) {
    return undefined();
  }
  c.keys = scores;
  for (std::size_t i = 0; i < n; ++i) {
    c.keys[i] += bias.empty() ? 0.0 : bias[i];
    c.keys[i] = std::isnan(c.keys[i]) ? -HUGE_VAL : c.keys[i];
  }
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const auto groups = static_cast<std::size_t>(o.n_group), size = n / groups;
  if (o.topk_group < o.n_group) {
    std::vector<double> worth;
    for (std::size_t g = 0; g < groups; ++g) {
      std::vector<double> mine(c.keys.begin() + static_cast<long>(g * size),
                               c.keys.begin() + static_cast<long>((g + 1) * size));
      std::sort(mine.rbegin(), mine.rend());
      double sum = 0;
      for (index_t i = 0; i < core::experts_in_group_score(o, static_cast<index_t>(size)); ++i) {
        sum += mine[static_cast<std::size_t>(i)];
      }
      worth.push_back(std::isnan(sum) ? -HUGE_VAL : sum);
    }
    std::vector<std::size_t> best(groups);
    std::iota(best.begin(), best.end(), 0);
    std::stable_sort(best.begin(), best.end(), [&](auto a, auto b) { return worth[a] > worth[b]; });
    best.resize(static_cast<std::size_t>(o.topk_group));
    std::erase_if(order, [&](auto i) { return std::find(best.begin(), best.end(), i / size) == best.end(); });
  }
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return c.keys[a] > c.keys[b]; });
  std::vector<double> chosen;
  for (index_t k = 0; k < o.top_k; ++k) {
    const auto i = order[static_cast<std::size_t>(k)];
    c.ids.push_back(static_cast<int>(i));
    chosen.push_back(o.order == selection_order::score_then_select ? scores[i]
                     : o.score_function == score_function::softmax ? x[i]
                                                                   : score_of(o.score_function, x[i]));
  }
  if (o.order == selection_order::select_then_score && o.score_function == score_function::softmax) {
    chosen = softmax(chosen, ok);
  }
  const double sum = std::accumulate(chosen.begin(), chosen.end(), 0.0);
  const double divisor = o.renormalize && sum > 0 ? sum : 1.0;
  for (const double s : chosen) {
    c.weights.push_back(s / divisor * o.scaling_factor);
    ok = ok && std::isfinite(c.weights.back());
  }
  return ok ? c : undefined();
}

void check_tokens(const cuda::context& ctx, generator& g, index_t tokens, index_t n, gating_options o,
                  bool coarse, bool biased) {
  std::normal_distribution<float> normal;
  const index_t stride = n + uniform(g, 0, 3);
  std::vector<float> logits(static_cast<std::size_t>(tokens * stride), std::nanf(""));
  for (index_t t = 0; t < tokens; ++t) {
    const index_t kind = uniform(g, 0, 19);
    for (index_t i = 0; i < n; ++i) {
      float x = coarse ? static_cast<float>(uniform(g, -3, 3)) * 0.5F : normal(g) * 3.0F;
      x = kind == 0 ? 1.0F : kind == 1 && uniform(g, 0, 3) == 0 ? -INFINITY : x;
      logits[static_cast<std::size_t>(t * stride + i)] = x;
    }
    float* const row = logits.data() + t * stride;
    if (kind == 2) row[uniform(g, 0, n - 1)] = std::nanf("");
    if (kind == 3) row[uniform(g, 0, n - 1)] = INFINITY;
    if (kind == 4) std::fill(row, row + n, -INFINITY);
    if (kind == 5) row[uniform(g, 0, n - 1)] = -0.0F;
  }
  std::vector<float> bias;
  if (biased) {
    for (index_t i = 0; i < n; ++i) {
      bias.push_back(coarse ? static_cast<float>(uniform(g, -2, 2)) * 4.0F : normal(g));
    }
  }
  const auto count = static_cast<std::size_t>(tokens * o.top_k);
  const device_array<float> device_logits(logits), device_bias(bias), weights(count);
  const device_array<expert_id> experts(count);
  const device_array<status> statuses(static_cast<std::size_t>(tokens));
  const device_array<int> load(std::vector<int>(static_cast<std::size_t>(n), 0));
  const device_array<double> maxvio(1), entropy(1);
  cuda::gate(ctx, {device_logits.data(), tokens, n, stride, 1}, o, biased ? device_bias.data() : nullptr,
             {weights.data(), experts.data(), statuses.data(), load.data()});
  cuda::balance(ctx, load.data(), n, maxvio.data(), entropy.data());
  sync();
  const std::string what = "gate [" + std::to_string(tokens) + ", " + std::to_string(n) + "] K " +
                           std::to_string(o.top_k) + " " + std::string(to_string(o.score_function)) + " " +
                           std::string(to_string(o.order)) + " groups " + std::to_string(o.topk_group) + "/" +
                           std::to_string(o.n_group) + " " + std::string(to_string(o.group_score)) +
                           (biased ? " biased" : "") + (coarse ? " coarse" : "");
  check(weights.intact() && experts.intact() && statuses.intact() && load.intact(), what + ": out of bounds");
  const auto w = weights.host();
  const auto ids = experts.host();
  const auto states = statuses.host();
  std::vector<int> counted(static_cast<std::size_t>(n), 0);
  for (index_t t = 0; t < tokens; ++t) {
    const std::vector<double> x(logits.begin() + t * stride, logits.begin() + t * stride + n);
    const choice want = choose(x, o, std::vector<double>(bias.begin(), bias.end()));
    const std::string where = what + " token " + std::to_string(t);
    check((states[static_cast<std::size_t>(t)] == status::ok) == want.defined, where + ": status");
    std::vector<bool> seen(static_cast<std::size_t>(n), false);
    bool in_range = true, same = true, near = true, weighed = true;
    for (index_t k = 0; k < o.top_k; ++k) {
      const auto at = static_cast<std::size_t>(t * o.top_k + k), kk = static_cast<std::size_t>(k);
      in_range = in_range && ids[at] >= 0 && ids[at] < n && !seen[static_cast<std::size_t>(ids[at])];
      if (!in_range) break;
      seen[static_cast<std::size_t>(ids[at])] = true;
      same = same && ids[at] == want.ids[kk];
      if (want.defined) {
        const double a = want.keys[static_cast<std::size_t>(ids[at])],
                     b = want.keys[static_cast<std::size_t>(want.ids[kk])];
        near = near && (a == b || std::abs(a - b) <= 1e-5 * (std::abs(b) + 1e-3));
        counted[static_cast<std::size_t>(ids[at])] += 1;
      }
      weighed =
          weighed && std::abs(w[at] - want.weights[kk]) <= 1e-5 * (std::abs(want.weights[kk]) + 1e-6) + 1e-9;
    }
    check(in_range, where + ": an expert twice, or out of range");
    check(coarse || !want.defined ? same : near, where + ": other experts");
    check(weighed || (!same && near), where + ": weights");
  }
  check(load.host() == counted, what + ": load");
  double total = 0, top = 0, bits = 0;
  for (const int c : counted) {
    total += c;
    top = std::max(top, static_cast<double>(c));
  }
  for (const int c : counted) {
    bits -= c > 0 ? c / total * std::log(c / total) : 0.0;
  }
  check(std::abs(maxvio.host()[0] - (total > 0 ? top * static_cast<double>(n) / total - 1 : 0)) < 1e-9,
        what + ": MaxVio");
  check(total == 0 || std::abs(entropy.host()[0] - bits) < 1e-9, what + ": entropy");
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
    check_tokens(ctx, g, uniform(g, 1, 200), n, o, coarse, uniform(g, 0, 2) == 0);
  }
  if (effort >= 4) {
    check_tokens(ctx, g, 20, 4096, {.top_k = 40}, false, true);
    check_tokens(ctx, g, 5000, 128, {.top_k = 8}, true, false);
  }
  cublasLtHandle_t handle = nullptr;
  if (cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
    check(false, "cublasLtCreate");
    return;
  }
  for (int i = 0; i < effort / 4 + 1; ++i) {
    check_logits<bf16>(ctx, g, handle);
    check_logits<f16>(ctx, g, handle);
    check_logits<float>(ctx, g, handle);
  }
  cublasLtDestroy(handle);
  std::printf("gating: %d checks so far, %d failures\n", checks, failures);
}

}  // namespace gpu_check
