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

/// Experts that are decoded, of which only the extents are looked at.
struct some_experts {
  struct rows_type {
    index_t together_rows, together_columns;
    [[nodiscard]] index_t block_rows() const { return together_rows; }
    [[nodiscard]] index_t block_cols() const { return together_columns; }
  };
  expert_shape extents;
  rows_type together{1, 1};
  index_t k = 0;  // of a run: the first of them

  [[nodiscard]] const expert_shape& shape() const { return extents; }
  [[nodiscard]] rows_type rows() const { return together; }
  [[nodiscard]] index_t num_experts() const { return extents.num_experts; }
  [[nodiscard]] index_t ffn_dim() const { return extents.ffn_dim; }
  [[nodiscard]] index_t hidden_dim() const { return extents.hidden_dim; }
};

[[nodiscard]] bool refuses(const auto& call) {
  try {
    call();
  } catch (const usage_error&) {
    return true;
  }
  return false;
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

TEST_CASE("a run of decoded rows is cut as one of dense rows is") {
  const auto part = [](index_t k, const expert_shape& s) { return some_experts{s, {1, 1}, k}; };
  const std::vector<float> weights(2 * 12);
  for (index_t first = 0; first <= 12; ++first) {
    for (index_t count = 0; first + count <= 12; ++count) {
      CAPTURE(first);
      CAPTURE(count);
      const auto decoded = cuda::decoded_row_run(part, first, count, whole);
      const auto dense =
          shard_of_rows(matrix_view<const float, device_space>(weights.data(), count, 2, 2, 1), first, whole);
      CHECK(decoded.placement() == dense.placement());
      const cuda::detail::neuron_batches expected(dense);
      std::size_t i = 0;
      index_t rows = 0;
      for (const auto& batch : cuda::detail::neuron_batches(decoded)) {
        REQUIRE(i < expected.size());
        const auto& same = expected[static_cast<index_t>(i++)];
        CHECK(batch.first == same.first);
        CHECK(batch.slot == same.slot);
        CHECK(batch.experts.k == same.slot);
        CHECK(batch.experts.shape() == same.experts.shape());
        CHECK(batch.row == rows);
        rows += batch.experts.num_experts() * batch.experts.ffn_dim();
      }
      CHECK(i == expected.size());
      CHECK(rows == count);
    }
  }
  CHECK(refuses([&] { static_cast<void>(cuda::decoded_row_run(part, 5, 8, whole)); }));
  const auto others = [](index_t, const expert_shape&) { return some_experts{{1, 3, 2}}; };
  CHECK(refuses([&] { static_cast<void>(cuda::decoded_row_run(others, 0, 6, whole).from(0)); }));
}

TEST_CASE("a slice of columns of decoded experts has a place, and is no batch of neurons") {
  const auto slice = cuda::decoded_column_slice(some_experts{{4, 3, 1}}, 1, 2);
  const auto place = cuda::detail::place_of(slice);
  CHECK(place.first == 1);
  CHECK(place.count == 1);
  CHECK(slice.shape() == whole);
  int views = 0;
  cuda::detail::for_each_view(slice, [&](const some_experts& e) { views += e.hidden_dim() == 1 ? 1 : 9; });
  CHECK(views == 1);
  CHECK(refuses([] { static_cast<void>(cuda::decoded_column_slice(some_experts{{4, 3, 2}}, 1, 2)); }));
}

TEST_CASE("parts of packed experts begin with a block of scales, or stay within one") {
  for (const index_t together : {1, 4, 6, 100}) {
    for (index_t first = 0; first <= 12; ++first) {
      for (index_t count = 0; first + count <= 12; ++count) {
        CAPTURE(together);
        CAPTURE(first);
        CAPTURE(count);
        // The part's blocks, counted from its own first one, are those of the whole.
        bool as_whole = true;
        for (index_t i = 0; i < count; ++i) {
          as_whole = as_whole && first / together + i / together == (first + i) / together;
        }
        const some_experts::rows_type blocks{together, together};
        CHECK(refuses([&] {
                static_cast<void>(
                    cuda::decoded_neurons(some_experts{{2, count, 8}, blocks}, 0, first, {2, 12, 8}));
              }) == !as_whole);
        CHECK(refuses([&] {
                static_cast<void>(cuda::decoded_column_slice(some_experts{{2, 8, count}, blocks}, first, 12));
              }) == !as_whole);
      }
    }
  }
}
