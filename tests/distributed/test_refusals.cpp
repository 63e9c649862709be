// What a rank refuses of its own arguments, shards that lie outside, and that nothing is allocated inside.
#include <mpi_router/distributed/sharded_rows.hpp>
#include <mpi_router/distributed/sharded_rows_vjp.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/messages.hpp>

#include <algorithm>
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
