// The plans of weights that are decoded as they are read: threads have all columns once, tiles all rows, and
// the workspace is what its parts take.
#include <doctest/doctest.h>

#include <mpi_router/cuda/detail/plan/decoded_plan.hpp>
#include <mpi_router/cuda/detail/plan/packed_run.hpp>

#include <vector>

#include "plan_support.hpp"

using namespace plan_test;

namespace {

using mpi_router::detail::kernels::packed_format;

/// [3, F, 256] of a format, each byte another but where numbers would be none.
template <class View>
struct flat_experts {
  static constexpr index_t n = 3, d = 256;
  index_t f;
  std::vector<unsigned char> codes, scales;
  View all;  // [N·F, D], but for the scales of FP8 as each row finds them

  explicit flat_experts(index_t ffn, index_t block_rows = 1) : f(ffn) {
    all.rows = n * f;
    all.cols = d;
    all.row_bytes = 300;
    codes.resize(static_cast<std::size_t>(all.rows * all.row_bytes));
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<unsigned char>(i * 7 % 97 % 61);
    if constexpr (requires { all.scales; }) {
      all.scale_row_bytes = 11;
      if constexpr (requires { all.block_rows; }) all.block_rows = block_rows;
      scales.resize(static_cast<std::size_t>(all.rows * all.scale_row_bytes));
      for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<unsigned char>(i * 5 % 89 + 20);
      all.codes = codes.data();
      all.scales = scales.data();
    } else {
      all.blocks = codes.data();
    }
  }
  /// The matrix of an expert: how a checkpoint has it.
  [[nodiscard]] View expert(index_t e) const {
    View a = all;
    a.rows = f;
    if constexpr (requires { a.scales; }) {
      index_t scale_rows = f;
      if constexpr (requires { a.block_rows; }) scale_rows = (f + a.block_rows - 1) / a.block_rows;
      a.codes = codes.data() + e * f * a.row_bytes;
      a.scales = scales.data() + e * scale_rows * a.scale_row_bytes;
    } else {
      a.blocks = codes.data() + e * f * a.row_bytes;
    }
    return a;
  }
  /// A run of rows: what its holder gives.
  [[nodiscard]] View from(index_t row, index_t count) const {
    View a = expert(row / f);
    a.rows = count;
    const index_t neuron = row % f;
    if constexpr (requires { a.scales; }) {
      index_t block = 1;
      if constexpr (requires { a.block_rows; }) block = a.block_rows;
      a.codes = static_cast<const unsigned char*>(a.codes) + neuron * a.row_bytes;
      a.scales = static_cast<const unsigned char*>(a.scales) + neuron / block * a.scale_row_bytes;
    } else {
      a.blocks = static_cast<const unsigned char*>(a.blocks) + neuron * a.row_bytes;
    }
    return a;
  }
};

/// Whether all runs that begin at multiples of a block of scales are the rows that they are of.
template <class View>
[[nodiscard]] bool runs_are_their_rows(index_t f, index_t block = 1) {
  const flat_experts<View> experts(f, block);
  const index_t rows = experts.n * f;
  for (index_t first = 0; first < rows; ++first) {
    if (first % f % block != 0) continue;
    for (index_t count = 1; first + count <= rows; ++count) {
      const packed_run<View> run{experts.from(first, count), first % f, f};
      for (index_t row = first; row < first + count; ++row) {
        const index_t k = row / f - first / f;
        const index_t skipped = k == 0 ? first % f : 0;
        const View here = run.of(k, f - skipped);
        const View is = experts.expert(row / f);
        for (const index_t column : {0, 37, 255}) {
          if (packed_format<View>::at(here, row % f - skipped, column) !=
              packed_format<View>::at(is, row % f, column)) {
            return false;
          }
        }
      }
    }
  }
  return true;
}

}  // namespace

TEST_CASE("a run of packed rows has each expert's where the whole has them") {
  for (const index_t f : {1, 5, 6}) {
    CAPTURE(f);
    for (const index_t block : {1, 2, 4, 6, 128}) {
      CAPTURE(block);
      CHECK(runs_are_their_rows<fp8_view>(f, block));
    }
    CHECK(runs_are_their_rows<mxfp4_view>(f));
    CHECK(runs_are_their_rows<mxfp4_blocks_view>(f));
    CHECK(runs_are_their_rows<q8_0_view>(f));
    CHECK(runs_are_their_rows<q4_k_view>(f));
  }
}

TEST_CASE("a block's threads have all columns, none of its warps nothing, and tiles all rows") {
  for (const cuda::context& ctx : devices()) {
    for (const index_t d : hidden_dims()) {
      for (const index_t f : {1, 9, 768}) {
        const expert_shape s{37, f, d};
        CAPTURE(name(ctx, s));
        const decoded_plan p(ctx, s, 1, 1, nullptr);
        const index_t warp = index_t{p.pieces} * decoded_columns * warp_threads;
        CHECK(p.threads % warp_threads == 0);
        CHECK(p.threads <= (p.pieces == 1 ? 4 * warp_threads : most_threads));
        CHECK(p.threads * p.pieces * decoded_columns >= d);
        CHECK((p.threads / warp_threads - 1) * warp < d);
        CHECK(p.part.tiles_per_expert * p.rows >= f);
        CHECK((p.part.tiles_per_expert - 1) * p.rows < f);
        CHECK(2 * p.rows <= sums_at_once);
        CHECK(p.sums.pitch >= d);
        CHECK(p.sums.pitch % decoded_columns == 0);
      }
    }
  }
}

TEST_CASE(
    "the workspace of decoded weights: sums and vectors, of a backward more, and the rows between steps") {
  const cuda::context ctx = device(132, 90, 227);
  const auto rounded = [](index_t bytes) { return (static_cast<std::size_t>(bytes) + 255) / 256 * 256; };
  for (const index_t d : {1, 8, 1000, 7168}) {
    const expert_shape s{5, 33, d};
    CAPTURE(d);
    const decoded_plan one(ctx, s, 1, 1, nullptr), two(ctx, s, 1, 2, nullptr), three(ctx, s, 1, 3, nullptr),
        back(ctx, s, 2, 1, nullptr);
    const index_t pitch = (d + 7) / 8 * 8;
    CHECK(one.bytes == rounded(one.part.slots() * pitch * 4) + rounded(one.part.slots() * 16) +
                           rounded(5 * pitch * 4) + rounded(index_t{5} * 4));
    CHECK(two.bytes == one.bytes + rounded(5 * d * 4) + rounded(5));
    CHECK(three.bytes == one.bytes + 2 * rounded(5 * d * 4) + rounded(5));
    CHECK(back.bytes == one.bytes + rounded(5 * pitch * 4) + rounded(index_t{5} * 4) + rounded(5 * d * 8) +
                            2 * rounded(index_t{5} * 33 * 8));
  }
  for (const expert_shape& s : {expert_shape{0, 3, 8}, {2, 0, 8}, {2, 3, 0}}) {
    CHECK(decoded_plan(ctx, s, 2, 1, nullptr).bytes == 0);
    CHECK(decoded_plan(ctx, s, 1, 1, nullptr).pieces == 0);
  }
}
