// The gate and its gradient through the C interface: the bits of the C++ library, in float and in double.
#include <mpi_router/router/gating_vjp.hpp>

#include <doctest/doctest.h>

#include "arrays.hpp"

using namespace c_tests;
using test_support::layout;
using test_support::stored_matrix;

namespace {

/// Tokens enough for two tasks, a NaN, a masked token, and a closed expert.
template <class S>
struct gate_problem {
  static constexpr index_t tokens = 300, n = 8, k = 3;
  gate_problem(const gating_options& options, index_t closed) : o(options) {
    logits =
        stored_matrix<S>(test_support::random_matrix<S>(random, tokens, n), tokens, n, layout::both_strided);
    logits.view()(5, 2) = std::numeric_limits<S>::quiet_NaN();
    mask[7] = status::masked;
    if (closed > 0) {  // so many by a selection bias; where six are, a token has fewer than K open experts
      bias = test_support::random_vector<S>(random, n);
      std::fill_n(bias.begin() + 1, closed, -std::numeric_limits<S>::infinity());
    }
    incoming = test_support::random_matrix<S>(random, tokens, k);
  }

  [[nodiscard]] mpi_router_gating_options c() const {
    return {o.top_k,
            static_cast<std::int32_t>(o.score_function),
            static_cast<std::int32_t>(o.order),
            o.renormalize ? 1 : 0,
            static_cast<std::int32_t>(o.group_score),
            o.scaling_factor,
            o.n_group,
            o.topk_group};
  }

  void check() {
    std::vector<S> weights(tokens * k), c_weights(tokens * k),
        scratch(static_cast<std::size_t>(gating_workspace(tokens, n)));
    std::vector<expert_id> ids(tokens * k), c_ids(tokens * k);
    std::vector<status> statuses(tokens);
    std::vector<std::uint8_t> c_statuses(tokens, 77), c_mask(tokens);
    for (std::size_t t = 0; t < mask.size(); ++t) c_mask[t] = static_cast<std::uint8_t>(mask[t]);
    gate<S>(std::as_const(logits).view(), o, bias, {row_major(weights.data(), tokens, k), ids, statuses},
            scratch, {}, mask);
    const auto co = c();
    const auto in = c_matrix(logits.view()), out = c_matrix(row_major(c_weights.data(), tokens, k));
    const mpi_router_vector b{bias.data(), dtype_of<S>(), MPIROUTER_HOST,
                              static_cast<std::int64_t>(bias.size()), 1};
    const auto* const closed = bias.empty() ? nullptr : &b;
    three_threads threads;
    const auto run = threads.c();
    CHECK(mpi_router_gate(&in, &co, closed, c_mask.data(), &out, c_ids.data(), c_statuses.data(), &run) ==
          MPIROUTER_OK);
    CHECK(threads.tasks == 2);
    CHECK(same_bits(weights, c_weights));
    CHECK(ids == c_ids);
    for (std::size_t t = 0; t < statuses.size(); ++t)
      CHECK(static_cast<std::uint8_t>(statuses[t]) == c_statuses[t]);

    for (const auto mode : {gradient_mode::write, gradient_mode::accumulate}) {
      std::vector<S> gradient(tokens * n, S{2}), c_gradient(tokens * n, S{2});
      gate_vjp<S>(std::as_const(logits).view(), o, ids, row_major(incoming.data(), tokens, k),
                  row_major(gradient.data(), tokens, n), mode, scratch, {}, statuses, bias);
      const auto from = c_matrix(row_major(incoming.data(), tokens, k));
      const auto to = c_matrix(row_major(c_gradient.data(), tokens, n));
      CHECK(mpi_router_gate_vjp(&in, &co, closed, c_ids.data(), c_statuses.data(), &from, &to,
                                static_cast<std::int32_t>(mode), &run) == MPIROUTER_OK);
      CHECK(same_bits(gradient, c_gradient));
    }
  }

  random_source random{3};
  gating_options o;
  stored_matrix<S> logits{0, 0, layout::row_major};
  std::vector<status> mask = std::vector<status>(tokens);
  std::vector<S> bias, incoming;
};

template <class S>
void same_both_ways() {
  constexpr index_t k = gate_problem<S>::k;
  for (const index_t closed : {0, 1, 6}) {
    gate_problem<S>({.top_k = k}, closed).check();
    gate_problem<S>({.top_k = k, .order = selection_order::select_then_score}, closed).check();
    gate_problem<S>({.top_k = k, .score_function = score_function::sqrtsoftplus, .scaling_factor = 2.5},
                    closed)
        .check();
    gate_problem<S>({.top_k = k,
                     .score_function = score_function::sigmoid,
                     .renormalize = false,
                     .n_group = 4,
                     .topk_group = 2,
                     .group_score = group_score::max},
                    closed)
        .check();
  }
}

}  // namespace

TEST_CASE("floats") { same_both_ways<float>(); }
TEST_CASE("doubles") { same_both_ways<double>(); }

TEST_CASE("no tokens") {
  const auto in = mpi_router_row_major(nullptr, MPIROUTER_F32, 0, 8),
             out = mpi_router_row_major(nullptr, MPIROUTER_F32, 0, 2);
  const auto options = mpi_router_default_gating_options(2);
  CHECK(mpi_router_gate(&in, &options, nullptr, nullptr, &out, nullptr, nullptr, nullptr) == MPIROUTER_OK);
}

TEST_CASE("the options are those of the library") {
  for (const index_t k : {1, 4}) {
    const gating_options o{.top_k = k};
    const auto c = mpi_router_default_gating_options(k);
    CHECK(c.top_k == o.top_k);
    CHECK((c.renormalize != 0) == o.renormalize);
    CHECK(c.score_function == static_cast<std::int32_t>(o.score_function));
    CHECK(c.order == static_cast<std::int32_t>(o.order));
    CHECK(c.group_score == static_cast<std::int32_t>(o.group_score));
    CHECK(c.scaling_factor == o.scaling_factor);
    CHECK(c.n_group == o.n_group);
    CHECK(c.topk_group == o.topk_group);
  }
}
