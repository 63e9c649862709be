// The tiles of all experts are dealt to the blocks: each once, in order, and every segment has a slot of its
// own.
#include <doctest/doctest.h>

#include <limits>
#include <support/messages.hpp>

#include "plan_support.hpp"

using namespace plan_test;
using test_support::message_of;
using test_support::refused;

namespace {

constexpr std::int64_t int_max = std::numeric_limits<int>::max();
constexpr int past_the_end = 3 * most_cluster;  // steps of a member of a team

struct segment {
  int block;
  int expert;
  int first;
  int end;
};

/// The segments of all blocks, walked as the kernels walk them.
[[nodiscard]] std::vector<segment> segments_of(const partition& p) {
  std::vector<segment> all;
  for (int block = 0; block < p.blocks; ++block) {
    const int end = p.first_tile(block + 1);
    int tile = p.first_tile(block);
    for (int expert = tile / p.tiles_per_expert; tile < end; ++expert) {
      const int next = (expert + 1) * p.tiles_per_expert;
      const int stop = end < next ? end : next;
      all.push_back({block, expert, tile, stop});
      tile = stop;
    }
  }
  return all;
}

[[nodiscard]] laws check_partition(const partition& p) {
  laws l;
  int tile = 0;
  int slot = -1;
  std::vector<slot_range> used(static_cast<std::size_t>(p.experts), slot_range{-1, 0});
  for (const segment& s : segments_of(p)) {
    l.hold(s.first == tile && s.end > s.first, "segments cover the tiles, one after the other");
    l.hold(s.first / p.tiles_per_expert == s.expert && (s.end - 1) / p.tiles_per_expert == s.expert,
           "a segment is of one expert");
    l.hold(p.block_of(s.first) == s.block && p.block_of(s.end - 1) == s.block, "block_of finds the block");
    const int own = p.slot(s.block, s.expert);
    l.hold(own >= slot + (slot < 0 ? 1 : p.team), "slots are distinct, one for each member of a team");
    l.hold(own >= 0 && own + p.team <= p.slots(), "slots lie inside the workspace");
    slot_range& range = used[static_cast<std::size_t>(s.expert)];
    range.first = range.count == 0 ? own : range.first;
    l.hold(own == range.first + range.count, "the slots of an expert lie side by side");
    range.count += p.team;
    tile = s.end;
    slot = own;
  }
  l.hold(tile == p.tiles(), "no tile is left");
  for (int e = 0; e < p.experts; ++e) {
    const slot_range range = p.slots_of(e);
    const slot_range& walked = used[static_cast<std::size_t>(e)];
    l.hold(range.first == walked.first && range.count == walked.count,
           "slots_of are the slots that were written");
  }
  return l;
}

}  // namespace

TEST_CASE("every tile is dealt to one block, in order, and every segment has a slot of its own") {
  for (const int limit : {1, 2, 7, 20, 46, 84, 108, 132, 170, 1000}) {
    for (const index_t experts : {1, 2, 3, 7, 8, 16, 60, 64, 66, 127, 128, 132, 256, 1001}) {
      for (const index_t tiles : {1, 2, 3, 4, 5, 16, 31, 96, 256, 1023}) {
        CAPTURE(limit);
        CAPTURE(experts);
        CAPTURE(tiles);
        partition p = make_partition({experts, tiles, 1}, tiles, limit);
        CHECK(p.blocks >= 1);
        CHECK(p.blocks <= limit);
        CHECK(p.tiles() == experts * tiles);
        if (p.whole != 0) {
          CHECK(p.blocks % experts == 0);
          CHECK(segments_of(p).size() == static_cast<std::size_t>(p.blocks));
        } else {
          CHECK(p.blocks == (experts * tiles < limit ? experts * tiles : limit));
        }
        CHECK(check_partition(p).broken() == std::string());
        p.team = 3;
        CHECK(check_partition(p).broken() == std::string());
      }
    }
  }
}

TEST_CASE("blocks have rows of a single expert where that leaves few multiprocessors without work") {
  const auto whole = [](index_t experts, index_t tiles, int limit) {
    const partition p = make_partition({experts, tiles, 1}, tiles, limit);
    return p.whole != 0 ? p.blocks : 0;
  };
  CHECK(whole(64, 1000, 132) == 128);  // 96 %
  CHECK(whole(66, 1000, 132) == 132);
  CHECK(whole(31, 1000, 132) == 124);  // 93.9 %
  CHECK(whole(30, 1000, 132) == 0);    // 90.9 %: equal runs
  CHECK(whole(93, 1000, 100) == 93);   // 93 %
  CHECK(whole(92, 1000, 100) == 0);
  CHECK(whole(7, 1, 132) == 7);  // no more tiles than that
  CHECK(whole(7, 3, 132) == 14);
  CHECK(whole(133, 1000, 132) == 0);
  const auto dealt = [](index_t experts, int limit) {
    partition p = make_partition({experts, 5, 1}, 5, limit);
    const bool enough = deal_whole_experts(p, limit);
    CHECK(check_partition(p).broken() == std::string());
    if (enough) {
      CHECK(segments_of(p).size() == static_cast<std::size_t>(experts));  // none is cut
    }
    return enough ? p.blocks : 0;
  };
  CHECK(dealt(256, 132) == 128);
  CHECK(dealt(384, 132) == 128);
  CHECK(dealt(264, 132) == 132);
  CHECK(dealt(186, 100) == 93);
  CHECK(dealt(184, 100) == 0);  // 92
  CHECK(dealt(160, 132) == 0);
  CHECK(dealt(131, 132) == 131);
  CHECK(most_divisor(12, 7) == 6);
  CHECK(most_divisor(13, 12) == 1);
  CHECK(most_divisor(13, 13) == 13);
}

TEST_CASE("runs are exact near the most tiles that there can be") {
  for (const auto& [experts, tiles] : {std::pair<index_t, index_t>{1, most_tiles},
                                       {most_extent, 1},
                                       {3, most_tiles / 3},
                                       {1 << 16, most_tiles >> 16},
                                       {most_tiles / 7, 7}}) {
    for (const int limit : {1, 107, 132, 1023, most_blocks}) {
      CAPTURE(experts);
      CAPTURE(limit);
      const partition p = make_partition({experts, tiles, 1}, tiles, limit);
      laws l;
      for (int b = 0; b <= p.blocks; ++b) {
        const std::int64_t first = std::int64_t{b} * p.tiles() / p.blocks;
        l.hold(p.first_tile(b) == first, "first_tile is the exact quotient");
        if (b < p.blocks) {
          l.hold(p.block_of(p.first_tile(b)) == b, "block_of is its inverse");
        }
      }
      l.hold(p.slots() <= int_max, "an int numbers the slots");
      l.hold(std::int64_t{p.tiles()} + most_threads / warp_threads <= int_max,
             "the groups of a block step past the end");
      l.hold(std::int64_t{p.tiles()} + past_the_end <= int_max, "the members of a team step past the end");
      const slot_range last = p.slots_of(p.experts - 1);
      l.hold(std::int64_t{last.first} + last.count <= p.slots(), "the last slots lie inside");
      CHECK(l.broken() == std::string());
    }
  }
}

TEST_CASE("what the counters of the kernels do not hold is refused, and the message names the shape") {
  const auto partition_of = [](index_t experts, index_t ffn, index_t tiles, int limit) {
    return [=] { static_cast<void>(make_partition({experts, ffn, 5}, tiles, limit)); };
  };
  CHECK(message_of(partition_of(1, 9, most_tiles, 132)).empty());
  CHECK(message_of(partition_of(1, 9, most_tiles + 1, 132)) ==
        "mpi_router: cuda: experts [1, 9, 5] make 2147483393 tiles, where 2147483392 are the most");
  CHECK(refused(partition_of(1 << 30, 9, 1 << 30, 132),
                "experts [1073741824, 9, 5] make 1152921504606846976 tiles"));
  CHECK(message_of(partition_of(1, 9, 1, most_blocks)).empty());
  CHECK(refused(partition_of(1, 9, 1, most_blocks + 1), "a grid of 65536 blocks, where 1 to 65535 can be"));
  CHECK(refused(partition_of(1, 9, 1, 0), "a grid of 0 blocks"));

  // 16 columns in bf16 make two tiles of eight rows each: one expert too many for the counters.
  const cuda::context ctx = device(132, 90, 227);
  const auto rows_of = [&](index_t experts, index_t ffn) {
    return [=, &ctx] { static_cast<void>(make_row_plan(ctx, {experts, ffn, 1}, 2)); };
  };
  CHECK(message_of(rows_of(most_tiles / 2, 16)).empty());
  CHECK(refused(rows_of(most_tiles / 2 + 1, 16), "experts [1073741697, 16, 1] make 2147483394 tiles"));

  // Teams of two have two slots in every segment: 2^31 and more where N reaches 2^30.
  const auto panels_of = [](index_t experts) {
    return [=] { static_cast<void>(make_panel_plan(device(108, 80, 163), {experts, 1, 1}, {2})); };
  };
  CHECK(message_of(panels_of(most_extent - 64)).empty());
  CHECK(refused(panels_of(most_extent), "experts [1073741823, 1, 1] make 2147483754 partial sums"));
}
