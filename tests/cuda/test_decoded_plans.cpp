// The plans of weights that are decoded as they are read: threads have all columns once, tiles all rows, and
// the workspace is what its parts take.
#include <doctest/doctest.h>

#include <mpi_router/cuda/detail/plan/decoded_plan.hpp>

#include "plan_support.hpp"

using namespace plan_test;

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
