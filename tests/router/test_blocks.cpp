// How an expert is cut into blocks of neurons, and that their partial sums are added in order: with three
// blocks and more, for a + b = b + a but (a + b) + c is not (c + b) + a.
#include <mpi_router/router/pullback.hpp>

#include <doctest/doctest.h>
#include <support/apart.hpp>
#include <support/executors.hpp>

#include <vector>

namespace test_blocks {
using namespace mpi_router;
using namespace test_support;

namespace {

/// What block b of expert i contributes: in float, sums in another order, or of fewer blocks, end elsewhere.
float part(index_t expert, index_t block) {
  constexpr float parts[] = {3, 0x1p25F, -0x1p25F, 5, 0x1p26F, -0x1p26F, 1, 3};
  return static_cast<float>(expert + 1) * parts[block % 8];
}
float sum_in_order(index_t expert, index_t blocks) {
  float sum = part(expert, 0);
  for (index_t b = 1; b < blocks; ++b) sum += part(expert, b);
  return sum;
}

struct seen_block {
  index_t expert, first, count;
};

/// A backend that reads nothing: it says which block it was given, by the address that it begins at.
struct remembering {
  const float* base;
  expert_shape shape;
  index_t row_stride;
  std::vector<index_t> starts;  // of the blocks of an expert
  std::vector<seen_block>* seen;

  template <class T, class S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    const index_t expert = static_cast<index_t>(x[0]);
    const index_t at = a.data() - base - expert * shape.ffn_dim * shape.hidden_dim;
    const index_t first = at / row_stride;
    seen->push_back({expert, first, a.rows()});
    index_t block = 0;
    while (starts[static_cast<std::size_t>(block)] != first) ++block;
    for (index_t d = 0; d < u.size(); ++d) u[d] = part(expert, block) * static_cast<float>(d + 1);
    return part(expert, block);
  }
  template <class T, class S>
  void project(matrix_view<const T>, vector_view<const S>, vector_view<S>) const {}
  template <class T, class S>
  void lift(matrix_view<const T>, vector_view<const S>, vector_view<S>) const {}
};

std::vector<index_t> starts_of(const expert_shape& shape, index_t unit) {
  std::vector<index_t> starts;
  for (index_t b = 0; b <= detail::blocks_of(shape, unit); ++b) {
    starts.push_back(detail::block_start(shape, unit, b));
  }
  return starts;
}

/// Few experts and many, blocks that end evenly and not, by rows and by columns. Nothing of them is in
/// memory.
const std::pair<expert_shape, bool> batches[] = {{{3, (index_t{1} << 17) + 5, 6}, true},    // 3 blocks
                                                 {{2, (index_t{1} << 17) + 5, 11}, false},  // 5
                                                 {{2, 1 << 20, 4}, true},                   // 16
                                                 {{2, 1 << 20, 9}, false},                  // 16, and no more
                                                 {{64, 1 << 17, 8}, true},  // 4, one after the other
                                                 {{63, 1 << 17, 8}, false}};

template <class Check>
void for_every_batch(Check check) {
  const float nowhere = 0;
  for (const auto& [shape, by_rows] : batches) {
    const auto experts = by_rows ? experts_nfd(&nowhere, shape) : experts_ndf(&nowhere, shape);
    const index_t unit = detail::block_unit(experts.strides());
    CAPTURE(shape.num_experts);
    CAPTURE(shape.ffn_dim);
    check(experts, shape, unit, starts_of(shape, unit));
  }
}

}  // namespace

TEST_CASE("blocks are as many as the weights ask for, at most sixteen, and end at whole units") {
  const auto blocks = [](index_t f, index_t d, index_t unit) { return detail::blocks_of({1, f, d}, unit); };
  const index_t enough = index_t{1} << 18;
  CHECK(detail::block_unit({.expert = 0, .ffn = 1, .hidden = 9}) == 2048);
  CHECK(detail::block_unit({.expert = 0, .ffn = 9, .hidden = 1}) == 8);
  CHECK(blocks(1024, 511, 8) == 1);
  CHECK(blocks(1024, 512, 8) == 2);
  CHECK(blocks(1024, 767, 8) == 2);
  CHECK(blocks(1024, 768, 8) == 3);
  CHECK(blocks(8, enough, 8) == 1);
  CHECK(blocks(9, enough, 8) == 2);
  CHECK(blocks(24, enough, 8) == 3);
  CHECK(blocks(25, enough, 8) == 4);
  CHECK(blocks(enough, 15, 8) == 15);
  CHECK(blocks(enough, 17, 8) == 16);
  CHECK(blocks(2049, enough, 2048) == 2);
  CHECK(blocks(0, enough, 8) == 1);
  CHECK(detail::block_start({1, 25, enough}, 8, 1) == 8);
  CHECK(detail::block_start({1, 25, enough}, 8, 3) == 24);
  CHECK(detail::block_start({1, 25, enough}, 8, 4) == 25);
  // Scratch: a partial image and an energy for each block, of one block at a time where experts are many.
  CHECK(apply_experts_workspace({2, 1024, 511}) == 0);
  CHECK(apply_experts_workspace({2, 1024, 768}) == 2 * 3 * 769);
  CHECK(apply_experts_workspace({63, 1024, 768}) == 63 * 3 * 769);
  CHECK(apply_experts_workspace({64, 1024, 768}) == 64 * 769);
}

TEST_CASE("images and energies are the sums of their blocks, in order, whoever runs them") {
  for_every_batch([](const auto& experts, const expert_shape& shape, index_t unit, const auto& starts) {
    const auto [n, f, d] = shape;
    const auto blocks = detail::blocks_of(shape, unit);
    REQUIRE(blocks >= 3);
    std::vector<float> rows(static_cast<std::size_t>(n * d)), images(rows.size()),
        energies(static_cast<std::size_t>(n));
    for (index_t i = 0; i < n; ++i) rows[static_cast<std::size_t>(i * d)] = static_cast<float>(i);
    std::vector<float> workspace(static_cast<std::size_t>(apply_experts_workspace(shape)));
    for (const bool reversed : {false, true}) {
      std::fill(images.begin(), images.end(), 77.0F);
      std::fill(workspace.begin(), workspace.end(), 77.0F);
      std::vector<seen_block> seen;
      const remembering backend{experts.data(), shape, experts.strides().ffn, starts, &seen};
      const auto run = [&](const auto& executor) {
        apply_experts(backend, experts, row_major(rows.data(), n, d), row_major(images.data(), n, d),
                      vector_view<float>(energies), vector_view<float>(workspace), executor);
      };
      reversed ? run(any_executor(reverse_executor{})) : run(any_executor(serial_executor{}));
      CHECK(std::ssize(seen) == n * blocks);
      index_t neurons = 0;
      for (const auto& block : seen) neurons += block.count;
      CHECK(neurons == n * f);
      for (index_t i = 0; i < n; ++i) {
        CHECK(energies[static_cast<std::size_t>(i)] == sum_in_order(i, blocks));
        for (index_t k = 0; k < d; k += d - 1) {
          float want = part(i, 0) * static_cast<float>(k + 1);
          for (index_t b = 1; b < blocks; ++b) want += part(i, b) * static_cast<float>(k + 1);
          CHECK(images[static_cast<std::size_t>(i * d + k)] == want);
        }
      }
    }
  });
}

TEST_CASE("the backward's images are the sums of their blocks, in order; many experts are not cut") {
  for_every_batch([](const auto& experts, const expert_shape& shape, index_t unit, const auto& starts) {
    const auto [n, f, d] = shape;
    const index_t blocks = n >= 64 ? 1 : detail::blocks_of(shape, unit);
    std::vector<float> images(static_cast<std::size_t>(n * d)),
        workspace(static_cast<std::size_t>(apply_experts_workspace(shape)), 77);
    for (const bool reversed : {false, true}) {
      std::fill(images.begin(), images.end(), 77.0F);
      index_t calls = 0, neurons = 0;
      const auto pull = [&](index_t expert, index_t first, index_t count, const vector_view<float>& image) {
        ++calls;
        neurons += count;
        index_t block = 0;
        while (starts[static_cast<std::size_t>(block)] != first) ++block;
        if (blocks > 1) CHECK(count == starts[static_cast<std::size_t>(block + 1)] - first);
        for (index_t k = 0; k < d; ++k) image[k] = part(expert, block) * static_cast<float>(k + 1);
      };
      const any_executor executor =
          reversed ? any_executor(reverse_executor{}) : any_executor(serial_executor{});
      detail::pull_experts<float>(experts, row_major(images.data(), n, d), vector_view<float>(workspace),
                                  executor, pull);
      CHECK(calls == n * blocks);
      CHECK(neurons == n * f);
      for (index_t i = 0; i < n; ++i) {
        for (index_t k = 0; k < d; k += d - 1) {
          float want = 0;
          for (index_t b = 0; b < blocks; ++b) want += part(i, b) * static_cast<float>(k + 1);
          CHECK(images[static_cast<std::size_t>(i * d + k)] == want);
        }
      }
    }
  });
}

TEST_CASE("the batched product refuses sizes, workspaces one short, and every overlap by name") {
  constexpr expert_shape shape{2, 1 << 15, 24};  // three blocks
  const float nowhere = 0;
  const auto experts = experts_nfd(&nowhere, shape);
  const auto work = static_cast<std::size_t>(apply_experts_workspace(shape));
  REQUIRE(work == 2 * 3 * 25);
  std::vector<seen_block> seen;
  const remembering backend{&nowhere, shape, 24, starts_of(shape, 8), &seen};
  std::vector<float> rows(100), images(100), energies(9), workspace(work + 9);
  rows[0] = 0;
  rows[24] = 1;
  const auto call = [&](index_t n, index_t d, index_t to_n, index_t to_d, index_t of_energies,
                        std::size_t scratch, index_t stride = 1) {
    return message_of([&] {
      apply_experts(backend, experts, row_major(rows.data(), n, d), row_major(images.data(), to_n, to_d),
                    vector_view<float>(energies.data(), of_energies),
                    vector_view<float>(workspace.data(), static_cast<index_t>(scratch), stride));
    });
  };
  CHECK(call(2, 24, 2, 24, 2, work) == "");
  for (const auto& text :
       {call(1, 24, 2, 24, 2, work), call(2, 23, 2, 24, 2, work), call(2, 24, 3, 24, 2, work),
        call(2, 24, 2, 25, 2, work), call(2, 24, 2, 24, 1, work), call(2, 24, 2, 24, 3, work)}) {
    CHECK(contains(text, "apply_experts: the experts are [2, 32768, 24]"));
  }
  CHECK(contains(call(2, 24, 2, 24, 2, work - 1), "the workspace has 149 elements, not 150"));
  CHECK(contains(call(2, 24, 2, 24, 2, work, 2), "the workspace has 150 elements, not 150"));
  refuses_every_overlap<float>({{"the rows", 48, false},
                                {"the images", 48, true},
                                {"the energies", 2, true},
                                {"the workspace", work, true}},
                               [&](const std::vector<float*>& at) {
                                 for (float* row : {at[0], at[0] + 24}) *row = row == at[0] ? 0.0F : 1.0F;
                                 apply_experts(backend, experts, row_major(at[0], 2, 24),
                                               row_major(at[1], 2, 24), vector_view<float>(at[2], 2),
                                               vector_view<float>(at[3], static_cast<index_t>(work)));
                               });
}

}  // namespace test_blocks
