// Which parts of a sharded call on GPUs go in one message, and which layers are read by one launch. Host
// code, which needs no GPU.
#include <doctest/doctest.h>

#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>
#include <vector>

using namespace mpi_router;
namespace gpu = mpi_router::cuda::detail;

namespace {

/// Addresses that nothing is read from.
template <class T>
T* somewhere(int number) {
  return reinterpret_cast<T*>(std::uintptr_t{0x10000000} + static_cast<std::uintptr_t>(number) * 0x40000000);
}

using view_layer = cuda::sharded_layer<const bf16, float, float>;
using shard = neuron_shard<const bf16, device_space>;
using shard_layer = cuda::sharded_layer<shard, float, float>;

view_layer layer_of(const expert_shape& s, int number) {
  const auto rows = [&](int at) {
    return matrix_view<float, device_space>(somewhere<float>(at), s.num_experts, s.hidden_dim, s.hidden_dim,
                                            1);
  };
  return {experts_nfd<device_space>(static_cast<const bf16*>(somewhere<bf16>(number)), s), rows(number + 1),
          rows(number + 2)};
}

struct told {
  std::vector<std::vector<int>> met;  // how often each expert of each layer went
  index_t end = 0;                    // of all messages
  int messages = 0;
  index_t largest = 0;
};

template <bool apart, class Layer>
told messages_of(const std::vector<Layer>& layers) {
  const std::span<const Layer> all(layers);
  told t;
  for (const Layer& layer : layers) {
    t.met.emplace_back(static_cast<std::size_t>(layer.experts.shape().num_experts));
  }
  gpu::for_each_message<apart>(all, [&](const auto& group) {
    CHECK(group.at == t.end);  // one after the other, in whole lines
    CHECK(group.at % 64 == 0);
    t.end = group.at + group.message.size;
    ++t.messages;
    index_t slots = 0;
    for (const Layer& layer : group.layers) {
      const auto whole = static_cast<std::size_t>(&group.whole_of(layer) - layers.data());
      REQUIRE(whole < layers.size());
      const index_t count = layer.experts.shape().num_experts;
      REQUIRE(group.first + count <= layers[whole].experts.shape().num_experts);
      CHECK(gpu::total_experts(layer.experts) == gpu::total_experts(layers[whole].experts));
      CHECK(layer.router.row(0).data() == layers[whole].router.row(group.first).data());
      CHECK(layer.rows.row(0).data() == layers[whole].rows.row(group.first).data());
      for (index_t e = 0; e < count; ++e) ++t.met[whole][static_cast<std::size_t>(group.first + e)];
      slots += gpu::rank_message::slots_of(layer);
      t.largest = std::max(t.largest, gpu::floats_of(layer));
    }
    CHECK(group.message.slots == slots);
  });
  CHECK(t.end <= gpu::size_of_messages(all));
  for (const auto& layer : t.met) {
    for (const int times : layer) CHECK(times == 1);
  }
  return t;
}

}  // namespace

TEST_CASE("every expert goes in one message, wherever layers are cut") {
  const std::vector<std::vector<expert_shape>> models{
      {{64, 8, 2048}, {64, 8, 2048}, {64, 8, 2048}, {64, 8, 2048}, {64, 8, 2048}, {64, 8, 2048}},
      {{256, 4, 7168}},
      {{3, 4, 5}, {256, 4, 7168}, {1, 1, 1}, {128, 4, 2048}, {129, 4, 2047}},
      {{1, 4, 32768}, {7, 0, 32768}},
      {{3, 4, 5}}};
  for (const auto& model : models) {
    std::vector<view_layer> layers;
    for (const auto& s : model) layers.push_back(layer_of(s, static_cast<int>(3 * layers.size())));
    CHECK(messages_of<false>(layers).messages == 1);
    static_cast<void>(messages_of<true>(layers));
  }
  CHECK(messages_of<true>(std::vector<view_layer>{layer_of({0, 4, 8}, 0)}).messages == 0);
}

TEST_CASE("messages beside the reads are several, but none is small") {
  const auto count = [](const expert_shape& s, int layers) {
    std::vector<view_layer> all;
    for (int l = 0; l < layers; ++l) all.push_back(layer_of(s, 3 * l));
    return messages_of<true>(all).messages;
  };
  CHECK(count({64, 8, 2048}, 8) == 2);     // 4 MiB in two
  CHECK(count({256, 4, 7168}, 1) == 2);    // a layer of 7 MiB is cut
  CHECK(count({128, 8, 2048}, 48) == 12);  // 48 MiB in fours
  CHECK(count({8, 8, 64}, 1) == 1);        // 2 KiB: their latency is all of it
  CHECK(count({8, 8, 64}, 5) == 1);
}

TEST_CASE("a shard, whose experts have places, is not cut") {
  const expert_shape s{256, 4, 7168};
  const auto all = experts_nfd<device_space>(static_cast<const bf16*>(somewhere<bf16>(0)), {64, 4, 7168});
  const matrix_view<float, device_space> rows(somewhere<float>(1), 256, 7168, 7168, 1);
  const std::vector<shard_layer> layers{{shard_of_experts(all, 64, 256), rows, rows, {}, {}, 64}};
  const told t = messages_of<true>(layers);
  CHECK(t.messages == 1);
  CHECK(t.largest == 64 * 7168);
  CHECK(s.num_experts == layers[0].experts.shape().num_experts);
}

TEST_CASE("layers are read by one launch where they differ in nothing but addresses") {
  const expert_shape s{4, 6, 64};
  const auto stacks = [](const view_layer& a, const view_layer& b) {
    const std::vector<view_layer> both{a, b};
    return gpu::make_stacks(std::span<const view_layer>(both));
  };
  const view_layer first = layer_of(s, 0);
  CHECK(stacks(first, layer_of(s, 3)));
  CHECK_FALSE(gpu::make_stacks(std::span<const view_layer>(&first, 1)));
  CHECK_FALSE(stacks(first, layer_of({4, 5, 64}, 3)));
  CHECK_FALSE(stacks(first, layer_of({3, 6, 64}, 3)));
  CHECK_FALSE(stacks(first, layer_of({4, 6, 32}, 3)));
  CHECK_FALSE(stacks(layer_of({4, 0, 64}, 0), layer_of({4, 0, 64}, 3)));
  view_layer other = layer_of(s, 3);
  other.experts = expert_batch_view<const bf16, device_space>(somewhere<bf16>(3), s, {6 * 64, 1, 6});
  CHECK_FALSE(stacks(first, other));
  other = layer_of(s, 3);
  other.experts = layer_of({8, 6, 64}, 3).experts.middle_experts(0, 4);  // of a layer of eight
  CHECK_FALSE(stacks(first, other));

  const auto part = [&](index_t from, index_t rows) {
    const matrix_view<const bf16, device_space> held(somewhere<bf16>(0), rows, 64, 64, 1);
    const matrix_view<float, device_space> router(somewhere<float>(1), 4, 64, 64, 1);
    return shard_layer{shard_of_rows(held, from, s), router, router};
  };
  const std::vector<shard_layer> same{part(3, 14), part(3, 14)};
  const std::vector<shard_layer> shifted{part(3, 14), part(4, 14)};
  CHECK(gpu::make_stacks(std::span<const shard_layer>(same)));
  CHECK_FALSE(gpu::make_stacks(std::span<const shard_layer>(shifted)));
}

TEST_CASE("the forward reads layers by one launch where a second kernel finishes them anyway") {
  cuda::context ctx;
  ctx.multiprocessors = 132;
  ctx.capability = 90;
  ctx.shared_memory = 227 * 1024;
  for (int i = 0; i < 4; ++i) ctx.clusters[i] = 132 >> i;
  const auto stacks = [&](const expert_shape& s) {
    const std::vector<view_layer> both{layer_of(s, 0), layer_of(s, 3)};
    return gpu::stack_forward(ctx, std::span<const view_layer>(both));
  };
  CHECK_FALSE(stacks({64, 256, 2048}));  // clusters of two finish by themselves
  CHECK_FALSE(stacks({128, 192, 2048}));
  CHECK_FALSE(stacks({256, 512, 7168}));  // 128 blocks finish two experts each, one after the other
  CHECK(stacks({257, 512, 7168}));        // more experts than multiprocessors, in no equal shares
  CHECK(stacks({3, 1000, 72}));           // more blocks an expert than a cluster has
  CHECK(stacks({1, 341, 2048}));          // a part of one
}

TEST_CASE("what begins at an expert, of what is wanted") {
  cuda::step_by_products told_of;
  told_of.rayleigh = somewhere<double>(0);
  told_of.statuses = somewhere<status>(1);
  const cuda::step_by_products at = gpu::from_expert(told_of, 5);
  CHECK(at.rayleigh == told_of.rayleigh + 5);
  CHECK(at.statuses == told_of.statuses + 5);
  CHECK(at.energy == nullptr);
  const cuda::saved_step saved{somewhere<float>(2), somewhere<double>(3), nullptr};
  const cuda::saved_step here = gpu::from_expert(saved, 5, 64);
  CHECK(here.direction == saved.direction + 5 * 64);
  CHECK(here.image_norm == saved.image_norm + 5);
  CHECK(here.statuses == nullptr);
}
