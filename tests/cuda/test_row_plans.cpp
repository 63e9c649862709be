// The launch shapes of the kernels over stored rows: for every D, storage type and device the row is covered,
// shared memory fits, and no ring waits for itself.
#include <doctest/doctest.h>

#include "plan_support.hpp"

using namespace plan_test;

namespace {

/// A group's ring as the kernels drive it, with the barriers of its stages: a copy completes a phase, and a
/// wait for a phase that nobody will complete is a deadlock.
class ring_model {
 public:
  ring_model(const row_plan& plan, const tile_shape& tiles, int first_tile, int end)
      : groups_(plan.ring.groups),
        tiles_(tiles),
        end_(end),
        next_(first_tile),
        cursor_(tiles, first_tile),
        stages_(static_cast<std::size_t>(plan.ring.stages)) {}

  /// feed_ring: copies the group's next tile, if there is one, to the stage after the last.
  void feed() {
    if (next_ >= end_) {
      return;
    }
    stage& to = stages_[fed_ % stages_.size()];
    overwritten = overwritten || to.in_use;
    to = {next_, cursor_.expert(), cursor_.first(), to.phase + 1, true};
    ++fed_;
    next_ += groups_;
    cursor_.advance(tiles_, groups_);
  }
  /// ring_view::pop: waits for `tile`. A wait for a parity ends when the phase of that parity is over.
  void pop(int tile) {
    const std::size_t turn = popped_ / stages_.size();
    const stage& from = stages_[popped_ % stages_.size()];
    stuck = stuck || from.phase % 2 == static_cast<int>(turn % 2);
    const int expert = tile / tiles_.per_expert;
    mistaken = mistaken || from.tile != tile || from.expert != expert ||
               from.first != (tile - expert * tiles_.per_expert) * tiles_.rows;
    ++popped_;
  }
  /// The tile that was popped last is in registers, or done with.
  void release() { stages_[(popped_ - 1) % stages_.size()].in_use = false; }

  bool stuck = false;
  bool mistaken = false;
  bool overwritten = false;

 private:
  struct stage {
    int tile = -1;
    int expert = -1;
    int first = -1;
    int phase = 0;
    bool in_use = false;
  };
  int groups_;
  tile_shape tiles_;
  int end_;
  int next_;
  tile_cursor cursor_;
  std::vector<stage> stages_;
  std::size_t fed_ = 0;
  std::size_t popped_ = 0;
};

/// The forward has a tile in registers before it feeds; the backward reads the stage until it is done with
/// the tile, so that it feeds the stage of the tile before, and at the first tile of all none. So does a
/// forward whose threads have too many columns.
enum class reader { forward, backward };

/// One block's run through one group's ring.
void drive_group(const row_plan& p, const tile_shape& tiles, int block, int group, reader by, laws& l) {
  const int end = p.part.first_tile(block + 1);
  int tile = p.part.first_tile(block);
  const int first_of_group = tile + group;
  int mine = first_of_group;
  int done = 0;
  ring_model ring(p, tiles, mine, end);
  for (int i = 0; i < p.ring.stages; ++i) {
    ring.feed();
  }
  for (int expert = tile / tiles.per_expert; tile < end; ++expert) {
    const int stop = std::min(end, (expert + 1) * tiles.per_expert);
    for (; mine < stop; mine += p.ring.groups) {
      if (by == reader::backward && mine != first_of_group) {
        ring.release();
      }
      ring.pop(mine);
      if (by == reader::forward) {
        ring.release();
      }
      if (by == reader::forward || mine != first_of_group) {
        ring.feed();
      }
      ++done;
    }
    tile = stop;
  }
  const int run = end - p.part.first_tile(block);
  l.hold(done == (run - group + p.ring.groups - 1) / p.ring.groups || group >= run, "a group does its tiles");
  l.hold(!ring.stuck, "no ring waits for itself");
  l.hold(!ring.mistaken, "the tile that comes is the one that is wanted");
  l.hold(!ring.overwritten, "no stage is filled anew while it is read");
}

[[nodiscard]] laws drive(const row_plan& p, const expert_shape& s, reader by) {
  const tile_shape tiles{static_cast<int>(s.ffn_dim), static_cast<int>(s.hidden_dim), p.rows,
                         p.part.tiles_per_expert};
  laws l;
  for (const int block : {0, 1, p.part.blocks / 2, p.part.blocks - 1}) {
    for (int group = 0; block < p.part.blocks && group < p.ring.groups; ++group) {
      drive_group(p, tiles, block, group, by, l);
    }
  }
  return l;
}

/// A row of D elements, in the registers of a group.
void check_columns(const row_plan& p, const expert_shape& s, const row_demand& d, laws& l) {
  const int width = 16 / d.element_bytes;
  const int in_row = (static_cast<int>(s.hidden_dim) + width - 1) / width;
  l.hold(is_power_of_two(p.vectors) && p.vectors <= 8, "1, 2, 4 or 8 vectors");
  l.hold(p.vectors * width <= d.most_columns, "no more columns than a thread can own");
  l.hold(p.rows <= d.tile.rows && (p.rows == 1 || p.rows * p.vectors <= d.tile.vectors),
         "no more registers than a tile may take");
  const int whole = std::max(1, std::min(d.tile.rows, d.tile.vectors / p.vectors));
  const bool has_halves = 2 * p.vectors * width > d.most_columns || p.vectors == d.tile.halves;
  l.hold(p.rows == whole || (has_halves && 2 * p.rows == whole),
         "and no fewer, but half of them where there is code for it");
  l.hold(p.group_threads % 32 == 0 && p.group_threads >= 32, "groups of whole warps");
  l.hold(p.vectors * p.group_threads >= in_row, "the row is covered");
  l.hold((p.vectors - 1) * p.group_threads <= in_row, "only a thread's last vector can lie beyond the row");
  l.hold(p.ring.groups >= 1 && p.ring.groups * p.group_threads <= 512, "at most 512 threads");
  l.hold(p.group_threads == 32 || p.ring.groups <= 15, "named barriers 1 to 15");
  l.hold(p.pitch == in_row * width && p.pitch % 4 == 0, "slots of whole vectors");
}

/// The rings, and what comes after them: all of it inside, aligned, and large enough.
void check_memory(const row_plan& p, const row_demand& d, std::size_t shared_memory, laws& l) {
  const ring_shape& r = p.ring;
  const int element_bytes = d.element_bytes + d.extra_bytes;
  l.hold(r.stage_bytes == p.rows * p.pitch * element_bytes, "a stage holds a tile of each tensor");
  l.hold(r.stage_bytes % 16 == 0 && p.pitch * d.element_bytes % 16 == 0 && p.pitch * d.extra_bytes % 16 == 0,
         "rows at multiples of 16 bytes");
  l.hold(r.stages >= 2 && r.stages <= 8, "two to eight stages");
  const std::intptr_t rings = std::intptr_t{r.groups} * r.stages * r.stage_bytes;
  const int warps = r.groups * p.group_threads / 32;
  const row_memory m(placed_blocks(memory), r, warps);
  l.hold(offset(m.leader) == rings, "what follows the rings lies behind them");
  l.hold(offset(m.leader) % 16 == 0 && offset(m.row_squares) % 8 == 0 && offset(m.full) % 8 == 0 &&
             offset(m.feed) % 4 == 0,
         "headers, doubles and barriers where they may be");
  l.hold(offset(m.headers) % 16 == 0 && offset(m.sums) % 16 == 0, "headers and sums at sixteens");
  l.hold(m.leader + 1 <= static_cast<void*>(m.row_squares) &&
             m.row_squares + 16 <= static_cast<void*>(m.full) &&
             m.full + 8 * r.groups <= static_cast<void*>(m.feed) &&
             m.feed + r.groups <= static_cast<void*>(m.scratch) &&
             m.scratch + 32 * warps <= static_cast<void*>(m.headers) &&
             m.headers + r.groups <= static_cast<void*>(m.sums),
         "no block meets the next");
  const std::intptr_t left = static_cast<std::intptr_t>(p.shared_bytes) - offset(m.sums);
  const bool only = p.part.whole != 0;
  const int columns = p.vectors * 16 / d.element_bytes;
  const std::intptr_t sums = r.groups > 1 && !only ? std::intptr_t{r.groups} * p.group_threads * columns * 4
                             : p.cluster == 1 && !only ? std::intptr_t{p.pitch} * 4
                                                       : 0;
  const std::intptr_t inbox = p.cluster > 1 ? std::intptr_t{p.cluster - 1} * p.pitch * 4 : 0;
  l.hold(left == std::max(sums, inbox), "room for the sums of the groups, or for what the leader is sent");
  l.hold(!only || r.group_bytes() >= p.pitch * 4, "a group's sums fit where its ring was");
  l.hold(p.shared_bytes + 2048 <= shared_memory, "shared memory fits, with something to spare");
  const std::intptr_t deeper = std::intptr_t{r.groups} * r.stage_bytes;
  l.hold(r.stages == 8 || r.stages == 4 ||
             static_cast<std::intptr_t>(p.shared_bytes) + deeper + 2048 >
                 static_cast<std::intptr_t>(shared_memory),
         "rings as deep as may be");
}

void check_grid(const row_plan& p, const cuda::context& ctx, const expert_shape& s, const row_demand& d,
                laws& l) {
  l.hold(p.part.experts == s.num_experts && p.part.tiles_per_expert == (s.ffn_dim + p.rows - 1) / p.rows,
         "the tiles hold the rows");
  l.hold(p.part.blocks >= 1 && p.part.blocks <= ctx.multiprocessors && p.part.team == 1,
         "one block a multiprocessor");
  l.hold(ctx.capability >= 90 || p.ring.stages <= 4, "threads wait for at most three copies");
  if (p.cluster == 1 && p.part.whole == 0) {
    l.hold(d.in_turn, "only a forward goes on to the next expert");
    l.hold(p.part.experts % p.part.blocks == 0 && p.part.experts > p.part.blocks,
           "each block has whole experts, several");
    l.hold(p.part.blocks * 100 >= ctx.multiprocessors * 93, "few multiprocessors without work");
  } else if (p.cluster > 0) {
    l.hold(p.part.whole != 0 && p.part.blocks == p.cluster * p.part.experts,
           "a cluster has all tiles of its expert");
    l.hold(is_power_of_two(p.cluster) && p.cluster <= 8, "a cluster that there is");
    l.hold(p.cluster == 1 || ctx.capability >= 90, "clusters from sm_90 on");
    l.hold(p.part.experts <= ctx.clusters[p.cluster == 1   ? 0
                                          : p.cluster == 2 ? 1
                                          : p.cluster == 4 ? 2
                                                           : 3],
           "all clusters run at once");
    l.hold(std::int64_t{4} * 4 * (p.cluster - 1) * p.pitch <= static_cast<std::int64_t>(ctx.shared_memory),
           "the inbox leaves room for rings");
  }
}

[[nodiscard]] laws check_plan(const row_plan& p, const cuda::context& ctx, const expert_shape& s,
                              const row_demand& d) {
  laws l;
  check_columns(p, s, d, l);
  check_memory(p, d, ctx.shared_memory, l);
  check_grid(p, ctx, s, d, l);
  return l;
}

struct case_of {
  const char* what;
  row_demand demand;
  reader by;
};

/// How a kernel of this plan reads on this device.
[[nodiscard]] reader reader_of(const case_of& c, const row_plan& p, const cuda::context& ctx) {
  return c.by == reader::forward &&
                 forward_keeps_tile(p.vectors, p.rows, c.demand.element_bytes, !has_tma(ctx))
             ? reader::forward
             : reader::backward;
}

[[nodiscard]] std::vector<case_of> cases() {
  constexpr vjp_mode write = vjp_mode::write, add = vjp_mode::accumulate;
  return {{"forward, 16 bits", forward_demand(2), reader::forward},
          {"forward, f32", forward_demand(4), reader::forward},
          {"backward, 16 bits", vjp_demand<bf16, bf16>(write), reader::backward},
          {"backward, f32", vjp_demand<float, float>(vjp_mode::factored), reader::backward},
          {"backward, 16 bits added", vjp_demand<bf16, f16>(add), reader::backward},
          {"backward, 16 bits added to f32", vjp_demand<bf16, float>(add), reader::backward},
          {"backward, f32 added", vjp_demand<float, float>(add), reader::backward},
          {"backward, f32 added to 16 bits", vjp_demand<float, bf16>(add), reader::backward}};
}

}  // namespace

TEST_CASE("the row plans keep their laws for every D, type and device") {
  std::size_t found = 0;
  for (const case_of& c : cases()) {
    const auto check = [&](const cuda::context& ctx, const expert_shape& s) {
      const row_plan p = make_row_plan(ctx, s, c.demand);
      if (p.vectors > 0) {
        ++found;
        const laws l = check_plan(p, ctx, s, c.demand);
        CHECK_MESSAGE(l.kept(), l.broken(), ": ", c.what, " ", name(ctx, s));
      }
    };
    for_each_device_and_shape({{most_tiles / 3, 3, 0}, {1, most_extent, 0}}, check);
    for_each_count_and_dim(check);
  }
  CHECK(found > 600000);
}

TEST_CASE("and with shared memory that no device has so little of") {
  for (const case_of& c : cases()) {
    for (const int capability : {80, 90}) {
      for (int kib = 4; kib <= 96; kib += 4) {
        const cuda::context ctx = device(132, capability, kib);
        for (const index_t d : hidden_dims()) {
          const expert_shape s{64, 1024, d};
          const row_plan p = make_row_plan(ctx, s, c.demand);
          if (p.vectors > 0) {
            const laws l = check_plan(p, ctx, s, c.demand);
            CHECK_MESSAGE(l.kept(), l.broken(), ": ", c.what, " ", name(ctx, s));
          }
        }
      }
    }
  }
}

TEST_CASE("no ring waits for itself, and each tile comes once, where it is wanted") {
  for (const case_of& c : cases()) {
    for (const cuda::context& ctx : devices()) {
      for (const index_t d : {1, 64, 1000, 2048, 4000, 4096, 4104, 7168, 8192, 16384}) {
        for (const auto& [n, f] :
             {std::pair<index_t, index_t>{1, 1}, {1, 3000}, {7, 31}, {64, 130}, {300, 5}, {1000, 1}}) {
          const expert_shape s{n, f, d};
          const row_plan p = make_row_plan(ctx, s, c.demand);
          if (p.vectors > 0) {
            const laws l = drive(p, s, reader_of(c, p, ctx));
            CHECK_MESSAGE(l.kept(), l.broken(), ": ", c.what, " ", name(ctx, s));
          }
        }
      }
    }
  }
}

TEST_CASE("a ring of one stage would wait for itself in the backward, and one of two does not") {
  row_plan p;
  p.rows = 2;
  p.part = make_partition({4, 12, 8}, 6, 3);  // two experts in a run
  p.ring = {1, 1, 16};
  CHECK(drive(p, {4, 12, 8}, reader::backward).broken() == std::string("no ring waits for itself"));
  CHECK(drive(p, {4, 12, 8}, reader::forward).kept());
  for (p.ring.groups = 1; p.ring.groups <= 8; ++p.ring.groups) {
    for (p.ring.stages = least_stages; p.ring.stages <= most_stages; ++p.ring.stages) {
      CHECK(drive(p, {4, 12, 8}, reader::backward).kept());
    }
  }
}

TEST_CASE("a forward keeps a tile in its registers, but a whole one of more than 8192 columns") {
  const cuda::context h100 = device(132, 90, 227);
  const cuda::context a100 = device(108, 80, 163);
  const auto keeps = [](const cuda::context& ctx, index_t hidden, int element_bytes) {
    const row_plan p = make_row_plan(ctx, {64, 1024, hidden}, element_bytes);
    return forward_keeps_tile(p.vectors, p.rows, element_bytes, !has_tma(ctx));
  };
  for (const int element_bytes : {2, 4}) {
    for (const index_t d : {8, 2048, 4096, 7168, 8192, 8200, 12288, 16384}) {
      CHECK(keeps(h100, d, element_bytes) == (d <= 8192));
      CHECK(keeps(a100, d, element_bytes) == (d <= 8192 && element_bytes == 4));
    }
  }
  CHECK(keeps(device(170, 120, 99), 16384, 2));  // half a tile
  // Registers of a thread: r and u, and the tile in words of two elements of 16 bits.
  for_each_device_and_shape({}, [](const cuda::context& ctx, const expert_shape& s) {
    for (const int bytes : {2, 4}) {
      const row_plan p = make_row_plan(ctx, s, bytes);
      const bool fits = 2 * p.vectors * vector_bytes / bytes + 4 * p.vectors * p.rows <= 80;
      const bool keeps_it = forward_keeps_tile(p.vectors, p.rows, bytes, !has_tma(ctx));
      CHECK_MESSAGE((!keeps_it || fits || p.vectors == 0), "a tile in registers: ", name(ctx, s));
    }
  });
}

TEST_CASE("how far the row kernels reach") {
  for (const cuda::context& ctx : devices()) {
    const bool small = ctx.shared_memory < 160000;
    for (const index_t d : hidden_dims()) {
      const expert_shape s{8, 64, d};
      CAPTURE(name(ctx, s));
      const auto reaches = [&](const row_demand& demand) {
        return make_row_plan(ctx, s, demand).vectors > 0;
      };
      CHECK((make_row_plan(ctx, s, 2).vectors > 0) == (d <= 16384));
      CHECK((make_row_plan(ctx, s, 4).vectors > 0) == (d <= (small ? 12128 : 16384)));  // two rows of f32
      CHECK(reaches(vjp_demand<bf16, bf16>(vjp_mode::write)) == (d <= 8192));
      CHECK(reaches(vjp_demand<float, float>(vjp_mode::factored)) == (d <= 8192));
      CHECK(reaches(vjp_demand<bf16, bf16>(vjp_mode::accumulate)) == (d <= 8192));
      CHECK(reaches(vjp_demand<float, bf16>(vjp_mode::accumulate)) == (d <= 8192));
      // Here the old gradient is in the ring as well, and is not left out of it.
      CHECK(reaches(vjp_demand<bf16, float>(vjp_mode::accumulate)) == (d <= (small ? 8080 : 8192)));
      CHECK(reaches(vjp_demand<float, float>(vjp_mode::accumulate)) == (d <= (small ? 6064 : 8192)));
    }
  }
  CHECK(make_row_plan(device(132, 90, 227), {1, 1, most_hidden + 1}, 2).vectors == 0);
  CHECK(make_row_plan(device(132, 90, 227), {1, 1, index_t{1} << 32}, 2).vectors == 0);
  CHECK(make_row_plan(device(132, 90, 0), {1, 1, 8}, 2).vectors == 0);  // no shared memory
}

TEST_CASE("where there is no room for what a leader is sent, another kernel finishes") {
  const row_demand add = vjp_demand<float, float>(vjp_mode::accumulate);
  CHECK(make_row_plan(device(132, 90, 99), {64, 1024, 2048}, add).cluster == 2);
  const row_plan p = make_row_plan(device(132, 90, 99), {64, 1024, 5120}, add);
  CHECK(p.vectors == 4);
  CHECK(p.ring.stages == 2);
  CHECK(p.cluster == 0);
  CHECK(make_row_plan(device(132, 90, 163), {64, 1024, 5120}, add).cluster == 2);
}

TEST_CASE("a block of a forward finishes several experts where they can be dealt evenly, at no ring's cost") {
  const auto in_turn = [](const cuda::context& ctx, const expert_shape& s, const row_demand& demand) {
    const row_plan p = make_row_plan(ctx, s, demand);
    return p.cluster == 1 && p.part.whole == 0 ? p.part.blocks : 0;
  };
  const cuda::context h100 = device(132, 90, 227);
  const row_demand forward = forward_demand(2);
  CHECK(in_turn(h100, {256, 2048, 7168}, forward) == 128);
  CHECK(in_turn(h100, {256, 1, 7168}, forward) == 128);
  CHECK(in_turn(h100, {384, 2048, 7168}, forward) == 128);
  CHECK(in_turn(h100, {264, 512, 4096}, forward) == 132);
  CHECK(in_turn(h100, {160, 1536, 5120}, forward) == 0);  // 80 of 132
  CHECK(in_turn(h100, {128, 2048, 7168}, forward) == 0);  // one each
  CHECK(in_turn(h100, {64, 2048, 7168}, forward) == 0);   // clusters of two
  CHECK(in_turn(h100, {256, 2048, 8192}, forward) == 0);  // three stages, and no room for a row
  CHECK(in_turn(h100, {256, 2048, 7168}, vjp_demand<bf16, bf16>(vjp_mode::write)) == 0);
  row_demand without = forward;
  without.in_turn = false;
  const row_plan turns = make_row_plan(h100, {256, 2048, 7168}, forward);
  const row_plan plain = make_row_plan(h100, {256, 2048, 7168}, without);
  CHECK(turns.ring.stages == plain.ring.stages);
  CHECK(turns.ring.groups == plain.ring.groups);
}

TEST_CASE(
    "where there is no room for whole tiles, threads own more vectors of a row, or tiles have half the "
    "rows") {
  const auto check = [](const row_plan& p, int vectors, int rows, int threads) {
    CHECK(p.vectors == vectors);
    CHECK(p.rows == rows);
    CHECK(p.group_threads == threads);
    CHECK(p.ring.stages >= 2);
  };
  for (const cuda::context& ctx : {device(82, 80, 99), device(170, 120, 99)}) {
    check(make_row_plan(ctx, {64, 1024, 6064}, 2), 2, 4, 384);
    check(make_row_plan(ctx, {64, 1024, 6144}, 2), 4, 2, 192);
    check(make_row_plan(ctx, {64, 1024, 8192}, 2), 4, 2, 256);
    check(make_row_plan(ctx, {64, 1024, 12288}, 2), 4, 1, 384);
    check(make_row_plan(ctx, {64, 1024, 16384}, 2), 4, 1, 512);
    check(make_row_plan(ctx, {64, 1024, 4096}, 4), 4, 2, 256);
    check(make_row_plan(ctx, {64, 1024, 8192}, 4), 8, 1, 256);
    check(make_row_plan(ctx, {64, 1024, 8192}, vjp_demand<bf16, bf16>(vjp_mode::write)), 2, 2, 512);
    check(make_row_plan(ctx, {64, 1024, 8192}, vjp_demand<float, float>(vjp_mode::write)), 4, 1, 512);
    check(make_row_plan(ctx, {64, 1024, 4096}, vjp_demand<float, float>(vjp_mode::write)), 4, 2, 256);
  }
}

TEST_CASE("the plans of whole tiles are those that were timed") {
  // Of every device and shape where such a plan, with what finishes it, has room; made anew where a plan is
  // changed on purpose.
  for (const auto& [kib, expected] : {std::pair<std::size_t, std::uint64_t>{99, 6625958380446383757U},
                                      {163, 1893547119387309722U},
                                      {227, 1371073851331047077U}}) {
    digest all;
    for (const case_of& c : cases()) {
      for_each_device_and_shape({}, [&](const cuda::context& ctx, const expert_shape& s) {
        if (ctx.shared_memory != kib * 1024) {
          return;
        }
        const row_plan p = make_row_plan(ctx, s, c.demand);
        const int width = 16 / c.demand.element_bytes;
        const int in_row = (static_cast<int>(s.hidden_dim) + width - 1) / width;
        if (p.vectors > 0 && p.vectors == vectors_of_thread(in_row) &&
            p.rows == tile_rows(c.demand.tile, p.vectors) &&
            (finishes_in_turn(p) || p.cluster == finishing_cluster(ctx, p.part, p.pitch))) {
          all.add(p.vectors, p.rows, p.group_threads, p.ring.groups, p.ring.stages, p.ring.stage_bytes,
                  p.pitch, p.cluster, p.shared_bytes);
          all.add_partition(p.part);
        }
      });
    }
    CHECK(all.value() == expected);
  }
}

TEST_CASE("the plans that were measured") {
  const auto check = [](const row_plan& p, int vectors, int rows, int threads, int groups, int stages,
                        int cluster, std::size_t bytes) {
    CHECK(p.vectors == vectors);
    CHECK(p.rows == rows);
    CHECK(p.group_threads == threads);
    CHECK(p.ring.groups == groups);
    CHECK(p.ring.stages == stages);
    CHECK(p.cluster == cluster);
    CHECK(p.shared_bytes == bytes);
  };
  const cuda::context h100 = device(132, 90, 227);
  const cuda::context a100 = device(108, 80, 163);
  check(make_row_plan(h100, {64, 2048, 7168}, 2), 2, 4, 448, 1, 3, 2, 203248);
  check(make_row_plan(h100, {64, 2048, 7168}, 4), 4, 2, 448, 1, 3, 2, 203248);
  check(make_row_plan(h100, {64, 1024, 2048}, 2), 1, 8, 256, 2, 3, 2, 207696);
  check(make_row_plan(h100, {128, 768, 2048}, 2), 1, 8, 256, 2, 3, 1, 199504);
  check(make_row_plan(h100, {8, 14336, 4096}, 2), 2, 4, 256, 2, 3, 0, 199504);
  check(make_row_plan(a100, {64, 1024, 2048}, 2), 1, 8, 256, 2, 2, 0, 150352);
  const row_demand add = vjp_demand<bf16, float>(vjp_mode::accumulate);
  check(make_row_plan(h100, {64, 2048, 7168}, add), 2, 2, 448, 1, 2, 2, 203248);
  check(make_row_plan(h100, {64, 2048, 7168}, vjp_demand<bf16, bf16>(vjp_mode::accumulate)), 2, 2, 448, 1, 3,
        2, 203248);
  const row_demand in_floats = vjp_demand<float, float>(vjp_mode::accumulate);
  check(make_row_plan(h100, {64, 1024, 2048}, in_floats), 2, 2, 256, 2, 3, 2, 207696);
  check(make_row_plan(device(84, 86, 99), {64, 1024, 2048}, in_floats), 2, 1, 256, 2, 2, 0, 84816);
}
