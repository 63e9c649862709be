// Nothing is allocated inside a call of the library: every global operator new is counted.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>

#include "batch.hpp"

#include <support/counted_allocations.hpp>

using namespace mpi_router;
using namespace test_support;

TEST_CASE("the counter counts") {
  const long before = allocations;
  delete new int(3);
  CHECK(allocations == before + 1);
}

TEST_CASE_TEMPLATE("forward and backward allocate nothing, and their buffers are O(N (D + F))", T, double,
                   float, bf16) {
  using S = accumulator_t<T>;
  const expert_shape shape{6, 64, 80};
  const auto [N, F, D] = shape;
  const index_t tokens = 600, K = 2;
  router_options options;
  options.steps = 2;
  random_source random(1);
  stored_batch<T> experts(random_vector<float>(random, N * F * D), shape, batch_layout::nfd);
  stored_batch<T> grad_experts(shape, batch_layout::nfd);
  const auto router = random_vector<S>(random, N * D);
  const auto x = random_vector<T>(random, tokens * D);
  const auto grad_weights = random_vector<S>(random, tokens * K);
  std::vector<S> rows(router.size()), grad_rows(router.size()), grad_router(router.size());
  std::vector<S> logits(static_cast<std::size_t>(tokens * N)), grad_logits(logits.size());
  std::vector<S> weights(static_cast<std::size_t>(tokens * K)), grad_tokens(x.size()),
      bias(static_cast<std::size_t>(N));
  std::vector<expert_id> ids(weights.size());
  std::vector<status> statuses(static_cast<std::size_t>(tokens)), row_statuses(static_cast<std::size_t>(N));
  std::vector<index_t> load(static_cast<std::size_t>(N)), total(static_cast<std::size_t>(N));
  std::vector<index_t> offsets(static_cast<std::size_t>(N + 1)), list(ids.size()), entries(ids.size());
  std::vector<S> scratch(
      static_cast<std::size_t>(gating_workspace(tokens, N) + balance_workspace(tokens, N, 300)));

  // What forward and backward of the rows need beyond inputs and outputs: a few vectors an expert, no F × D
  // matrix.
  std::vector<S> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
  std::vector<S> workspace(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  std::vector<S> buffer(static_cast<std::size_t>(router_factors<S>::size(shape, options)));
  CHECK(static_cast<index_t>(tape.size()) <= N * options.steps * (D + 2));
  CHECK(static_cast<index_t>(workspace.size()) <= 5 * N * (D + F));
  CHECK(static_cast<index_t>(buffer.size()) <= options.steps * 2 * N * (D + F));
  CHECK(router_rows_workspace(shape) <= 3 * N * D);
  const expert_shape large{3, 8192, 4096};  // cut into blocks of neurons
  CHECK(router_rows_workspace(large) <= 3 * 18 * 4097);
  CHECK(router_rows_vjp_workspace(large) <= 3 * (22 * 4097 + 2 * 8192));

  const auto R = row_major(rows.data(), N, D);
  const auto P = row_major(router.data(), N, D);
  const auto grad_rows_view = row_major(grad_rows.data(), N, D);
  const auto grad_router_view = row_major(grad_router.data(), N, D);
  const auto X = row_major(x.data(), tokens, D);
  const auto Z = row_major(logits.data(), tokens, N);
  const auto grad_logits_view = row_major(grad_logits.data(), tokens, N);
  const auto W = row_major(weights.data(), tokens, K);
  const auto view = experts.view();
  const auto grad_view = grad_experts.view();
  const router_factors<S> factors(buffer, shape, options);
  load_tracker tracker(total);

  const long before = allocations;
  const auto step = [&](const auto& backend) {
    router_rows(view, P, R, options, workspace, {.statuses = row_statuses, .tape = tape}, backend);
    route(X, R, {.top_k = K, .n_group = 3, .topk_group = 2}, {.selection = bias}, Z,
          gate_output<S>{W, ids, statuses}, scratch);
    S loss = balance_loss<S>(Z, score_function::softmax, ids, K, 300, vector_view<S>(scratch));
    loss += z_loss<S>(Z, vector_view<S>(scratch));
    count_load(ids, K, statuses, load);
    tracker.add(load);
    update_expert_bias(load, S(0.001), vector_view<S>(bias));
    build_dispatch(ids, K, statuses, {offsets, list, entries});
    gate_vjp(Z, {.top_k = K, .n_group = 3, .topk_group = 2}, ids, row_major(grad_weights.data(), tokens, K),
             grad_logits_view, gradient_mode::write, scratch);
    balance_loss_vjp(Z, score_function::softmax, ids, K, 300, S(1), grad_logits_view,
                     gradient_mode::accumulate, scratch);
    z_loss_vjp(Z, S(1), grad_logits_view, gradient_mode::accumulate);
    router_logits_vjp(X, R, grad_logits_view, row_major(grad_tokens.data(), tokens, D), grad_rows_view,
                      gradient_mode::write);
    router_rows_vjp(view, P, tape, grad_rows_view, options, grad_router_view, grad_view,
                    gradient_mode::accumulate, workspace, backend);
    router_rows_vjp_factored(view, P, tape, grad_rows_view, options, grad_router_view, factors,
                             gradient_mode::write, workspace, backend);
    add_factors(factors, grad_view, gradient_mode::accumulate, S(-1));
    router_rows_vjp_detached(view, P, tape, grad_rows_view, options, grad_router_view, gradient_mode::write,
                             workspace, backend);
    return loss;
  };
  const S first = step(reference{});
  const S second = step(simd{});
  const long during = allocations - before;
  CHECK(during == 0);
  CHECK(std::isfinite(static_cast<double>(first + second)));
}
