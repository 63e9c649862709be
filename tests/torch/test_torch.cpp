// The rows of a router over at::Tensor: beside the formula under libtorch's own autograd, in every layout and
// type; what gets a gradient and what does not; shapes without elements; mistakes.
#include <mpi_router/torch/router.hpp>

#define AT_PER_OPERATOR_HEADERS  // all of them take long
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>

#undef CHECK  // glog's, which libtorch's logging may include
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using mpi_router::torch_options;

struct layout {
  const char* name;
  Tensor (*make)(std::int64_t n, std::int64_t f, std::int64_t d);  // the storage, in double
  Tensor (*view)(const Tensor& storage);                           // [N, F, D] of it
};
const layout layouts[] = {
    {"[N, F, D]", [](auto n, auto f, auto d) { return at::randn({n, f, d}, at::kDouble); },
     [](const Tensor& t) { return t; }},
    {"[N, D, F]", [](auto n, auto f, auto d) { return at::randn({n, d, f}, at::kDouble); },
     [](const Tensor& t) { return t.transpose(1, 2); }},
    {"[F, N, D]", [](auto n, auto f, auto d) { return at::randn({f, n, d}, at::kDouble); },
     [](const Tensor& t) { return t.transpose(0, 1); }},
    {"upper half of [N, 2F, D]", [](auto n, auto f, auto d) { return at::randn({n, 2 * f, d}, at::kDouble); },
     [](const Tensor& t) { return t.slice(1, t.size(1) / 2); }},
    {"every other row of [N, 2F, D]",
     [](auto n, auto f, auto d) { return at::randn({n, 2 * f, d}, at::kDouble); },
     [](const Tensor& t) { return t.slice(1, 0, t.size(1), 2); }},
    {"a half of [N, D, 2F]", [](auto n, auto f, auto d) { return at::randn({n, d, 2 * f}, at::kDouble); },
     [](const Tensor& t) { return t.slice(2, 0, t.size(2) / 2).transpose(1, 2); }},
    {"one column more", [](auto n, auto f, auto d) { return at::randn({n, f, d + 1}, at::kDouble); },
     [](const Tensor& t) { return t.slice(2, 1); }},
    {"one expert for all", [](auto, auto f, auto d) { return at::randn({1, f, d}, at::kDouble); },
     [](const Tensor& t) { return t.expand({3, t.size(1), t.size(2)}); }}};

/// C · rM/‖rM‖ of each expert, `steps` times, as torch.nn.functional.normalize divides.
Tensor formula(const Tensor& experts, const Tensor& router, double length, int steps = 1) {
  Tensor rows = router;
  for (int k = 0; k < steps; ++k) {
    const Tensor image = at::bmm(experts.transpose(1, 2), at::bmm(experts, rows.unsqueeze(2))).squeeze(2);
    rows = length * image / image.norm(2, {1}, true).clamp_min(1e-12);
  }
  return rows;
}

double distance(const Tensor& a, const Tensor& b) {
  const Tensor exact = b.to(at::kDouble);
  return ((a.to(at::kDouble) - exact).norm() / exact.norm().clamp_min(1e-300)).item<double>();
}

Tensor leaf(const Tensor& t, at::ScalarType type) {
  return t.detach().to(type).clone().set_requires_grad(true);
}

double tolerance(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return 1e-13;
    case at::kFloat: return 1e-5;
    case at::kHalf: return 1e-3;
    default: return 6e-3;
  }
}

template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::runtime_error& error) {  // of autograd itself
    return error.what();
  }
  return "nothing was refused";
}
bool says(const std::string& text, const char* words) {
  INFO(text);
  return text.find(words) != std::string::npos;
}

/// A problem whose experts are a view of `storage`; what autograd finds by the library and by the formula.
void beside_the_formula(const layout& in, at::ScalarType experts_type, at::ScalarType router_type,
                        at::ScalarType exact_type, mpi_router_options options) {
  CAPTURE(in.name);
  CAPTURE(c10::toString(experts_type));
  CAPTURE(c10::toString(router_type));
  for (const auto& [f, d] : {std::pair{5, 7}, {33, 70}, {1, 1}}) {
    const Tensor storage = leaf(in.make(3, f, d), experts_type);
    const Tensor router = leaf(at::randn({3, d}, at::kDouble), router_type);
    const Tensor incoming = at::randn({3, d}, at::kDouble).to(router_type);
    const Tensor exact_storage = leaf(storage, exact_type), exact_router = leaf(router, exact_type);

    const auto [rows, statuses] = mpi_router::router_rows(in.view(storage), router, options);
    rows.backward(incoming);
    const double length = options.radius / (options.radius_rule == MPIROUTER_RADIUS_FIXED ? 1 : std::sqrt(3));
    const Tensor exact =
        formula(in.view(exact_storage), exact_router, length, static_cast<int>(options.steps));
    exact.backward(incoming.to(exact_type));

    const double bound = std::max({tolerance(experts_type), tolerance(router_type), tolerance(exact_type)}) *
                         static_cast<double>(options.steps);
    CHECK((rows.scalar_type() == router_type));
    CHECK(rows.is_contiguous());
    CHECK(statuses.eq(0).all().item<bool>());
    CHECK(distance(rows, exact) < bound);
    CHECK((router.grad().scalar_type() == router_type));
    CHECK((storage.grad().scalar_type() == experts_type));
    if (d > 1) {  // of one dimension a row has no angle, and both gradients are rounding errors
      CHECK(distance(router.grad(), exact_router.grad()) < 20 * bound);
      CHECK(distance(storage.grad(), exact_storage.grad()) < 20 * bound);
    }
  }
}

}  // namespace

TEST_CASE("in double and in float, in every layout, as the formula under libtorch's autograd") {
  for (const auto& in : layouts) {
    beside_the_formula(in, at::kDouble, at::kDouble, at::kDouble, torch_options());
    beside_the_formula(in, at::kFloat, at::kFloat, at::kFloat, torch_options());
    beside_the_formula(in, at::kFloat, at::kFloat, at::kDouble, torch_options());
  }
}

TEST_CASE("bf16 and f16, with routers of other types, as the formula in double of the same numbers") {
  for (const auto& in : layouts) {
    beside_the_formula(in, at::kBFloat16, at::kFloat, at::kDouble, torch_options());
    beside_the_formula(in, at::kBFloat16, at::kBFloat16, at::kDouble, torch_options());
    beside_the_formula(in, at::kHalf, at::kHalf, at::kDouble, torch_options());
    beside_the_formula(in, at::kHalf, at::kFloat, at::kDouble, torch_options());
    beside_the_formula(in, at::kDouble, at::kFloat, at::kDouble, torch_options());
  }
}

TEST_CASE("several steps, a fixed radius") {
  auto options = torch_options();
  options.steps = 3;
  options.radius = 2;
  options.radius_rule = MPIROUTER_RADIUS_FIXED;
  beside_the_formula(layouts[0], at::kDouble, at::kDouble, at::kDouble, options);
  beside_the_formula(layouts[1], at::kDouble, at::kDouble, at::kDouble, options);
}

TEST_CASE("the gradient through the last step alone, and through none") {
  auto options = torch_options();
  options.steps = 2;
  const Tensor experts = leaf(at::randn({2, 4, 6}, at::kDouble), at::kDouble);
  const Tensor router = leaf(at::randn({2, 6}, at::kDouble), at::kDouble);
  const double length = 4 / std::sqrt(2.0);
  const Tensor incoming = at::randn({2, 6}, at::kDouble);

  options.through = MPIROUTER_THROUGH_LAST;
  std::get<0>(mpi_router::router_rows(experts, router, options)).backward(incoming);
  const Tensor exact_experts = leaf(experts, at::kDouble), exact_router = leaf(router, at::kDouble);
  formula(exact_experts, formula(exact_experts.detach(), exact_router, length), length).backward(incoming);
  CHECK(distance(experts.grad(), exact_experts.grad()) < 1e-12);
  CHECK(distance(router.grad(), exact_router.grad()) < 1e-12);

  options.through = MPIROUTER_THROUGH_NONE;
  const Tensor frozen = leaf(experts, at::kDouble), again = leaf(router, at::kDouble);
  std::get<0>(mpi_router::router_rows(frozen, again, options)).backward(incoming);
  CHECK_FALSE(frozen.grad().defined());
  CHECK(distance(again.grad(), exact_router.grad()) < 1e-12);
}

TEST_CASE("central differences") {
  const Tensor experts = leaf(at::randn({2, 3, 4}, at::kDouble), at::kDouble);
  const Tensor router = leaf(at::randn({2, 4}, at::kDouble), at::kDouble);
  const Tensor incoming = at::randn({2, 4}, at::kDouble);
  const auto loss = [&] { return (std::get<0>(mpi_router::router_rows(experts, router)) * incoming).sum(); };
  loss().backward();
  const at::NoGradGuard no_grad;
  constexpr double h = 1e-5;
  for (const Tensor& t : {experts, router}) {
    const Tensor elements = t.view({-1}), gradient = t.grad().reshape({-1});
    for (std::int64_t i = 0; i < t.numel(); ++i) {
      const double x = elements[i].item<double>();
      elements[i].fill_(x + h);
      const double above = loss().item<double>();
      elements[i].fill_(x - h);
      const double below = loss().item<double>();
      elements[i].fill_(x);
      CHECK(std::abs((above - below) / (2 * h) - gradient[i].item<double>()) < 1e-7);
    }
  }
}

TEST_CASE("what requires no gradient gets none, and then no tape is kept") {
  const Tensor experts = at::randn({3, 4, 5}), router = at::randn({3, 5});
  for (const bool of_experts : {false, true}) {
    const Tensor e = experts.clone().set_requires_grad(of_experts);
    const Tensor r = router.clone().set_requires_grad(!of_experts);
    const Tensor both_e = leaf(experts, at::kFloat), both_r = leaf(router, at::kFloat);
    std::get<0>(mpi_router::router_rows(e, r)).select(1, 0).sum().backward();
    std::get<0>(mpi_router::router_rows(both_e, both_r)).select(1, 0).sum().backward();
    CHECK(e.grad().defined() == of_experts);
    CHECK(r.grad().defined() == !of_experts);
    CHECK(distance(of_experts ? e.grad() : r.grad(), of_experts ? both_e.grad() : both_r.grad()) < 1e-6);

    // Where autograd is asked for one of two, the other is not computed.
    const auto [rows, statuses] = mpi_router::router_rows(both_e, both_r);
    const auto grads = torch::autograd::grad({rows.select(1, 0).sum()}, {of_experts ? both_e : both_r});
    CHECK(distance(grads[0], of_experts ? both_e.grad() : both_r.grad()) < 1e-6);
    CHECK_FALSE(statuses.requires_grad());
  }
  CHECK_FALSE(std::get<0>(mpi_router::router_rows(experts, router)).requires_grad());
  const at::NoGradGuard no_grad;
  CHECK_FALSE(std::get<0>(mpi_router::router_rows(leaf(experts, at::kFloat), router)).requires_grad());
}

TEST_CASE("rows without a step are as torch.nn.functional.normalize has them, without gradient") {
  Tensor experts = at::randn({5, 4, 6}), router = at::randn({5, 6});
  experts[1].zero_();
  router[2].zero_();
  router[3][4].fill_(std::numeric_limits<float>::quiet_NaN());
  experts.set_requires_grad(true);
  router.set_requires_grad(true);
  const auto [rows, statuses] = mpi_router::router_rows(experts, router);
  const Tensor exact = formula(experts.detach(), router.detach(), 4 / std::sqrt(5.0));
  const int expected[] = {MPIROUTER_STATUS_OK, MPIROUTER_STATUS_ZERO_IMAGE, MPIROUTER_STATUS_ZERO_ROW,
                          MPIROUTER_STATUS_NON_FINITE, MPIROUTER_STATUS_OK};
  rows.sum().backward();
  for (std::int64_t i = 0; i < 5; ++i) {
    CAPTURE(i);
    const bool is_alive = expected[i] == MPIROUTER_STATUS_OK;
    CHECK(statuses[i].item<int>() == expected[i]);
    CHECK(rows[i].isnan().all().item<bool>() == exact[i].isnan().all().item<bool>());
    if (expected[i] != MPIROUTER_STATUS_NON_FINITE) {
      CHECK((rows[i] - exact[i]).abs().max().item<float>() < 1e-5);
    }
    for (const Tensor& gradient : {experts.grad()[i], router.grad()[i]}) {
      CHECK(gradient.isfinite().all().item<bool>());
      CHECK(gradient.count_nonzero().item<int>() * int{!is_alive} == 0);
      CHECK((gradient.count_nonzero().item<int>() > 0) == is_alive);
    }
  }
  auto keep = torch_options();
  keep.degenerate = MPIROUTER_DEGENERATE_KEEP;
  const Tensor kept = std::get<0>(mpi_router::router_rows(experts, router, keep));
  CHECK(at::equal(kept[1], router[1]));
  CHECK(kept[3].isnan().sum().item<int>() == 1);
}

TEST_CASE("the backward by hand: that of autograd, and added to a buffer") {
  const Tensor experts = leaf(at::randn({3, 8, 16}), at::kBFloat16);
  const Tensor router = leaf(at::randn({3, 16}), at::kFloat), incoming = at::randn({3, 16});
  std::get<0>(mpi_router::router_rows(experts, router)).backward(incoming);
  const at::NoGradGuard no_grad;
  const auto [rows, statuses, tape] = mpi_router::router_rows_with_tape(experts, router);
  CHECK(tape.numel() == 3 * (4 * (16 + 2) + 1));  // that of a GPU, wherever it runs and was built
  CHECK(at::equal(rows, std::get<0>(mpi_router::router_rows(experts, router))));
  const auto [grad_router, grad_experts] = mpi_router::router_rows_vjp(experts, router, tape, incoming);
  CHECK(at::equal(grad_router, router.grad()));
  CHECK(at::equal(grad_experts, experts.grad()));
  const auto [none, only] =
      mpi_router::router_rows_vjp(experts, router, tape, incoming, torch_options(), false, true);
  CHECK(none.numel() == 0);
  CHECK(at::equal(only, grad_experts));
  const auto [nothing, nor] =
      mpi_router::router_rows_vjp(experts, router, tape, incoming, torch_options(), false, false);
  CHECK(nothing.numel() + nor.numel() == 0);

  const Tensor before = at::randn({3, 16, 8}).transpose(1, 2);  // of f32 and of another layout
  const Tensor sums = before.clone();
  const auto version = sums._version();
  const Tensor to_router = mpi_router::router_rows_vjp_accumulate(experts, router, tape, incoming, sums);
  CHECK(sums._version() > version);
  CHECK(distance(to_router, grad_router) < 1e-6);
  CHECK(distance(sums - before, grad_experts) < 6e-3);
}

TEST_CASE("the same bits for one thread and for two") {
  const Tensor experts = at::randn({5, 300, 70}), router = at::randn({5, 70}), incoming = at::randn({5, 70});
  std::vector<std::tuple<Tensor, Tensor, Tensor>> told;
  const int threads = at::get_num_threads();
  for (const int count : {1, 2}) {
    at::set_num_threads(count);
    const Tensor e = leaf(experts, at::kFloat), r = leaf(router, at::kFloat);
    const Tensor rows = std::get<0>(mpi_router::router_rows(e, r));
    rows.backward(incoming);
    told.emplace_back(rows, e.grad(), r.grad());
  }
  at::set_num_threads(threads);
  CHECK(at::equal(std::get<0>(told[0]), std::get<0>(told[1])));
  CHECK(at::equal(std::get<1>(told[0]), std::get<1>(told[1])));
  CHECK(at::equal(std::get<2>(told[0]), std::get<2>(told[1])));
}

TEST_CASE("no experts, no neurons") {
  for (const auto& [n, f] : {std::pair{0, 4}, {3, 0}, {0, 0}}) {
    const Tensor experts = leaf(at::ones({n, f, 6}), at::kFloat), router = leaf(at::ones({n, 6}), at::kFloat);
    const auto [rows, statuses] = mpi_router::router_rows(experts, router);
    rows.sum().backward();
    CHECK(rows.sizes() == router.sizes());
    CHECK(rows.count_nonzero().item<int>() == 0);
    CHECK(statuses.sizes() == at::IntArrayRef{n});
    CHECK(experts.grad().sizes() == experts.sizes());
    CHECK(router.grad().count_nonzero().item<int>() == 0);
  }
}

TEST_CASE("without elements: shapes, types and strides of what there would be") {
  for (const auto& in : layouts) {
    CAPTURE(in.name);
    const auto same = [](const Tensor& meta, const Tensor& real) {
      CHECK(meta.is_meta());
      CHECK(meta.sizes() == real.sizes());
      CHECK(meta.strides() == real.strides());
      CHECK((meta.scalar_type() == real.scalar_type()));
    };
    const Tensor storage = in.make(3, 5, 7).to(at::kBFloat16), router = at::randn({3, 7});
    const Tensor shape = in.view(storage.to(at::kMeta)), meta_router = router.to(at::kMeta);
    const auto [rows, statuses, tape] = mpi_router::router_rows_with_tape(in.view(storage), router);
    const auto [meta_rows, meta_statuses, meta_tape] = mpi_router::router_rows_with_tape(shape, meta_router);
    same(meta_rows, rows);
    same(meta_statuses, statuses);
    same(meta_tape, tape);
    same(std::get<0>(mpi_router::router_rows(shape, meta_router)), rows);
    const auto grads = mpi_router::router_rows_vjp(in.view(storage), router, tape, rows);
    const auto meta_grads = mpi_router::router_rows_vjp(shape, meta_router, meta_tape, meta_rows);
    same(std::get<0>(meta_grads), std::get<0>(grads));
    same(std::get<1>(meta_grads), std::get<1>(grads));
    same(mpi_router::router_rows_vjp_accumulate(shape, meta_router, meta_tape, meta_rows, shape),
         std::get<0>(grads));
  }
  const Tensor meta = at::empty({3, 5, 7}, at::TensorOptions().device(at::kMeta)).set_requires_grad(true);
  const Tensor rows =
      std::get<0>(mpi_router::router_rows(meta, at::empty({3, 7}, at::TensorOptions().device(at::kMeta))));
  rows.backward(rows.detach());
  CHECK(meta.grad().sizes() == meta.sizes());
}

TEST_CASE("mistakes name what was wrong, with shapes and types, and nothing else happens") {
  const Tensor experts = at::randn({3, 5, 7}), router = at::randn({3, 7});
  const auto rows = [](const Tensor& e, const Tensor& r, mpi_router_options o = torch_options()) {
    return refusal([&] { mpi_router::router_rows(e, r, o); });
  };
  CHECK(says(rows(experts[0], router), "router_rows: experts is Float [5, 7] on cpu, not [N, F, D]"));
  CHECK(says(rows(experts, router[0]),
             "router is Float [7] on cpu, not [3, 7], as the experts, Float [3, 5, 7]"));
  CHECK(says(rows(experts, at::randn({3, 6})), "router is Float [3, 6] on cpu, not [3, 7]"));
  CHECK(says(rows(experts, at::randn({4, 7})), "router is Float [4, 7] on cpu, not [3, 7]"));
  CHECK(says(rows(experts.to(at::kLong), router), "experts is Long [3, 5, 7] on cpu, not Double, Float,"));
  CHECK(says(rows(experts, router.to(at::kInt)), "router is Int [3, 7] on cpu, not Double, Float,"));
  CHECK(says(rows(experts, router.to(at::kDouble)), "Double goes with experts of Double alone"));
  CHECK(says(rows(experts, router.to(at::kMeta)), "on meta"));
  auto options = torch_options();
  options.radius = -1;
  CHECK(says(rows(experts, router, options), "radius"));
  options = torch_options();
  options.steps = 0;
  CHECK(says(rows(experts, router, options), "steps is 0"));
  options = torch_options();
  options.degenerate = 7;
  CHECK(says(rows(experts, router, options), "degenerate is 7, which is none of its values"));
  options = torch_options();
  options.total_experts = -3;
  CHECK_FALSE(says(rows(experts, router, options), "nothing was refused"));

  const Tensor tape = std::get<2>(mpi_router::router_rows_with_tape(experts, router));
  const auto vjp = [&](const Tensor& t, const Tensor& g) {
    return refusal([&] { mpi_router::router_rows_vjp(experts, router, t, g); });
  };
  const std::string bytes = std::to_string(tape.numel());
  CHECK(says(vjp(tape.slice(0, 1), router), ("not the Byte [" + bytes + "]").c_str()));
  CHECK(says(vjp(tape.to(at::kInt), router), ("tape is Int [" + bytes + "] on cpu").c_str()));
  CHECK(says(vjp(tape, router.slice(1, 1)), "grad_rows is Float [3, 6] on cpu, not [3, 7]"));
  CHECK(says(vjp(tape, router.to(at::kLong)), "grad_rows is Long [3, 7]"));
  const auto accumulate = [&](const Tensor& to) {
    return refusal([&] { mpi_router::router_rows_vjp_accumulate(experts, router, tape, router, to); });
  };
  CHECK(says(accumulate(at::zeros({3, 7, 5})), "grad_experts is Float [3, 7, 5] on cpu and experts is"));
  CHECK(says(accumulate(at::zeros({3, 5, 7}, at::kHalf)), "grad_experts is f16 and experts is f32"));
  CHECK(says(accumulate(at::zeros({3, 1, 7}).expand({3, 5, 7})), "some elements of [3, 5, 7] are one"));
  CHECK(says(accumulate(experts), "overlap"));
}

TEST_CASE("a second derivative is refused, and so is a weight that was changed before the backward") {
  const Tensor experts = leaf(at::randn({2, 3, 4}), at::kFloat), router = leaf(at::randn({2, 4}), at::kFloat);
  const Tensor first = torch::autograd::grad({std::get<0>(mpi_router::router_rows(experts, router)).sum()},
                                             {router}, {}, true, true)[0];
  CHECK(says(refusal([&] { first.sum().backward(); }), "not implemented"));
  const Tensor rows = std::get<0>(mpi_router::router_rows(experts, router));
  {
    const at::NoGradGuard no_grad;
    experts.mul_(2);
  }
  CHECK(says(refusal([&] { rows.sum().backward(); }), "modified by an inplace operation"));
}

// ---- The gate
// -------------------------------------------------------------------------------------------------

TEST_CASE("the gate: softmax over all, the best K, renormalised, and its gradient") {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const Tensor logits = leaf(at::randn({9, 6}, at::kDouble), type), exact = leaf(logits, type);
    const auto options = mpi_router_default_gating_options(2);
    const auto [weights, experts, statuses] = mpi_router::gate(logits, options);
    const auto [best, ids] = exact.softmax(1).topk(2, 1);
    const Tensor expected = best / best.sum(1, true);
    const Tensor incoming = at::randn({9, 2}, at::kDouble).to(type);
    weights.backward(incoming);
    expected.backward(incoming);
    CHECK((weights.scalar_type() == type));
    CHECK(at::equal(experts, ids));
    CHECK(statuses.eq(0).all().item<bool>());
    CHECK(distance(weights, expected) < tolerance(type));
    CHECK(distance(logits.grad(), exact.grad()) < 10 * tolerance(type));
    CHECK_FALSE(experts.requires_grad());
    CHECK(at::equal(mpi_router::gate_vjp(logits, experts, statuses, incoming, options), logits.grad()));
  }
}

TEST_CASE("a gate with sigmoid, a bias that closes an expert, padding, and strided logits") {
  const Tensor stored = leaf(at::randn({5, 8}), at::kFloat);
  const Tensor logits = stored.t();  // [8, 5]
  Tensor bias = at::zeros({5}), mask = at::ones({8}, at::kBool);
  bias[3].fill_(-std::numeric_limits<float>::infinity());
  mask[6].fill_(false);
  auto options = mpi_router_default_gating_options(3);
  options.score_function = MPIROUTER_SIGMOID;
  options.scaling_factor = 2.5;
  const auto [weights, experts, statuses] = mpi_router::gate(logits, options, bias, mask);
  CHECK_FALSE(experts.eq(3).any().item<bool>());
  CHECK(experts[6].eq(-1).all().item<bool>());
  CHECK(weights[6].eq(0).all().item<bool>());
  CHECK(statuses[6].item<int>() == MPIROUTER_STATUS_MASKED);
  const Tensor exact = leaf(stored, at::kDouble), scores = exact.t().sigmoid();
  const Tensor best = scores.gather(1, experts.clamp_min(0));
  const Tensor expected = 2.5 * best / best.sum(1, true) * mask.unsqueeze(1);
  CHECK(distance(weights, expected) < 1e-6);
  const Tensor incoming = at::randn({8, 3});
  weights.backward(incoming);
  expected.backward(incoming.to(at::kDouble));
  CHECK(distance(stored.grad(), exact.grad()) < 1e-5);
  CHECK(stored.grad().select(1, 6).count_nonzero().item<int>() == 0);
}

TEST_CASE("a gate without elements, and mistakes") {
  const Tensor logits = at::randn({4, 6}), meta = logits.to(at::kMeta);
  const auto options = mpi_router_default_gating_options(2);
  const auto [weights, experts, statuses] = mpi_router::gate(meta, options);
  CHECK(weights.sizes() == at::IntArrayRef{4, 2});
  CHECK((experts.scalar_type() == at::kLong));
  CHECK(statuses.sizes() == at::IntArrayRef{4});
  CHECK(mpi_router::gate_vjp(meta, experts, statuses, weights, options).sizes() == logits.sizes());

  const auto gate = [&](const Tensor& l, const mpi_router_gating_options& o, const Tensor& bias = {},
                        const Tensor& mask = {}) {
    return refusal([&] { mpi_router::gate(l, o, bias, mask); });
  };
  CHECK(says(gate(logits[0], options), "gate: logits is Float [6] on cpu, not [T, N]"));
  CHECK(
      says(gate(logits.to(at::kBFloat16), options), "logits is BFloat16 [4, 6] on cpu, not Float or Double"));
  CHECK(says(gate(logits, mpi_router_default_gating_options(7)), "top_k is 7 and logits is Float [4, 6]"));
  CHECK(says(gate(logits, options, at::zeros({5})), "selection_bias is Float [5] on cpu and logits is"));
  CHECK(says(gate(logits, options, {}, at::ones({4})), "mask is Float [4] on cpu, not the Bool [T]"));
  auto groups = options;
  groups.n_group = 4;
  CHECK_FALSE(says(gate(logits, groups), "nothing was refused"));
}
