// What the batched step and its backward refuse, by the words: shapes, sizes one short, and every two buffers
// that meet.
#include <mpi_router/router/router_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>

#include <algorithm>
#include <limits>
#include <span>
#include <vector>

namespace test_refusals {
using namespace mpi_router;
using namespace test_support;

namespace {

// Four experts, so that a status each fills the four bytes of a float.
constexpr expert_shape shape{4, 3, 5};
constexpr std::size_t N = 4, F = 3, D = 5;
const router_options two_steps{.steps = 2};

std::size_t size_of(index_t size) { return static_cast<std::size_t>(size); }
template <class T>
auto rows_at(T* data) {
  return row_major(data, 4, 5);
}
vector_view<float> vector_at(float* data, std::size_t size) { return {data, static_cast<index_t>(size)}; }
std::span<status> statuses_at(float* data) { return {reinterpret_cast<status*>(data), N}; }

const std::size_t work = size_of(router_rows_workspace(shape));
const std::size_t vjp_work = size_of(router_rows_vjp_workspace(shape));
const std::size_t tape = size_of(router_tape_size(shape, two_steps));

/// Both forms of a batch: one base pointer, and a table, which is checked expert by expert.
struct as_table {
  std::vector<float*> pointers;
  explicit as_table(float* data) {
    for (std::size_t i = 0; i < N; ++i) pointers.push_back(data + i * F * D);
  }
  [[nodiscard]] auto view() const { return experts_fd_pointers(pointers.data(), shape); }
};
template <class Call>
void with_experts(float* data, bool by_table, Call&& call) {
  if (by_table) {
    const as_table table(data);
    call(table.view());
  } else {
    call(experts_nfd(data, shape));
  }
}

}  // namespace

TEST_CASE("router_rows: every two buffers that meet are named") {
  for (const bool by_table : {false, true}) {
    refuses_every_overlap<float>({{"a gate matrix", N * F * D, false},
                                  {"the router", N * D, false},
                                  {"the output", N * D, true},
                                  {"the workspace", work, true},
                                  {"the tape", tape, true},
                                  {"rayleigh", N, true},
                                  {"cosine", N, true},
                                  {"the statuses", 1, true},
                                  {"residual", N, true},
                                  {"energy", N, true},
                                  {"row_norm", N, true},
                                  {"image_norm", N, true}},
                                 [&](const std::vector<float*>& at) {
                                   with_experts(at[0], by_table, [&](const auto& experts) {
                                     router_rows(experts, rows_at(at[1]), rows_at(at[2]), two_steps,
                                                 vector_at(at[3], work),
                                                 {.statuses = statuses_at(at[7]),
                                                  .rayleigh = vector_at(at[5], N),
                                                  .cosine = vector_at(at[6], N),
                                                  .tape = vector_at(at[4], tape),
                                                  .residual = vector_at(at[8], N),
                                                  .energy = vector_at(at[9], N),
                                                  .row_norm = vector_at(at[10], N),
                                                  .image_norm = vector_at(at[11], N)});
                                   });
                                 });
    refuses_every_overlap<float>({{"a gate matrix", N * F * D, false},
                                  {"the router", N * D, true},
                                  {"the workspace", work, true},
                                  {"rayleigh", N, true},
                                  {"cosine", N, true},
                                  {"the statuses", 1, true}},
                                 [&](const std::vector<float*>& at) {
                                   with_experts(at[0], by_table, [&](const auto& experts) {
                                     stateful_router_rows(experts, rows_at(at[1]), two_steps,
                                                          vector_at(at[2], work),
                                                          {.statuses = statuses_at(at[5]),
                                                           .rayleigh = vector_at(at[3], N),
                                                           .cosine = vector_at(at[4], N)});
                                   });
                                 });
  }
}

TEST_CASE("a table of pointers: each of its experts is looked at") {
  std::vector<float> a(N * F * D, 1), r(N * D, 1), out(N * D), scratch(work), other(F * D + N * D, 1);
  for (std::size_t i = 0; i < N; ++i) {
    as_table table(a.data());
    table.pointers[i] = other.data() + N * D - 1;  // meets the last element of what is written
    CHECK(refused([&] { router_rows(table.view(), rows_at(r.data()), rows_at(other.data()), {}, scratch); },
                  "router_rows: a gate matrix and the output overlap"));
    table.pointers[i] = nullptr;
    CHECK(refused([&] { router_rows(table.view(), rows_at(r.data()), rows_at(out.data()), {}, scratch); },
                  "null data for shape [3, 5]"));
  }
}

TEST_CASE("the backward: every two buffers that meet are named") {
  for (const auto& [by_table, to_table] :
       {std::pair{false, false}, {true, true}, {true, false}, {false, true}}) {
    refuses_every_overlap<float>({{"a gate matrix", N * F * D, false},
                                  {"the router", N * D, false},
                                  {"the tape", tape, false},
                                  {"the gradient of the rows", N * D, false},
                                  {"the gradient to the router", N * D, true},
                                  {"the gradient to the experts", N * F * D, true},
                                  {"the workspace", vjp_work, true}},
                                 [&](const std::vector<float*>& at) {
                                   with_experts(at[0], by_table, [&](const auto& experts) {
                                     with_experts(at[5], to_table, [&](const auto& gradient) {
                                       router_rows_vjp(experts, rows_at(at[1]), vector_at(at[2], tape),
                                                       rows_at(at[3]), two_steps, rows_at(at[4]), gradient,
                                                       gradient_mode::write, vector_at(at[6], vjp_work));
                                     });
                                   });
                                 },
                                 {{"the gradient to the router", "the gradient of the rows"}});
  }
  const auto factors_size = size_of(router_factors<float>::size(shape, two_steps));
  refuses_every_overlap<float>(
      {{"a gate matrix", N * F * D, false},
       {"the router", N * D, false},
       {"the tape", tape, false},
       {"the gradient of the rows", N * D, false},
       {"the gradient to the router", N * D, true},
       {"the gradient to the experts", factors_size, true},
       {"the workspace", vjp_work, true}},
      [&](const std::vector<float*>& at) {
        const router_factors<float> factors(vector_at(at[5], factors_size), shape, two_steps);
        router_rows_vjp_factored(experts_nfd(at[0], shape), rows_at(at[1]), vector_at(at[2], tape),
                                 rows_at(at[3]), two_steps, rows_at(at[4]), factors, gradient_mode::write,
                                 vector_at(at[6], vjp_work));
      },
      {{"the gradient to the router", "the gradient of the rows"}});
  refuses_every_overlap<float>({{"a gate matrix", N * F * D, false},
                                {"the router", N * D, false},
                                {"the tape", tape, false},
                                {"the gradient of the rows", N * D, false},
                                {"the gradient to the router", N * D, true},
                                {"the workspace", vjp_work, true}},
                               [&](const std::vector<float*>& at) {
                                 router_rows_vjp_detached(experts_nfd(at[0], shape), rows_at(at[1]),
                                                          vector_at(at[2], tape), rows_at(at[3]), two_steps,
                                                          rows_at(at[4]), gradient_mode::write,
                                                          vector_at(at[5], vjp_work));
                               },
                               {{"the gradient to the router", "the gradient of the rows"}});
}

TEST_CASE("router_rows: shapes, and sizes one short") {
  std::vector<float> a(N * F * D, 1), r(200, 1), out(200), scratch(2 * work), taken(tape + 100), n(20);
  std::vector<status> statuses(8);
  const auto call = [&](const auto& router, const auto& rows, const router_options& options,
                        const vector_view<float>& workspace, const router_by_products<float>& told = {}) {
    return message_of(
        [&] { router_rows(experts_nfd(a.data(), shape), router, rows, options, workspace, told); });
  };
  const auto router = rows_at(r.data());
  const auto rows = rows_at(out.data());
  const auto enough = vector_at(scratch.data(), work);
  CHECK(call(router, rows, two_steps, enough, {.tape = vector_at(taken.data(), tape)}) == "");
  for (const auto& [k, d] : {std::pair<index_t, index_t>{3, 5}, {5, 5}, {4, 4}, {4, 6}, {5, 4}}) {
    const std::string extents = "[" + std::to_string(k) + ", " + std::to_string(d) + "]";
    CHECK(contains(call(row_major(r.data(), k, d), rows, {}, enough), "the router is " + extents));
    CHECK(contains(call(router, row_major(out.data(), k, d), {}, enough), "the output is " + extents));
  }
  CHECK(contains(call(router, rows, {}, vector_at(scratch.data(), work - 1)),
                 "the workspace has " + std::to_string(work - 1)));
  CHECK(contains(call(router, rows, {}, {scratch.data(), static_cast<index_t>(work), 2}), "(stride 2)"));
  CHECK(contains(call(router, rows, two_steps, enough, {.tape = vector_at(taken.data(), tape - 1)}),
                 "the tape has " + std::to_string(tape - 1) + " elements, not " + std::to_string(tape)));
  std::vector<float> wide(2 * tape);
  CHECK(
      contains(call(router, rows, two_steps, enough, {.tape = {wide.data(), static_cast<index_t>(tape), 2}}),
               "the tape has"));
  for (const auto wrong : {std::size_t{1}, std::size_t{3}, std::size_t{5}}) {
    const std::span<status> some(statuses.data(), wrong);
    const auto told = [&](const router_by_products<float>& by_products, const std::string& name) {
      CHECK(contains(call(router, rows, {}, enough, by_products),
                     "by-products for " + std::to_string(wrong) + " experts in " + name + ", not 4"));
    };
    const auto numbers = vector_at(n.data(), wrong);
    told({.statuses = some}, "the statuses");
    told({.rayleigh = numbers}, "rayleigh");
    told({.cosine = numbers}, "cosine");
    told({.residual = numbers}, "residual");
    told({.energy = numbers}, "energy");
    told({.row_norm = numbers}, "row_norm");
    told({.image_norm = numbers}, "image_norm");
  }
  for (const index_t steps : {0, -1}) {
    CHECK(contains(call(router, rows, {.steps = steps}, enough), "steps is " + std::to_string(steps)));
  }
  for (const double radius : {0.0, -1.0, std::numeric_limits<double>::infinity(), std::nan("")}) {
    CHECK(contains(call(router, rows, {.radius = radius}, enough),
                   "the radius must be positive and finite as float"));
    CHECK(contains(call(router, rows, {.radius = router_radius::scale_free(radius)}, enough),
                   "the radius must be"));
  }
  CHECK(refused([] { static_cast<void>(router_radius::scale_free(4, -1)); }, "-1 experts in all"));
  CHECK(message_of([] { CHECK(router_radius::scale_free(4, 4).of(4) == 2); }) == "");
  CHECK(refused([] { static_cast<void>(router_radius::scale_free(4, 3).of(4)); },
                "3 experts in all, where the call has 4"));
  CHECK(refused(
      [&] {
        stateful_router_rows(experts_nfd(a.data(), shape), router, two_steps, enough,
                             {.tape = vector_at(taken.data(), tape)});
      },
      "a tape is for the stateless form"));
}

TEST_CASE("the backward: shapes, and sizes one short") {
  std::vector<float> a(2 * N * F * D, 1), r(N * D, 1), grad(200, 1), to_r(200), scratch(vjp_work + 9);
  std::vector<float> saved(2 * tape, 1), to_a(400), buffer(400);
  struct arguments {
    vector_view<const float> tape;
    matrix_view<const float> grad_rows;
    matrix_view<float> grad_router;
    vector_view<float> workspace;
    router_options options = two_steps;
    expert_shape of_gradient = shape;
  };
  const arguments right{vector_at(saved.data(), tape), rows_at(grad.data()), rows_at(to_r.data()),
                        vector_at(scratch.data(), vjp_work)};
  const auto call = [&](const arguments& x) {
    return message_of([&] {
      router_rows_vjp(experts_nfd(a.data(), shape), rows_at(r.data()), x.tape, x.grad_rows, x.options,
                      x.grad_router, experts_nfd(to_a.data(), x.of_gradient), gradient_mode::write,
                      x.workspace);
    });
  };
  const auto with = [&](auto change) {
    arguments x = right;
    change(x);
    return call(x);
  };
  CHECK(call(right) == "");
  CHECK(contains(with([&](arguments& x) { x.tape = vector_at(saved.data(), tape - 1); }), "the tape has"));
  CHECK(contains(with([&](arguments& x) { x.tape = {saved.data(), static_cast<index_t>(tape), 2}; }),
                 "the tape has"));
  CHECK(contains(with([&](arguments& x) { x.workspace = vector_at(scratch.data(), vjp_work - 1); }),
                 "the workspace has " + std::to_string(vjp_work - 1)));
  for (const auto& [k, d] : {std::pair<index_t, index_t>{3, 5}, {4, 4}, {4, 6}, {5, 4}}) {
    CHECK(contains(with([&](arguments& x) { x.grad_rows = row_major(grad.data(), k, d); }),
                   "the gradient of the rows is ["));
    CHECK(contains(with([&](arguments& x) { x.grad_router = row_major(to_r.data(), k, d); }),
                   "the gradient to the router is ["));
    CHECK(refused(
        [&] {
          router_rows_vjp_detached(experts_nfd(a.data(), shape), row_major(r.data(), k, d < 5 ? d : 4),
                                   right.tape, right.grad_rows, two_steps, right.grad_router,
                                   gradient_mode::write, right.workspace);
        },
        "the router is ["));
  }
  for (const expert_shape wrong : {expert_shape{4, 5, 3}, {3, 3, 5}, {4, 3, 4}, {4, 4, 5}}) {
    CHECK(contains(with([&](arguments& x) { x.of_gradient = wrong; }), "their gradient is ["));
  }
  CHECK(contains(with([](arguments& x) { x.options.through = differentiate::none; }),
                 "nothing is differentiated"));
  CHECK(contains(with([](arguments& x) { x.options.radius = 0.0; }), "router_rows_vjp: the radius"));
  CHECK(contains(with([](arguments& x) { x.options.steps = 0; }), "router_rows_vjp: steps is 0"));

  const auto needed = router_factors<float>::size(shape, two_steps);
  CHECK(refused([&] { router_factors<float>({buffer.data(), needed - 1}, shape, two_steps); },
                "router_factors: the buffer"));
  CHECK(refused([&] { router_factors<float>({buffer.data(), needed, 2}, shape, two_steps); },
                "router_factors: the buffer"));
  const router_factors<float> factors({buffer.data(), needed}, shape, two_steps);
  for (const auto& [term, expert] : {std::pair<index_t, index_t>{-1, 0}, {2, 0}, {0, -1}, {0, 4}}) {
    CHECK(
        refused([&, t = term, e = expert] { static_cast<void>(factors.at(t, e)); }, "router_factors: term"));
  }
  const auto factored = [&](const router_options& options, const expert_shape& of_experts) {
    router_rows_vjp_factored(
        experts_nfd(a.data(), of_experts), row_major(r.data(), of_experts.num_experts, 5), right.tape,
        row_major(grad.data(), of_experts.num_experts, 5), options,
        row_major(to_r.data(), of_experts.num_experts, 5), factors, gradient_mode::write, right.workspace);
  };
  CHECK(message_of([&] { factored(two_steps, shape); }) == "");
  CHECK(refused([&] { factored({.steps = 1}, shape); }, "the factors have 2 terms"));
  CHECK(refused([&] { factored(two_steps, {3, 3, 5}); }, "the factors have 2 terms"));
  for (const expert_shape wrong : {expert_shape{4, 5, 3}, {3, 3, 5}, {4, 3, 4}, {4, 4, 5}}) {
    CHECK(refused([&] { add_factors(factors, experts_nfd(to_a.data(), wrong), gradient_mode::write); },
                  "add_factors: 2 factors"));
  }
  const router_factors<float> none({}, shape, {.through = differentiate::none});
  CHECK(refused([&] { add_factors(none, experts_nfd(to_a.data(), shape), gradient_mode::write); },
                "add_factors: 0 factors"));
  for (std::size_t i = 0; i < N; ++i) {
    as_table table(to_a.data());
    table.pointers[i] = nullptr;
    CHECK(refused([&] { add_factors(factors, table.view(), gradient_mode::write); }, "null data"));
  }
}

TEST_CASE("nothing is written beyond the sizes that are asked for") {
  std::vector<float> a(N * F * D), r(N * D), grad(N * D), to_a(N * F * D), to_r(N * D), out(N * D);
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 11) - 4;
  for (std::size_t i = 0; i < r.size(); ++i) r[i] = grad[i] = static_cast<float>(i * 5 % 7) - 2;
  for (const index_t steps : {1, 2, 3}) {
    const router_options options{.steps = steps};
    const auto with_room = [](index_t size) { return std::vector<float>(size_of(size) + 4, 9.0F); };
    auto taped = with_room(shape.num_experts * steps * (shape.hidden_dim + 2));
    auto scratch = with_room(router_rows_workspace(shape));
    auto back = with_room(router_rows_vjp_workspace(shape));
    auto buffer = with_room(steps * shape.num_experts * 2 * (shape.ffn_dim + shape.hidden_dim));
    CHECK(size_of(router_tape_size(shape, options)) + 4 == taped.size());
    CHECK(size_of(router_factors<float>::size(shape, options)) + 4 == buffer.size());
    const auto part = [](std::vector<float>& v) { return vector_at(v.data(), v.size() - 4); };
    const auto experts = experts_nfd(a.data(), shape);
    router_rows(experts, rows_at(r.data()), rows_at(out.data()), options, part(scratch),
                {.tape = part(taped)});
    router_rows_vjp(experts, rows_at(r.data()), part(taped), rows_at(grad.data()), options,
                    rows_at(to_r.data()), experts_nfd(to_a.data(), shape), gradient_mode::write, part(back));
    const router_factors<float> factors(part(buffer), shape, options);
    router_rows_vjp_factored(experts, rows_at(r.data()), part(taped), rows_at(grad.data()), options,
                             rows_at(to_r.data()), factors, gradient_mode::write, part(back));
    for (const auto* v : {&taped, &scratch, &back, &buffer}) {
      CHECK(std::all_of(v->end() - 4, v->end(), [](float x) { return x == 9.0F; }));
    }
    CHECK(std::none_of(taped.begin(), taped.end() - 4, [](float x) { return x == 9.0F; }));
  }
}

}  // namespace test_refusals
