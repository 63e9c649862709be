// Finite logits give finite, right weights, losses and gradients, however far below zero or below the best
// they are: against long double, which holds e^−11000.
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/gating_vjp.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <limits>
#include <vector>

#include "all_scores.hpp"
#include "log_score.hpp"

namespace test_underflow {
using namespace mpi_router;
using namespace test_support;

namespace {

using wide = std::vector<long double>;

/// e^x over the sum of e^v.
long double share_of_sum(long double x, const wide& all) {
  const long double largest = *std::max_element(all.begin(), all.end());
  long double sum = 0;
  for (const long double v : all) sum += std::exp(v - largest);
  return std::exp(x - largest) / sum;
}

/// The weights that given experts have.
wide weights_of(const gating_options& o, const wide& x, const std::vector<expert_id>& ids) {
  wide logs, all;
  for (const expert_id i : ids) logs.push_back(log_score(o.score_function, x[static_cast<std::size_t>(i)]));
  const bool is_softmax = o.score_function == score_function::softmax;
  const bool over_selected = o.renormalize || (is_softmax && o.order == selection_order::select_then_score);
  const wide divisor = over_selected ? logs : is_softmax ? x : wide{0};
  for (long double& v : logs) v = share_of_sum(v, divisor) * static_cast<long double>(o.scaling_factor);
  return logs;
}

/// Σ ∂ weight_k / ∂ x_i grad_k by central differences.
template <class S>
long double central_difference(const gating_options& o, wide x, std::size_t i,
                               const std::vector<expert_id>& ids, const std::vector<S>& grad) {
  const long double h = 1e-3L;
  const long double at = x[i];
  const auto moved = [&](long double by) {
    x[i] = at + by;
    return weights_of(o, x, ids);
  };
  const wide a = moved(-2 * h), b = moved(-h), c = moved(h), d = moved(2 * h);
  long double sum = 0;
  for (std::size_t k = 0; k < ids.size(); ++k) {
    sum += (a[k] - d[k] + 8 * (c[k] - b[k])) / (12 * h) * static_cast<long double>(grad[k]);
  }
  return sum;
}

/// What the error of its element i is measured by: the terms w_i ḡ_i and p_i Σ w ḡ of the formula, and the
/// rounding of the difference itself, 1e-13 of Σ w ḡ.
template <class S>
long double size_of_terms(const gating_options& o, const wide& x, std::size_t i,
                          const std::vector<expert_id>& ids, const std::vector<S>& grad) {
  const wide weights = weights_of(o, x, ids);
  long double all = 0;
  long double own = 0;
  long double share = 0;
  for (std::size_t k = 0; k < ids.size(); ++k) {
    const long double term = weights[k] * std::abs(static_cast<long double>(grad[k]));
    all += term;
    if (static_cast<std::size_t>(ids[k]) == i) {
      own = term;
      share = weights[k] / static_cast<long double>(o.scaling_factor);
    }
  }
  const bool over_all = o.score_function == score_function::softmax && !o.renormalize &&
                        o.order == selection_order::score_then_select;
  constexpr long double rounding = 1e-13L / static_cast<long double>(tolerance<S>.identity);
  return rounding * all + own + (over_all ? share_of_sum(x[i], x) : share) * all;
}

template <class S>
bool is_near(S got, long double want, long double size) {
  const auto error = std::abs(static_cast<long double>(got) - want);
  return std::isfinite(got) &&
         error <= static_cast<long double>(tolerance<S>.identity) * size +
                      4 * static_cast<long double>(std::numeric_limits<S>::denorm_min());
}

/// Every setting of a gate that weights depend on.
template <class F>
void for_all_weighings(index_t top_k, F f) {
  for (const auto score : all_scores) {
    for (const auto order : {selection_order::score_then_select, selection_order::select_then_score}) {
      for (const bool renormalize : {true, false}) {
        for (const double factor : {1.0, 2.5e9, 1e30, 1e-30})
          f(gating_options{top_k, score, order, renormalize, factor});
      }
    }
  }
}

}  // namespace

TEST_CASE_TEMPLATE("weights of given experts and their gradients are right at every depth and spread", S,
                   float, double) {
  constexpr index_t n = 19;
  random_source random(31);
  int wrong_weights = 0;
  int wrong_gradients = 0;
#if defined(MPIROUTER_TEST_SHORT)
  constexpr double depths[] = {0.0, -93.0, -746.0};
#else
  constexpr double depths[] = {0.0,    -20.0,  -80.0,  -88.0,  -93.0,  -100.0,
                               -105.0, -350.0, -715.0, -746.0, -3000.0};
#endif
  for (const double depth : depths) {
    for (const double spread : {0.5, 10.0, 60.0, 500.0}) {
      for (const index_t k : {1, 3, 8}) {
        for_all_weighings(k, [&](const gating_options& o) {
          auto x = random_vector<S>(random, n, spread);
          for (S& v : x) v += static_cast<S>(depth);
          std::vector<expert_id> ids;
          for (index_t j = 0; j < k; ++j) ids.push_back(static_cast<expert_id>((j * 7 + 3) % n));
          const auto grad = random_vector<S>(random, k);
          std::vector<S> weights(static_cast<std::size_t>(k)), got(static_cast<std::size_t>(n), S{7});
          std::vector<S> workspace(static_cast<std::size_t>(gating_workspace(1, n)));
          std::vector<status> statuses(1);
          gate_weights<S>(row_major(x.data(), 1, n), o, ids, row_major(weights.data(), 1, k), workspace, {},
                          {}, statuses);
          gate_vjp<S>(row_major(x.data(), 1, n), o, ids, row_major(grad.data(), 1, k),
                      row_major(got.data(), 1, n), gradient_mode::write, workspace);
          const wide exact(x.begin(), x.end());
          const wide want = weights_of(o, exact, ids);
          bool right = statuses[0] == status::ok;
          for (std::size_t j = 0; j < ids.size(); ++j) right = right && is_near(weights[j], want[j], want[j]);
          wrong_weights += right ? 0 : 1;
          right = true;
          for (std::size_t i = 0; i < x.size(); ++i) {
            right = right && is_near(got[i], central_difference(o, exact, i, ids, grad),
                                     size_of_terms(o, exact, i, ids, grad));
          }
          wrong_gradients += right ? 0 : 1;
        });
      }
    }
  }
  CHECK(wrong_weights == 0);
  CHECK(wrong_gradients == 0);
}

TEST_CASE_TEMPLATE("equal logits share the weights at any depth", S, float, double) {
  for (const auto f : all_scores) {
    for (const index_t k : {2, 3, 7}) {
      for (const float depth : {0.0F, -87.0F, -93.0F, -103.0F, -104.5F, -110.0F, -745.0F, -1e4F, -1e30F}) {
        const std::vector<S> x(9, static_cast<S>(depth));
        std::vector<S> weights(static_cast<std::size_t>(k)), p(x.size()), workspace(1000);
        std::vector<expert_id> ids(static_cast<std::size_t>(k));
        std::vector<status> statuses(1);
        gate<S>(row_major(x.data(), 1, 9), {.top_k = k, .score_function = f}, {},
                {row_major(weights.data(), 1, k), ids, statuses}, workspace);
        CHECK(statuses[0] == status::ok);
        for (index_t j = 0; j < k; ++j) {
          CHECK(close(static_cast<double>(weights[static_cast<std::size_t>(j)]), 1 / static_cast<double>(k),
                      tolerance<S>.arithmetic));
          CHECK(ids[static_cast<std::size_t>(j)] == j);
        }
        const std::vector<expert_id> chosen{0, 1};  // even probabilities: the loss is 1 whatever is chosen
        CHECK(close(static_cast<double>(balance_loss<S>(row_major(x.data(), 1, 9), f, chosen, 2, 1,
                                                        vector_view<S>(workspace))),
                    1, tolerance<S>.arithmetic));
      }
    }
  }
}

TEST_CASE_TEMPLATE("the balance loss and its gradient are right at every depth", S, float, double) {
  constexpr index_t n = 11;
  const std::vector<expert_id> ids{2, 7};
  random_source random(5);
  for (const auto f : all_scores) {
    for (const double depth : {0.0, -70.0, -90.0, -95.0, -105.0, -300.0, -720.0, -2000.0}) {
      auto x = random_vector<S>(random, n, 2);
      for (S& v : x) v += static_cast<S>(depth);
      const wide exact(x.begin(), x.end());
      const auto loss_of = [&](const wide& at) {
        wide logs;
        for (const long double v : at) logs.push_back(log_score(f, v));
        return (share_of_sum(logs[2], logs) + share_of_sum(logs[7], logs)) * n / 2;
      };
      std::vector<S> workspace(static_cast<std::size_t>(balance_workspace(1, n, 1))), got(x.size());
      const S loss = balance_loss<S>(row_major(x.data(), 1, n), f, ids, 2, 1, vector_view<S>(workspace));
      CHECK(is_near(loss, loss_of(exact), loss_of(exact)));
      balance_loss_vjp<S>(row_major(x.data(), 1, n), f, ids, 2, 1, S{1}, row_major(got.data(), 1, n),
                          gradient_mode::write, workspace);
      for (std::size_t i = 0; i < x.size(); ++i) {
        wide at = exact;
        const auto moved = [&](long double by) {
          at[i] = exact[i] + by;
          return loss_of(at);
        };
        const long double h = 1e-3L;
        const long double slope = (moved(-2 * h) - moved(2 * h) + 8 * (moved(h) - moved(-h))) / (12 * h);
        CHECK(is_near(got[i], slope, loss_of(exact)));
      }
    }
  }
}

TEST_CASE("a saturated sigmoid does not tie: experts come in the order of their logits") {
  const std::vector<float> x{20, 30, 25, 100, -200, -150, -120};
  std::vector<float> weights(7), workspace(static_cast<std::size_t>(gating_workspace(1, 7)));
  std::vector<expert_id> ids(7);
  for (const auto f : all_scores) {
    for (const auto& [groups, group] :
         {std::pair<index_t, group_score>{1, group_score::top2_sum}, {7, group_score::max}}) {
      gate<float>(
          row_major(x.data(), 1, 7),
          {.top_k = 7, .score_function = f, .n_group = groups, .topk_group = groups, .group_score = group},
          {}, {row_major(weights.data(), 1, 7), ids}, workspace);
      CHECK(ids == std::vector<expert_id>{3, 1, 2, 0, 6, 5, 4});
    }
  }
  std::vector<float> four{20, 20, 30, 30};  // the best of a group is monotone too
  ids.resize(2);
  gate<float>(row_major(four.data(), 1, 4),
              {.top_k = 2,
               .score_function = score_function::sigmoid,
               .n_group = 2,
               .topk_group = 1,
               .group_score = group_score::max},
              {}, {row_major(weights.data(), 1, 2), ids}, workspace);
  CHECK(ids == std::vector<expert_id>{2, 3});
}

TEST_CASE("terms of the gradient that leave the range of float, where their difference does not") {
  const std::array<float, 2> x{0, -20};
  const std::array<float, 1> grad{1e9F};
  const std::array<expert_id, 1> ids{0};
  std::array<float, 2> got{};
  std::vector<float> workspace(static_cast<std::size_t>(gating_workspace(1, 2)));
  gate_vjp<float>(row_major(x.data(), 1, 2), {.top_k = 1, .scaling_factor = 1e30}, ids,
                  row_major(grad.data(), 1, 1), row_major(got.data(), 1, 2), gradient_mode::write, workspace);
  const double want = 1e39 * std::exp(-20.0);  // c p₁ p₂ ḡ, and p₁ = 1 − 2e-9
  CHECK(std::abs(got[1] + want) < 1e-5 * want);
  CHECK(std::abs(got[0]) <= 1.01 * want);  // as much, or 0 where p₁ rounds to 1
}

TEST_CASE("the share of an expert that is not chosen may be subnormal, its gradient not") {
  const std::array<float, 2> x{0, -95};  // e⁻⁹⁵ has 12 bits in float
  const std::array<float, 1> grad{1e20F};
  const std::array<expert_id, 1> ids{0};
  std::array<float, 2> got{};
  std::vector<float> workspace(static_cast<std::size_t>(gating_workspace(1, 2)));
  gate_vjp<float>(row_major(x.data(), 1, 2), {.top_k = 1}, ids, row_major(grad.data(), 1, 1),
                  row_major(got.data(), 1, 2), gradient_mode::write, workspace);
  const double want = 1e20 * std::exp(-95.0);
  CHECK(std::abs(static_cast<double>(got[1]) + want) < 1e-6 * want);
}

}  // namespace test_underflow
