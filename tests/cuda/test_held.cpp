// What a rank on a GPU holds, as batches: every row of a run is in one of them, as the expert that it is of.
#include <mpi_router/distributed/held.cuh>

#include <doctest/doctest.h>

#include <vector>

using namespace mpi_router;

namespace {

constexpr expert_shape whole{.num_experts = 4, .ffn_dim = 3, .hidden_dim = 2};

/// Row by row of [N·F, D]: where it lies in memory, by the batches of a shard; −1 where nothing is.
std::vector<index_t> rows_by_batches(const neuron_shard<const float, device_space>& shard,
                                     const float* base) {
  std::vector<index_t> at(static_cast<std::size_t>(whole.num_experts * whole.ffn_dim), -1);
  const shard_placement& where = shard.placement();
  index_t batches = 0;
  for (const auto& batch : cuda::detail::neuron_batches(shard)) {
    ++batches;
    CHECK(batch.first == where.first_expert + batch.slot);
    for (index_t e = 0; e < batch.experts.num_experts(); ++e) {
      const auto expert = batch.experts[e];
      const neuron_run run = where.neurons(whole, batch.first + e);
      REQUIRE(run.size() == expert.rows());
      for (index_t f = 0; f < run.size(); ++f) {
        index_t& row = at[static_cast<std::size_t>((batch.first + e) * whole.ffn_dim + run.first + f)];
        CHECK(row == -1);
        row = (expert.data() + f * expert.row_stride() - base) / 2;
      }
    }
  }
  CHECK(batches <= 3);
  return at;
}

}  // namespace

TEST_CASE("a run of rows is up to three batches, wherever it begins and ends") {
  const std::vector<float> weights(2 * 12);
  for (index_t first = 0; first <= 12; ++first) {
    for (index_t count = 0; first + count <= 12; ++count) {
      CAPTURE(first);
      CAPTURE(count);
      const matrix_view<const float, device_space> rows(weights.data(), count, 2, 2, 1);
      const auto at = rows_by_batches(shard_of_rows(rows, first, whole), weights.data());
      for (index_t row = 0; row < 12; ++row) {
        const bool here = row >= first && row < first + count;
        CHECK(at[static_cast<std::size_t>(row)] == (here ? row - first : -1));
      }
    }
  }
}

TEST_CASE("whole experts and slices of them are one batch, nothing is none; places say which") {
  const std::vector<float> weights(2 * 12);
  const auto count = [](const auto& shard) {
    const cuda::detail::neuron_batches batches(shard);
    return batches.end() - batches.begin();
  };
  const auto place = [](const auto& held, int first, int size) {
    const auto p = cuda::detail::place_of(held);
    return p.first == first && p.count == size;
  };
  const auto experts = [&](index_t n, index_t f) {
    return experts_nfd<device_space>(weights.data(), {n, f, 2});
  };
  CHECK(count(shard_of_experts(experts(2, 3), 1, 4)) == 1);
  CHECK(place(shard_of_experts(experts(2, 3), 1, 4), 1, 2));
  CHECK(count(shard_of_experts(experts(0, 3), 4, 4)) == 0);
  CHECK(count(shard_of_neurons(experts(4, 0), 3, 3)) == 0);
  CHECK(place(shard_of_neurons(experts(4, 0), 3, 3), 0, 0));
  CHECK(count(shard_of_fused_rows<device_space>(weights.data(), 3, 3, whole)) == 0);  // up rows
  CHECK(count(shard_of_fused_rows<device_space>(weights.data(), 2, 3, whole)) == 1);
  CHECK(count(experts(4, 1)) == 1);
  CHECK(place(experts(4, 1), 0, 4));
  CHECK(place(shard_of_columns(experts_nfd<device_space>(weights.data(), {4, 3, 1}), 1, 2), 1, 1));
  CHECK(cuda::detail::total_experts(shard_of_experts(experts(2, 3), 1, 4)) == 4);
  CHECK(cuda::detail::total_experts(experts(4, 1).middle_experts(1, 2)) == 4);
}
