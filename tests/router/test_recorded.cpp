// Values and gradients of the authors' formula, recorded under PyTorch autograd: every tensor, in every
// layout, backend and executor. Reads tests/data/official-*.safetensors, and every .safetensors file of the
// same form in the folder that the environment variable MPIROUTER_RECORDED_DIR names.
#include <mpi_router/backend/simd.hpp>
#include <mpi_router/io/safetensors.hpp>
#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/gating_vjp.hpp>
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "batch.hpp"

namespace test_recorded {
using namespace mpi_router;
using namespace test_support;

namespace {

std::vector<std::filesystem::path> recordings() {
  std::vector<std::filesystem::path> out;
  const auto collect = [&out](const std::filesystem::path& folder, const std::string& prefix) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const auto& path = entry.path();
      if (path.extension() == ".safetensors" && path.filename().string().starts_with(prefix))
        out.push_back(path);
    }
  };
  collect(MPIROUTER_TEST_DATA, "official-");
  if (const char* folder = std::getenv("MPIROUTER_RECORDED_DIR")) collect(folder, "");
  std::sort(out.begin(), out.end());
  return out;
}

template <class T>
struct recording {
  safetensors_file file;
  expert_shape shape{};
  index_t tokens = 0;
  index_t top_k = 0;
  double radius = 0;
  double coefficient = 0;

  explicit recording(const std::filesystem::path& path) : file(path) {
    const auto extents = file.at("w_gate").shape();
    shape = {extents[0], extents[1], extents[2]};
    tokens = file.at("tokens").shape()[0];
    top_k = std::stoll(file.metadata().at("top_k"));
    radius = std::stod(file.metadata().at("C"));
    coefficient = std::stod(file.metadata().at("aux_loss_coef"));
  }
  template <class U = T>
  [[nodiscard]] std::vector<U> read(const char* name) const {
    const auto data = file.at(name).template load<U>();
    return {data.data(), data.data() + data.size()};
  }
};

template <class A, class B>
double distance(const std::vector<A>& a, const std::vector<B>& b) {
  REQUIRE(a.size() == b.size());
  return relative_distance(a, b);
}

/// All of it with experts and gradients in one layout, by one backend and executor.
template <class T, class Backend>
void replay(const recording<T>& r, batch_layout l, const Backend& backend, const any_executor& executor) {
  const double bound = tolerance<T>.recorded;
  const auto [N, F, D] = r.shape;
  const auto in = [](const auto& v, index_t rows, index_t cols) { return row_major(v.data(), rows, cols); };
  const auto out = [](auto& v, index_t rows, index_t cols) { return row_major(v.data(), rows, cols); };

  stored_batch<T> experts(r.read("w_gate"), r.shape, l);
  stored_batch<T> grad_experts(r.shape, l);
  const auto router = r.read("router");
  const auto grad_rows = r.read("grad_rows");
  router_options options;
  options.radius = router_radius::fixed(r.radius);
  std::vector<T> rows(router.size()), grad_router(router.size());
  std::vector<T> tape(static_cast<std::size_t>(router_tape_size(r.shape, options)));
  std::vector<T> workspace(static_cast<std::size_t>(router_rows_vjp_workspace(r.shape)));
  router_rows(experts.view(), in(router, N, D), out(rows, N, D), options, workspace, {.tape = tape}, backend,
              executor);
  CHECK(distance(rows, r.read("rows")) < bound);
  router_rows_vjp(experts.view(), in(router, N, D), tape, in(grad_rows, N, D), options,
                  out(grad_router, N, D), grad_experts.view(), gradient_mode::write, workspace, backend,
                  executor);
  CHECK(distance(grad_router, r.read("grad_router")) < bound);
  CHECK(distance(grad_experts.values(), r.read("grad_w_gate")) < bound);

  // The layer: logits, selection, weights, balance loss.
  const gating_options gating{.top_k = r.top_k};
  const auto tokens = r.read("tokens");
  std::vector<T> logits(static_cast<std::size_t>(r.tokens * N)),
      weights(static_cast<std::size_t>(r.tokens * r.top_k));
  std::vector<T> scratch(static_cast<std::size_t>(
      std::max(gating_workspace(r.tokens, N), balance_workspace(r.tokens, N, r.tokens))));
  std::vector<expert_id> ids(weights.size());
  route(in(tokens, r.tokens, D), in(rows, N, D), gating, {}, out(logits, r.tokens, N),
        gate_output<T>{out(weights, r.tokens, r.top_k), ids}, scratch, executor);
  CHECK(distance(logits, r.read("logits")) < bound);
  CHECK(distance(weights, r.read("expert_weights")) < bound);
  const auto recorded_ids = r.template read<std::int64_t>("expert_indices");
  CHECK(std::equal(ids.begin(), ids.end(), recorded_ids.begin(), recorded_ids.end()));
  const T loss = balance_loss<T>(in(logits, r.tokens, N), score_function::softmax, ids, r.top_k, r.tokens,
                                 vector_view<T>(scratch), executor);
  CHECK(close(static_cast<double>(loss), static_cast<double>(r.read("aux_loss")[0]), bound));

  // And back, through the loss of the recording: sum(expert_weights · grad_expert_weights) + coefficient ·
  // aux_loss.
  const auto grad_weights = r.read("grad_expert_weights");
  std::vector<T> grad_logits(logits.size()), grad_tokens(tokens.size()), grad_layer_rows(rows.size());
  gate_vjp(in(logits, r.tokens, N), gating, ids, in(grad_weights, r.tokens, r.top_k),
           out(grad_logits, r.tokens, N), gradient_mode::write, scratch, executor);
  balance_loss_vjp(in(logits, r.tokens, N), score_function::softmax, ids, r.top_k, r.tokens,
                   static_cast<T>(r.coefficient), out(grad_logits, r.tokens, N), gradient_mode::accumulate,
                   scratch, executor);
  router_logits_vjp(in(tokens, r.tokens, D), in(rows, N, D), in(grad_logits, r.tokens, N),
                    out(grad_tokens, r.tokens, D), out(grad_layer_rows, N, D), gradient_mode::write,
                    executor);
  CHECK(distance(grad_tokens, r.read("route_grad_tokens")) < bound);
  router_rows_vjp(experts.view(), in(router, N, D), tape, in(grad_layer_rows, N, D), options,
                  out(grad_router, N, D), grad_experts.view(), gradient_mode::write, workspace, backend,
                  executor);
  CHECK(distance(grad_router, r.read("route_grad_router")) < bound);
  CHECK(distance(grad_experts.values(), r.read("route_grad_w_gate")) < bound);
}

/// Twenty steps, stateful and stateless, in double as they were recorded.
template <class T>
void replay_trajectory(const recording<T>& r) {
  const auto [N, F, D] = r.shape;
  stored_batch<T> experts(r.read("w_gate"), r.shape, batch_layout::nfd);
  const auto router = r.read("router");
  const auto recorded = r.template read<double>("trajectory");
  const auto steps = static_cast<index_t>(recorded.size()) / (N * D) - 1;
  std::vector<double> state(router.begin(), router.end()), rows(state.size());
  std::vector<double> workspace(static_cast<std::size_t>(router_rows_workspace(r.shape)));
  router_options options;
  options.radius = router_radius::fixed(r.radius);
  for (index_t step = 0; step <= steps; ++step) {
    const std::vector<double> want(recorded.begin() + step * N * D, recorded.begin() + (step + 1) * N * D);
    CHECK(distance(state, want) < tolerance<double>.recorded);
    if (step > 0) {
      options.steps = step;
      const std::vector<double> start(router.begin(), router.end());
      router_rows(experts.view(), row_major(start.data(), N, D), row_major(rows.data(), N, D), options,
                  workspace);
      CHECK(distance(rows, want) < tolerance<double>.recorded);
    }
    options.steps = 1;
    stateful_router_rows(experts.view(), row_major(state.data(), N, D), options, workspace);
  }
}

template <class T>
void replay_everywhere(const std::filesystem::path& path) {
  const recording<T> r(path);
  for (const batch_layout l : all_batch_layouts) {
    CAPTURE(to_string(l));
    replay(r, l, reference{}, serial_executor{});
    replay(r, l, simd{}, serial_executor{});
    replay(r, l, simd{}, thread_executor{3});
  }
  replay_trajectory(r);
}

}  // namespace

TEST_CASE("recorded values and gradients") {
  const auto paths = recordings();
  int replayed = 0;
  for (const auto& path : paths) {
    CAPTURE(path.string());
    const safetensors_file file(path);
    if (file.find("w_gate") == nullptr || file.find("route_grad_w_gate") == nullptr) {
      MESSAGE("not of this form: " << path.string());
      continue;
    }
    ++replayed;
    if (file.at("w_gate").type() == dtype::f64) {
      replay_everywhere<double>(path);
    } else {
      replay_everywhere<float>(path);
    }
  }
  CHECK(replayed >= 3);
}

}  // namespace test_recorded
