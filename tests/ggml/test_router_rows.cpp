// The op in a graph: the rows of the formula in double, the same bits on any number of threads, and errors
// that are told and end nothing.
#include "layers.hpp"

#include <mpi_router/backend/packed.hpp>
#include <mpi_router/backend/simd.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

using namespace ggml_test;
using namespace mpi_router;
using test_support::contains;
using test_support::message_of;
using test_support::refused;

namespace {

/// A backend that throws when an expert's first weight is what it was told.
struct throwing_backend {
  float at = std::numeric_limits<float>::quiet_NaN();
  bool is_standard = true;

  template <Scalar T, Accumulator S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    if (widen<float>(a(0, 0)) == at) {
      if (is_standard) throw std::runtime_error("a backend's own error");
      throw 17;
    }
    return reference{}.apply(a, x, u);
  }
  template <Scalar T, Accumulator S>
  void project(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) const {
    reference{}.project(a, x, y);
  }
  template <Scalar T, Accumulator S>
  void lift(matrix_view<const T> a, vector_view<const S> y, vector_view<S> u) const {
    reference{}.lift(a, y, u);
  }
};

index_t count_nan(std::span<const float> values) {
  index_t count = 0;
  for (const float x : values) count += std::isnan(x) ? 1 : 0;
  return count;
}

}  // namespace

TEST_CASE("experts of every type: the step in double, the bits of router_rows, on any number of threads") {
  random_source random(21);
  for (const auto type :
       {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_MXFP4,
        GGML_TYPE_Q5_0, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_TQ1_0}) {
    CAPTURE(std::string(ggml_type_name(type)));
    const context ctx = new_context();
    const index_t d = ggml_is_quantized(type) ? 256 : 65;
    const auto l = random_layer(ctx, random, type, d, 33, 5);
    is_the_step<reference>(l, {.radius = 2}, ctx);
    is_the_step<simd>(l, {}, ctx);
  }
}

TEST_CASE("one expert, one neuron, one dimension; more experts than threads and fewer") {
  random_source random(22);
  for (const auto& [n, f, d] : {expert_shape{1, 1, 1}, expert_shape{2, 3, 1}, expert_shape{1, 1, 5},
                                expert_shape{8, 2, 7}, expert_shape{70, 17, 33}}) {
    const context ctx = new_context();
    is_the_step<simd>(random_layer(ctx, random, GGML_TYPE_F32, d, f, n), {}, ctx);
  }
}

TEST_CASE("routers of every type and any strides; several steps; experts that are views") {
  random_source random(23);
  for (const auto type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16}) {
    const context ctx = new_context();
    is_the_step<simd>(random_layer(ctx, random, GGML_TYPE_Q8_0, 64, 9, 6, type), {.steps = 3}, ctx);
    auto l = random_layer(ctx, random, GGML_TYPE_Q8_0, 64, 10, 6, type);
    l.experts = ggml_view_3d(ctx.get(), l.experts, 64, 5, 3, 2 * l.experts->nb[1], 2 * l.experts->nb[2],
                             l.experts->nb[1]);
    l.router = ggml_view_2d(ctx.get(), l.router, 64, 3, 2 * l.router->nb[1], 0);
    ggml_set_name(l.router, "blk.7.ffn_gate_inp.weight");
    is_the_step<simd>(l, {}, ctx);
  }
}

TEST_CASE("no experts: no rows, and nothing is told") {
  const context ctx = new_context();
  ggml::router_rows_op<> op;
  ggml_tensor* rows = op.build(ctx.get(), ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, 4, 3, 0),
                               ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 4, 0));
  compute(ctx, rows, 3);
  CHECK_FALSE(op.failed());
  CHECK(op.statuses().empty());
}

TEST_CASE("rows without a step are a status, and become what the options say") {
  random_source random(24);
  for (const auto policy : {degenerate_row::keep, degenerate_row::zero}) {
    const context ctx = new_context();
    const auto l = random_layer(ctx, random, GGML_TYPE_F32, 16, 5, 4);
    auto* router = static_cast<float*>(l.router->data);
    auto* gates = static_cast<float*>(l.experts->data);
    std::fill_n(router, 16, 0.0F);
    router[16 + 3] = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(gates + 2 * 5 * 16, 5 * 16, 0.0F);
    ggml::router_rows_op<> op({.degenerate = policy});
    ggml_tensor* rows = op.build(ctx.get(), l.experts, l.router);
    compute(ctx, rows, 2);
    CHECK_FALSE(op.failed());
    const std::vector<status> want{status::zero_row, status::non_finite, status::zero_image, status::ok};
    CHECK(std::vector<status>(op.statuses().begin(), op.statuses().end()) == want);
    const auto got = floats_of(rows);
    CHECK(got[2 * 16] == (policy == degenerate_row::keep ? router[2 * 16] : 0.0F));
    CHECK(count_nan(got) == (policy == degenerate_row::keep ? 1 : 0));
  }
}

TEST_CASE("what does not fit is refused when the graph is built, both tensors named") {
  const context ctx = new_context();
  random_source random(25);
  const auto l = random_layer(ctx, random, GGML_TYPE_Q8_0, 32, 3, 4);
  const auto says = [&](ggml_tensor* experts, ggml_tensor* router, const router_options& options,
                        std::string_view part) {
    ggml::router_rows_op<> op(options);
    const auto message = message_of([&] { static_cast<void>(op.build(ctx.get(), experts, router)); });
    CAPTURE(message);
    return contains(message, part);
  };
  ggml_tensor* wide = random_tensor(ctx, random, GGML_TYPE_F32, 33, 4, 1, "wide");
  ggml_tensor* few = random_tensor(ctx, random, GGML_TYPE_F32, 32, 3, 1, "few");
  CHECK(says(l.experts, wide, {},
             "'wide', f32 [33, 4]: there are no rows [D = 32, N = 4] for 'blk.7.ffn_gate_exps.weight', q8_0 "
             "[32, 3, 4]"));
  CHECK(says(l.experts, few, {}, "'few', f32 [32, 3]: there are no rows [D = 32, N = 4]"));
  CHECK(says(l.experts, l.experts, {}, "rows are of two axes"));
  CHECK(says(nullptr, few, {}, "experts: no tensor"));
  CHECK(says(l.experts, nullptr, {}, "rows: no tensor"));
  CHECK(
      says(ggml_new_tensor_3d(ctx.get(), GGML_TYPE_I32, 32, 3, 4), few, {}, "of this type are not decoded"));
  CHECK(says(l.experts, l.router, {.steps = 0}, "ggml::router_rows_op: steps is 0"));
  CHECK(says(l.experts, l.router, {.radius = -1}, "the radius must be positive and finite as float, not -1"));
  CHECK(says(l.experts, l.router, {.radius = router_radius::scale_free(4, 3)}, "3 experts in all"));
}

TEST_CASE("weights that are no host memory are refused when the graph is built") {
  const auto foreign = foreign_buffer_type();
  if (foreign == nullptr) {
    MESSAGE("skipped: this ggml has no buffer type that is no host memory");
    return;
  }
  const context ctx = new_context(false);
  ggml_tensor* gates = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_Q4_0, 64, 8, 2);
  ggml_tensor* router = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 2);
  ggml_set_name(gates, "blk.7.ffn_gate_exps.weight");
  const auto buffer = ggml_backend_buft_alloc_buffer(foreign, 1 << 16);
  REQUIRE(ggml_backend_tensor_alloc(buffer, gates, ggml_backend_buffer_get_base(buffer)) ==
          GGML_STATUS_SUCCESS);
  ggml::router_rows_op<> op;
  CHECK(message_of([&] { static_cast<void>(op.build(ctx.get(), gates, router)); }) ==
        "mpi_router: ggml: 'blk.7.ffn_gate_exps.weight', q4_0 [64, 8, 2]: it lies in a buffer of " +
            std::string(ggml_backend_buft_name(foreign)) + ", which is no host memory in ggml's own layout");
  CHECK(op.statuses().empty());
  ggml_backend_buffer_free(buffer);
}

TEST_CASE(
    "an error inside the graph: the process lives, the rows are NaN, the text is kept until it is taken") {
  random_source random(26);
  const context ctx = new_context();
  const auto l = random_layer(ctx, random, GGML_TYPE_Q8_0, 32, 3, 5);
  ggml::router_rows_op<simd> op;
  ggml_tensor* rows = op.build(ctx.get(), l.experts, l.router);
  void* const data = l.experts->data;
  for (const int threads : {1, 2, 3, 7}) {
    CAPTURE(threads);
    l.experts->data = nullptr;
    compute(ctx, rows, threads);
    CHECK(op.failed());
    CHECK(count_nan(floats_of(rows)) == 5 * 32);
    for (const auto s : op.statuses()) CHECK(s == status::non_finite);
    l.experts->data = data;
    compute(ctx, rows, threads);
    CHECK(count_nan(floats_of(rows)) == 0);
    CHECK(op.failed());  // what happened before is not lost
    CHECK(refused([&] { op.check(); }, "'blk.7.ffn_gate_exps.weight', q8_0 [32, 3, 5]: it has no data yet"));
    CHECK_FALSE(op.failed());
    CHECK(op.take_error().empty());
    op.check();
    for (const auto s : op.statuses()) CHECK(s == status::ok);
  }
}

TEST_CASE("whatever is thrown inside, of the first expert that it struck, and the other threads' rows stay") {
  random_source random(27);
  const context ctx = new_context();
  const auto l = random_layer(ctx, random, GGML_TYPE_F32, 8, 3, 6);
  const auto first_of = [&](int expert) { return static_cast<float*>(l.experts->data)[expert * 3 * 8]; };
  const auto right = rows_without_graph(l, {}, reference{});
  for (const bool is_standard : {true, false}) {
    ggml::router_rows_op<throwing_backend> op({}, throwing_backend{first_of(3), is_standard});
    ggml_tensor* rows = op.build(ctx.get(), l.experts, l.router);
    compute(ctx, rows, 3);  // experts 2 and 3 are a share
    const auto got = floats_of(rows);
    for (std::size_t k = 0; k < got.size(); ++k) {
      const bool is_struck = k / 8 == 2 || k / 8 == 3;
      CHECK((is_struck ? std::isnan(got[k]) : got[k] == right[k]));
    }
    CHECK(op.take_error() ==
          (is_standard ? "a backend's own error" : "mpi_router: an exception that is no std::exception"));
  }
  for (int repeat = 0; repeat < 20; ++repeat) {  // all threads err at once
    static_cast<float*>(l.experts->data)[0] = 1;
    for (int expert = 1; expert < 6; ++expert) static_cast<float*>(l.experts->data)[expert * 24] = 1;
    ggml::router_rows_op<throwing_backend> op({}, throwing_backend{1});
    compute(ctx, op.build(ctx.get(), l.experts, l.router), 6);
    CHECK(op.take_error() == "a backend's own error");
  }
}

TEST_CASE("an op that was built for other experts since is told, not overrun") {
  random_source random(28);
  const context ctx = new_context();
  const auto many = random_layer(ctx, random, GGML_TYPE_F32, 8, 3, 6);
  const auto few = random_layer(ctx, random, GGML_TYPE_F32, 8, 3, 2);
  ggml::router_rows_op<> op;
  ggml_tensor* rows = op.build(ctx.get(), many.experts, many.router);
  static_cast<void>(op.build(ctx.get(), few.experts, few.router));
  compute(ctx, rows, 2);
  CHECK(contains(op.take_error(), "its op was built anew for 2 experts: one op for each layer"));
  CHECK(count_nan(floats_of(rows)) == 6 * 8);
}

TEST_CASE("graphs of a scheduler: tensors have their memory after the op was built, and are used again") {
  const context ctx = new_context(false);
  ggml_tensor* experts = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_Q8_0, 64, 9, 4);
  ggml_tensor* router = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 4);
  ggml_set_name(router, "router");
  ggml_tensor* tokens = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, 64, 3);
  const auto backend = ggml_backend_cpu_init();
  ggml_backend_cpu_set_n_threads(backend, 3);

  const context graph_ctx = new_context(false);
  ggml::router_rows_op<simd> op;
  ggml_tensor* rows = op.build(graph_ctx.get(), experts, router);
  ggml_set_output(rows);
  ggml_tensor* logits = ggml_mul_mat(graph_ctx.get(), rows, tokens);
  ggml_cgraph* graph = ggml_new_graph(graph_ctx.get());
  ggml_build_forward_expand(graph, logits);

  const auto weights = ggml_backend_alloc_ctx_tensors(ctx.get(), backend);
  random_source random(29);
  fill(experts, test_support::random_vector<float>(random, 64 * 9 * 4));
  fill(router, test_support::random_vector<float>(random, 64 * 4));
  fill(tokens, test_support::random_vector<float>(random, 64 * 3));
  ggml_backend_t backends[] = {backend};
  const auto scheduler = ggml_backend_sched_new(backends, nullptr, 1, 64, false, false);
  for (int repeat = 0; repeat < 2; ++repeat) {
    CHECK(ggml_backend_sched_graph_compute(scheduler, graph) == GGML_STATUS_SUCCESS);
    CHECK(op.take_error().empty());
    CHECK(test_support::relative_distance(floats_of(rows), exact_rows(experts, router, 2)) <= bound);
  }
  ggml_backend_sched_free(scheduler);
  ggml_backend_buffer_free(weights);
  ggml_backend_free(backend);
}
