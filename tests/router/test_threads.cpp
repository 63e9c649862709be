// Forward and backward are bitwise the same for any number of threads and any order of tasks.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>
#include <mpi_router/router/z_loss.hpp>

#include <doctest/doctest.h>

#include <cstring>

#include "batch.hpp"

namespace test_threads {
using namespace mpi_router;
using namespace test_support;

namespace {

/// Everything that a step of training computes, as bytes.
template <class T, class Backend>
std::vector<unsigned char> everything(const expert_shape& shape, batch_layout layout, const Backend& backend,
                                      const any_executor& executor) {
  using S = accumulator_t<T>;
  const auto [N, F, D] = shape;
  const index_t tokens = 1100, K = 3;
  random_source random(1);
  stored_batch<T> experts(random_vector<float>(random, N * F * D), shape, layout);
  stored_batch<T> grad_experts(shape, layout);
  const auto router = random_vector<S>(random, N * D);
  const auto x = random_vector<T>(random, tokens * D);
  const auto grad_weights = random_vector<S>(random, tokens * K);
  router_options options;
  options.steps = 2;
  std::vector<S> rows(router.size()), grad_rows(router.size()), grad_router(router.size());
  std::vector<S> tape(static_cast<std::size_t>(router_tape_size(shape, options)));
  std::vector<S> workspace(static_cast<std::size_t>(router_rows_vjp_workspace(shape)));
  std::vector<S> logits(static_cast<std::size_t>(tokens * N)), grad_logits(logits.size());
  std::vector<S> weights(static_cast<std::size_t>(tokens * K)), grad_tokens(x.size());
  std::vector<S> scratch(
      static_cast<std::size_t>(gating_workspace(tokens, N) + balance_workspace(tokens, N, 550)));
  std::vector<expert_id> ids(weights.size());
  const auto R = row_major(rows.data(), N, D);
  const auto G = row_major(grad_logits.data(), tokens, N);
  const auto X = row_major(x.data(), tokens, D);
  const auto Z = row_major(logits.data(), tokens, N);

  router_rows(experts.view(), row_major(router.data(), N, D), R, options, workspace, {.tape = tape}, backend,
              executor);
  route(X, R, {.top_k = K}, {}, Z, gate_output<S>{row_major(weights.data(), tokens, K), ids}, scratch,
        executor);
  S losses[3];
  losses[0] = balance_loss<S>(Z, score_function::softmax, ids, K, 550, vector_view<S>(scratch), executor);
  losses[1] = z_loss<S>(Z, vector_view<S>(scratch), executor);
  std::vector<index_t> load(static_cast<std::size_t>(N));
  count_load(ids, K, {}, load);
  losses[2] = global_balance_loss<S>(Z, score_function::sigmoid, load, vector_view<S>(scratch), executor);
  gate_vjp(Z, {.top_k = K}, ids, row_major(grad_weights.data(), tokens, K), G, gradient_mode::write, scratch,
           executor);
  balance_loss_vjp(Z, score_function::softmax, ids, K, 550, S(1), G, gradient_mode::accumulate, scratch,
                   executor);
  z_loss_vjp(Z, S(0.1), G, gradient_mode::accumulate, executor);
  router_logits_vjp(X, R, G, row_major(grad_tokens.data(), tokens, D), row_major(grad_rows.data(), N, D),
                    gradient_mode::write, executor);
  router_rows_vjp(experts.view(), row_major(router.data(), N, D), tape, row_major(grad_rows.data(), N, D),
                  options, row_major(grad_router.data(), N, D), grad_experts.view(), gradient_mode::write,
                  workspace, backend, executor);

  std::vector<unsigned char> bytes;
  const auto keep = [&bytes](const void* data, std::size_t size) {
    const auto* first = static_cast<const unsigned char*>(data);
    bytes.insert(bytes.end(), first, first + size);
  };
  const auto keep_all = [&keep](const auto& v) { keep(v.data(), v.size() * sizeof(v[0])); };
  keep_all(rows);
  keep_all(logits);
  keep_all(weights);
  keep_all(ids);
  keep_all(grad_tokens);
  keep_all(grad_rows);
  keep_all(grad_router);
  keep_all(grad_experts.values());
  keep(losses, sizeof losses);
  return bytes;
}

#if defined(MPIROUTER_TEST_SANITIZED)
#define STORAGE_TYPES bf16  // one has the memory accesses of all
#else
#define STORAGE_TYPES double, float, bf16
#endif

}  // namespace

TEST_CASE_TEMPLATE("forward and backward do not depend on who runs the tasks", T, STORAGE_TYPES) {
  const auto check = [](const auto& backend) {
    using in_layout = std::pair<expert_shape, batch_layout>;
    const in_layout whole{{7, 37, 97}, batch_layout::ndf};
    const in_layout cut[] = {{{3, 1030, 520}, batch_layout::nfd}, {{3, 2100, 250}, batch_layout::ndf}};
    for (const auto& [shape, layout] : {whole, cut[0], cut[1]}) {
      const auto once = everything<T>(shape, layout, backend, thread_executor{3});
      CHECK(once.size() > 100000);
#if !defined(MPIROUTER_TEST_SHORT)  // sanitizers have seen every access by now
      CHECK(everything<T>(shape, layout, backend, serial_executor{}) == once);
      CHECK(everything<T>(shape, layout, backend, reverse_executor{}) == once);
      for (const int threads : {1, 2, 8}) {
        CHECK(everything<T>(shape, layout, backend, thread_executor{threads}) == once);
      }
#endif
    }
  };
#if defined(MPIROUTER_TEST_FULL) && !defined(MPIROUTER_TEST_SANITIZED)
  check(reference{});
#elif !defined(MPIROUTER_TEST_SANITIZED)  // slow, and one code for all types
  if constexpr (std::is_same_v<T, float>) check(reference{});
#endif
  check(simd{});
}

#undef STORAGE_TYPES

}  // namespace test_threads
