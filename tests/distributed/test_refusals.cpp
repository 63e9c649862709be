// What a rank refuses of its own arguments, shards that lie outside, and that nothing is allocated inside.
#include <mpi_router/core/operators.hpp>
#include <mpi_router/distributed/sharded_rows.hpp>
#include <mpi_router/distributed/sharded_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/messages.hpp>

#include <algorithm>
#include <span>
#include <vector>

#ifndef MPIROUTER_TEST_SANITIZED
#include <support/counted_allocations.hpp>
#endif

using namespace mpi_router;
using namespace test_support;

namespace {

constexpr expert_shape shape{4, 4, 5};

const auto comm =
    make_communicator(0, 1, [](auto mine, auto all) { std::copy_n(mine.data(), mine.size(), all.data()); });

auto rows_of(float* data) { return row_major(data, 4, 5); }
auto shard_at(float* data) { return shard_of_neurons(experts_nfd(data, shape), 0, 4); }

}  // namespace

TEST_CASE("every two buffers that meet are named") {
  std::vector<float> any(80);
  const sharded_layer sizes{shard_at(any.data()), rows_of(any.data()), rows_of(any.data())};
  const index_t work = sharded_router_rows_workspace(sizes, 1);
  const index_t tape = router_tape_size(shape, {});
  refuses_every_overlap<float>({{"a gate matrix", 80, false},
                                {"the router", 20, false},
                                {"the output", 20, true},
                                {"the workspace", static_cast<std::size_t>(work), true},
                                {"the tape", static_cast<std::size_t>(tape), true},
                                {"rayleigh", 4, true}},
                               [&](const auto& at) {
                                 const sharded_layer layer{shard_at(at[0]), rows_of(at[1]), rows_of(at[2])};
                                 sharded_router_rows(comm, layer, {}, {at[3], work},
                                                     {.rayleigh = {at[5], 4}, .tape = {at[4], tape}});
                               });
  const sharded_layer_vjp vjp_sizes{shard_at(any.data()), rows_of(any.data()), rows_of(any.data()),
                                    rows_of(any.data()), shard_at(any.data())};
  const index_t vjp_work = sharded_router_rows_vjp_workspace(vjp_sizes, 1);
  refuses_every_overlap<float>(
      {{"a gate matrix", 80, false},
       {"the router", 20, false},
       {"the gradient of the rows", 20, false},
       {"the tape", static_cast<std::size_t>(tape), false},
       {"the gradient to the router", 20, true},
       {"the gradient to the experts", 80, true},
       {"the workspace", static_cast<std::size_t>(vjp_work), true}},
      [&](const auto& at) {
        const sharded_layer_vjp layer{shard_at(at[0]), rows_of(at[1]), rows_of(at[2]), rows_of(at[4]),
                                      shard_at(at[5])};
        sharded_router_rows_vjp(comm, layer, {at[3], tape}, {}, tokens_of_rows::same_on_all_ranks,
                                gradient_mode::write, {at[6], vjp_work});
      },
      {{"the gradient of the rows", "the gradient to the router"}});
}

TEST_CASE("what one layer writes meets nothing of another, by the words") {
  // Of each layer the weights, the router, the output (or the gradients of the rows, to the router, to the
  // weights).
  std::vector<std::vector<float>> memory(10, std::vector<float>(80, 1.0F));
  std::vector<float> workspace(5000), tape(56), told(16);
  std::vector<float*> at;
  const auto laid = [&](std::size_t moved, std::size_t over) {
    at.clear();
    for (auto& part : memory) at.push_back(part.data());
    at[moved] = at[over];
  };
  const auto forward = [&](std::size_t moved, std::size_t over, index_t cosine = 8) {
    laid(moved, over);
    std::vector<sharded_layer<neuron_shard<float>, float, float>> layers;
    for (const std::size_t l : {0U, 5U})
      layers.push_back({shard_at(at[l]), rows_of(at[l + 1]), rows_of(at[l + 2])});
    return message_of([&] {
      sharded_router_rows(comm, std::span(layers), {}, workspace,
                          {.rayleigh = {told.data(), 8}, .cosine = {told.data() + cosine, 8}});
    });
  };
  CHECK(forward(0, 0) == "");
  CHECK(contains(forward(0, 0, 7), "rayleigh and cosine overlap"));
  CHECK(contains(forward(7, 2), "the output and the output of another layer overlap"));
  CHECK(contains(forward(2, 6), "the output and the router overlap"));
  CHECK(contains(forward(7, 1), "the output and the router overlap"));
  CHECK(contains(forward(2, 5), "the output and a gate matrix overlap"));
  CHECK(contains(forward(7, 0), "the output and a gate matrix overlap"));
  CHECK(forward(6, 1) == "");  // one router for both
  const auto backward = [&](std::size_t moved, std::size_t over) {
    laid(moved, over);
    using shard = neuron_shard<float>;
    std::vector<sharded_layer_vjp<shard, float, float, float, shard>> layers;
    for (const std::size_t l : {0U, 5U}) {
      layers.push_back(
          {shard_at(at[l]), rows_of(at[l + 1]), rows_of(at[l + 2]), rows_of(at[l + 3]), shard_at(at[l + 4])});
    }
    return message_of([&] {
      sharded_router_rows_vjp(comm, std::span(layers), tape, {}, tokens_of_rows::same_on_all_ranks,
                              gradient_mode::write, workspace);
    });
  };
  CHECK(backward(0, 0) == "");
  CHECK(contains(backward(8, 3), "the gradient to the router and that of another layer overlap"));
  CHECK(contains(backward(8, 1), "the gradient to the router and the router overlap"));
  CHECK(contains(backward(3, 6), "the gradient to the router and the router overlap"));
  CHECK(contains(backward(8, 0), "a gate matrix and the gradient to the router overlap"));
  CHECK(contains(backward(9, 4), "the gradient to the experts and that of another layer overlap"));
  CHECK(contains(backward(9, 0), "the gradient to the experts and a gate matrix overlap"));
  CHECK(contains(backward(4, 5), "the gradient to the experts and a gate matrix overlap"));
  CHECK(contains(backward(9, 1), "the gradient to the experts and the router overlap"));
  CHECK(contains(backward(4, 7), "the gradient to the experts and the gradient of the rows overlap"));
  CHECK(contains(backward(9, 3), "the gradient to the experts and the gradient to the router overlap"));
  CHECK(backward(7, 2) == "");  // one gradient of the rows for both
}

TEST_CASE("layers that do not go together, and experts without neurons") {
  std::vector<float> a(200, 1), rows(40), out(40), workspace(5000);
  const auto layer_of = [&](const expert_shape& whole, std::size_t from) {
    return sharded_layer{shard_of_neurons(experts_nfd(a.data() + 5 * from, whole), 0, whole.ffn_dim),
                         row_major(rows.data() + from, whole.num_experts, whole.hidden_dim),
                         row_major(out.data() + from, whole.num_experts, whole.hidden_dim)};
  };
  const auto call = [&](const expert_shape& first, const expert_shape& second) {
    const std::vector layers{layer_of(first, 0), layer_of(second, 20)};
    return message_of([&] { sharded_router_rows(comm, std::span(layers), {}, workspace); });
  };
  CHECK(call(shape, shape) == "");
  CHECK(call(shape, {3, 2, 5}) == "");
  CHECK(call(shape, {0, 0, 5}) == "");
  CHECK(contains(call(shape, {4, 4, 4}), "layer 1 has D = 4, the first has 5"));
  CHECK(contains(call(shape, {4, 0, 5}), "layer 1 has experts without neurons"));
}

TEST_CASE("shards that lie outside of the whole, by the words") {
  std::vector<float> a(200);
  CHECK(refused([&] { static_cast<void>(shard_of_experts(experts_nfd(a.data(), shape), 1, 4)); },
                "shard: 4 experts from 1 on, of 4"));
  CHECK(refused([&] { static_cast<void>(shard_of_neurons(experts_nfd(a.data(), shape), 3, 6)); },
                "shard: 4 neurons from 3 on, of 6"));
  CHECK(refused([&] { static_cast<void>(shard_of_rows(row_major(a.data(), 3, 5), 14, shape)); },
                "shard: 3 rows from 14 on, of 16"));
  CHECK(refused([&] { static_cast<void>(shard_of_rows(row_major(a.data(), 3, 4), 0, shape)); },
                "shard: rows of 4 elements, of a whole with D = 5"));
  CHECK(refused([&] { static_cast<void>(shard_of_columns(experts_nfd(a.data(), shape), 2, 6)); },
                "shard: 5 columns from 2 on, of 6"));
  CHECK(refused([&] { static_cast<void>(shard_of_fused_rows(a.data(), 7, 2, shape)); },
                "shard: 2 rows from 7 on, of 2F = 8"));
  CHECK(refused(
      [&] { static_cast<void>(shard_of_experts_and_neurons(experts_nfd(a.data(), shape), 0, 0, {4, 4, 6})); },
      "shard: experts with D = 5, of a whole with D = 6"));
  const auto none = [](index_t) {
    return gram_operator<float>(5, [](const auto&, const auto&) { return 0.0F; });
  };
  CHECK(refused(
      [&] { static_cast<void>(operator_shard(none, shard_placement::columns_of(shape, 0, 5), shape)); },
      "operator_shard: columns are column_shard()'s"));
}

TEST_CASE("what a backward refuses, by the words") {
  std::vector<float> a(80), gradient(80), router(20), rows(20), grad_router(20), workspace(5000), tape(28);
  const auto call = [&](const auto& grad_shard, index_t taped, router_options options = {}) {
    return message_of([&] {
      const sharded_layer_vjp layer{shard_at(a.data()), rows_of(router.data()), rows_of(rows.data()),
                                    rows_of(grad_router.data()), grad_shard};
      sharded_router_rows_vjp(comm, layer, {tape.data(), taped}, options, tokens_of_rows::same_on_all_ranks,
                              gradient_mode::write, workspace);
    });
  };
  CHECK(call(shard_at(gradient.data()), 28) == "");
  CHECK(contains(call(shard_at(gradient.data()), 27), "the tape has 27 elements, not 28"));
  CHECK(contains(call(shard_of_experts(experts_nfd(gradient.data(), {2, 4, 5}), 0, 4), 28),
                 "the gradient is for other experts or neurons than those that are here"));
  std::vector<float> buffer(200);
  CHECK(
      contains(call(router_factors<float>(buffer, {4, 3, 5}, {}), 28), "the factors have 1 terms for other"));
  CHECK(call(router_factors<float>(buffer, shape, {}), 28) == "");
  CHECK(call(no_gradient{}, 28) == "");
  const auto of_other_neurons = shard_placement{0, 4, 1, 4, shard_placement::form::neurons};
  CHECK(contains(call(neuron_shard<float>(experts_nfd(gradient.data(), shape), shape, of_other_neurons), 28),
                 "the gradient is for other experts or neurons than those that are here"));
  const sharded_layer_vjp rows_alone{shard_of_rows(row_major(a.data(), 16, 5), 0, shape),
                                     rows_of(router.data()), rows_of(rows.data()),
                                     rows_of(grad_router.data()), router_factors<float>(buffer, shape, {})};
  CHECK(refused(
      [&] {
        sharded_router_rows_vjp(comm, rows_alone, tape, {}, tokens_of_rows::same_on_all_ranks,
                                gradient_mode::write, workspace);
      },
      "a run of rows has no factors"));
}

TEST_CASE_TEMPLATE("whole numbers below 2^60 go through a message of floats", S, float, double) {
  const index_t base = index_t{1} << 20;
  for (const index_t value : {index_t{0}, index_t{1}, base - 1, base, base * base - 1, base * base,
                              base * base * base - 1, 3 * base * base + 2 * base + 1}) {
    S digits[3]{S(-1), S(-1), S(-1)};
    detail::put_word(digits, value);
    CHECK(detail::get_word(digits) == value);
  }
}

#ifndef MPIROUTER_TEST_SANITIZED
TEST_CASE("nothing is allocated") {
  std::vector<float> a(80, 1), gradient(80), router(20, 1), rows(20), grad_router(20), tape(28);
  const sharded_layer layer{shard_at(a.data()), rows_of(router.data()), rows_of(rows.data())};
  const sharded_layer_vjp vjp{shard_at(a.data()), rows_of(router.data()), rows_of(rows.data()),
                              rows_of(grad_router.data()), shard_at(gradient.data())};
  std::vector<float> workspace(static_cast<std::size_t>(
      std::max(sharded_router_rows_workspace(layer, 1), sharded_router_rows_vjp_workspace(vjp, 1))));
  const long before = allocations;
  sharded_router_rows(comm, layer, {}, workspace, {.tape = tape});
  sharded_router_rows_vjp(comm, vjp, tape, {}, tokens_of_rows::split_over_ranks, gradient_mode::write,
                          workspace);
  CHECK(allocations == before);
  a[3] = 1e30F;  // and a second message
  sharded_router_rows(comm, layer, {}, workspace);
  CHECK(allocations == before);
}
#endif
