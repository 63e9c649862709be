// The launch shapes of the kernel over stored columns: for every D, storage type and device the rows of a
// panel are covered, shared memory fits, and clusters have whole experts.
#include <doctest/doctest.h>

#include <algorithm>
#include <mpi_router/cuda/detail/plan/old_copies.hpp>
#include <mpi_router/cuda/detail/plan/panel_tiles.hpp>
#include <vector>

#include "plan_support.hpp"

using namespace plan_test;

namespace {

/// The rows of a panel are shared by the lanes, passes and blocks that there are.
void check_rows(const panel_plan& p, const cuda::context& ctx, const panel_demand& demand, int hidden,
                laws& l) {
  const int least = demand.is_special() ? 4 : panel_least_lanes(p.depth);
  l.hold(is_power_of_two(p.lanes) && p.lanes <= 8 && p.lanes >= least, "1, 2, 4 or 8 lanes");
  l.hold(p.passes >= 1 && p.passes <= panel_passes(p.depth), "a thread owns up to 16 rows, or 8");
  l.hold(is_power_of_two(p.row_blocks) && p.row_blocks <= (ctx.capability >= 90 ? 8 : 1),
         "blocks of a cluster");
  const int rows = 512 / p.lanes;
  l.hold(p.row_blocks * p.passes * rows >= hidden, "the rows are covered");
  l.hold(p.row_blocks * (p.passes - 1) * rows < hidden, "and no pass is idle in all blocks");
  const int blocks = ctx.capability < 90 ? 1 : demand.factored && demand.element_bytes == 2 ? 4 : 8;
  l.hold(p.lanes == 8 || hidden > 64 * panel_passes(p.depth) / p.lanes * 8 / 2 * blocks,
         "as many lanes as may be");
  l.hold(p.pitch >= hidden && p.pitch < hidden + 4 && p.pitch % 4 == 0, "slots of whole fours");
}

void check_memory(const panel_plan& p, const cuda::context& ctx, const panel_demand& demand, laws& l) {
  const int panel = demand.probes * p.lanes * 16 / demand.element_bytes;
  const int rows = demand.in_tiles ? p.lanes * 8 + 8 : panel_passes(p.depth) * (512 / p.lanes);
  const int of_probes = demand.probes == 1 ? 0 : demand.probes * rows;
  const int exchanges = demand.in_tiles ? 1 : 2;
  const std::intptr_t ring = std::intptr_t{512} * 16 * panel_slots(p.depth);
  const panel_memory m(placed_blocks(memory), p.depth,
                       demand.needs(p.depth, p.lanes, panel / demand.probes, 0));
  l.hold(offset(m.old) == ring, "the second ring lies behind the first");
  l.hold(offset(m.leader) == ring + std::intptr_t{512} * 16 * demand.old_slots, "what follows, behind both");
  l.hold(offset(m.probes) % (demand.in_tiles ? 16 : 8) == 0 && (!demand.in_tiles || rows % 4 == 0),
         "pairs of floats at eights, fours at sixteens");
  l.hold(offset(m.row_squares) % 8 == 0 && offset(m.arrived) % 8 == 0, "doubles and barriers at eights");
  l.hold(offset(m.by_block) % 16 == 0 && offset(m.image) % 16 == 0, "fours of floats at sixteens");
  l.hold(m.by_warp + exchanges * 16 * panel == m.by_block && m.by_block + 16 * panel == m.scratch &&
             m.scratch + 512 == m.probes && m.probes + of_probes == m.image,
         "two exchanges, the scratch of 16 warps, and the rows of two probes");
  const std::intptr_t inbox = std::intptr_t{p.members} * p.row_blocks * p.passes * (512 / p.lanes) * 4;
  l.hold(static_cast<std::intptr_t>(p.shared_bytes) == offset(m.image) + inbox,
         "room for the leader's inbox");
  l.hold(p.shared_bytes <= ctx.shared_memory, "shared memory fits");
  l.hold((p.depth != panel_depth::deep && !demand.is_special()) || ctx.capability >= 90,
         "deep rings, backwards and pairs from sm_90 on");
  l.hold(panel_passes(p.depth) % panel_doubled(p.depth) == 0 && panel_passes(p.depth) % p.lanes == 0,
         "copies at equal distances, and whole rows for each lane");
}

void check_grid(const panel_plan& p, const cuda::context& ctx, const expert_shape& s, int element_bytes,
                laws& l) {
  const int panel = p.lanes * 16 / element_bytes;
  const partition& part = p.part;
  l.hold(part.experts == s.num_experts && part.tiles_per_expert == (s.ffn_dim + panel - 1) / panel,
         "the panels hold the columns");
  const int log = p.row_blocks == 1 ? 0 : p.row_blocks == 2 ? 1 : p.row_blocks == 4 ? 2 : 3;
  l.hold(part.blocks >= 1 && part.team >= 1 && part.blocks * part.team <= ctx.clusters[log],
         "all run at once");
  l.hold(part.slots() <= 0x7fffffff, "an int numbers the slots");
  l.hold(part.tiles() <= 0x7fffffff - 24, "the members of a team step past the end");
  if (p.members > 0) {
    const int cluster = p.members * p.row_blocks;
    l.hold(p.members == part.team, "the members of a cluster are a team");
    l.hold(is_power_of_two(cluster) && cluster <= 8 && (cluster == 1 || ctx.capability >= 90),
           "a cluster that there is");
    l.hold(part.blocks <= resident_clusters(ctx, cluster), "all clusters run at once");
    l.hold(part.experts % part.blocks == 0, "a cluster has whole experts");
    l.hold(p.members == 1 || part.blocks == part.experts, "several members have one expert");
    for (const int b : {0, 1, part.blocks / 2, part.blocks - 1}) {
      l.hold(b >= part.blocks || part.first_tile(b) % part.tiles_per_expert == 0,
             "and begins with an expert");
    }
  }
}

[[nodiscard]] laws check_plan(const panel_plan& p, const cuda::context& ctx, const expert_shape& s,
                              const panel_demand& demand) {
  laws l;
  check_rows(p, ctx, demand, static_cast<int>(s.hidden_dim), l);
  check_memory(p, ctx, demand, l);
  check_grid(p, ctx, s, demand.element_bytes, l);
  return l;
}

}  // namespace

TEST_CASE("the panel plans keep their laws for every D, type and device") {
  std::size_t found = 0;
  for (const panel_demand& demand :
       {panel_demand{2}, panel_demand{4}, panel_demand{4, true}, panel_demand{8, true},
        panel_vjp_demand<bf16, bf16>(vjp_mode::write, false),
        panel_vjp_demand<bf16, bf16>(vjp_mode::factored, false),
        panel_vjp_demand<f16, f16>(vjp_mode::factored, false),
        panel_vjp_demand<float, float>(vjp_mode::factored, false),
        panel_vjp_demand<bf16, float>(vjp_mode::accumulate, false),
        panel_vjp_demand<float, float>(vjp_mode::accumulate, false),
        panel_vjp_demand<bf16, bf16>(vjp_mode::write, true),
        panel_vjp_demand<float, float>(vjp_mode::factored, true)}) {
    const auto check = [&](const cuda::context& ctx, const expert_shape& s) {
      const panel_plan p = make_panel_plan(ctx, s, demand);
      if (p.lanes > 0) {
        ++found;
        const laws l = check_plan(p, ctx, s, demand);
        CHECK_MESSAGE(l.kept(), l.broken(), ": ", demand.element_bytes, " bytes, ", demand.probes,
                      " probes, ", demand.old_slots, " old slots, ", name(ctx, s));
      }
    };
    for_each_device_and_shape({{most_extent - 255, 1, 0}, {7, most_extent, 0}}, check);
    for_each_count_and_dim(check);
  }
  CHECK(found > 200000);
}

TEST_CASE("how far the panel kernel reaches") {
  for (const cuda::context& ctx : devices()) {
    for (const index_t d : hidden_dims()) {
      const expert_shape s{8, 64, d};
      CAPTURE(name(ctx, s));
      const bool small = ctx.shared_memory < 160000;  // and two lanes at least
      const bool reaches = d <= (ctx.capability >= 90 ? (small ? 16384 : 32768) : (small ? 2048 : 8192));
      CHECK((make_panel_plan(ctx, s, {2}).lanes > 0) == reaches);
      CHECK((make_panel_plan(ctx, s, {4}).lanes > 0) == reaches);
    }
  }
  const cuda::context h100 = device(132, 90, 227);
  CHECK(make_panel_plan(h100, {1, 1, most_hidden + 1}, {2}).lanes == 0);
  CHECK(make_panel_plan(h100, {1, 1, index_t{1} << 32}, {2}).lanes == 0);
  cuda::context clusterless = h100;  // made by hand, or of a device that has none to give
  clusterless.clusters[1] = clusterless.clusters[2] = clusterless.clusters[3] = 0;
  CHECK(make_panel_plan(clusterless, {8, 64, 1024}, {2}).lanes == 8);
  CHECK(make_panel_plan(clusterless, {8, 64, 1025}, {2}).lanes == 0);
}

TEST_CASE("how far the backward over panels reaches") {
  const cuda::context h100 = device(132, 90, 227);
  for (const vjp_mode mode : {vjp_mode::factored, vjp_mode::write, vjp_mode::accumulate}) {
    for (const index_t d : hidden_dims()) {
      CAPTURE(d);
      const auto reaches = [&](const panel_demand& demand) {
        return make_panel_plan(h100, {8, 64, d}, demand).lanes > 0;
      };
      for (const bool in_pairs : {false, true}) {
        CHECK(reaches(panel_vjp_demand<bf16, bf16>(mode, in_pairs)) == (d <= 16384));
        CHECK(reaches(panel_vjp_demand<bf16, float>(mode, in_pairs)) == (d <= 16384));
        CHECK(reaches(panel_vjp_demand<float, bf16>(mode, in_pairs)) == (d <= 16384));
        CHECK(make_panel_plan(device(108, 80, 163), {8, 64, d}, panel_vjp_demand<bf16, bf16>(mode, in_pairs))
                  .lanes == 0);
      }
    }
  }
}

TEST_CASE("what a gradient is added to: no more groups are under way than the kernel can name") {
  constexpr auto depth = panel_depth::even;
  for (const int vectors : {1, 2}) {  // of the old gradient for one of weights
    const old_copies order{panel_passes(depth), panel_doubled(depth), panel_old_slots / vectors};
    CHECK(order.reaches_all());
    for (int i = 0; i < order.passes; ++i) {
      CHECK(order.pending(i) >= 0);
      CHECK(order.pending(i) <= 6);  // wait_for_few_copy_groups
    }
  }
}

TEST_CASE("what a gradient is added to is waited for, and nothing that was asked for later") {
  for (const panel_depth depth :
       {panel_depth::deep, panel_depth::even, panel_depth::low, panel_depth::middle}) {
    for (int ahead = panel_doubled(depth); ahead <= panel_passes(depth); ++ahead) {
      const old_copies order{panel_passes(depth), panel_doubled(depth), ahead};
      REQUIRE(order.reaches_all());
      CHECK_FALSE(old_copies{order.passes, order.doubled, order.doubled - 1}.reaches_all());
      CAPTURE(order.passes);
      CAPTURE(order.doubled);
      CAPTURE(ahead);
      std::vector<int> group_of(static_cast<std::size_t>(order.passes), -1);  // of the ith pass
      std::vector<int> in_slot(static_cast<std::size_t>(ahead), -1);
      int closed = 0;
      const auto start = [&](int i) {
        group_of[static_cast<std::size_t>(i)] = closed;
        in_slot[static_cast<std::size_t>(i % ahead)] = i;
      };
      for (int k = 0; k < order.doubled; ++k, ++closed) {
        for (int i = 0; i < std::min(ahead, order.passes); ++i) {
          if (order.dots_group(i) == k) start(i);
        }
      }
      std::vector<bool> lifted(static_cast<std::size_t>(order.passes), false);
      for (int i = 0; i < order.passes; ++i) {
        CHECK(group_of[static_cast<std::size_t>(i)] == closed - 1 - order.pending(i));
        CHECK(order.pending(i) >= 0);
        CHECK(in_slot[static_cast<std::size_t>(i % ahead)] == i);
        lifted[static_cast<std::size_t>(order.pass(i))] = true;
        if (i + ahead < order.passes) start(i + ahead);
        if (order.pass(i) >= order.doubled) ++closed;
      }
      CHECK(std::find(lifted.begin(), lifted.end(), false) == lifted.end());
    }
  }
}

TEST_CASE("which backwards over panels tensor cores multiply") {
  for (const vjp_mode mode : {vjp_mode::factored, vjp_mode::write, vjp_mode::accumulate}) {
    CHECK(panel_vjp_demand<bf16, bf16>(mode, false).in_tiles == (mode == vjp_mode::factored));
    CHECK_FALSE(panel_vjp_demand<bf16, bf16>(mode, true).in_tiles);
    CHECK_FALSE(panel_vjp_demand<f16, f16>(mode, false).in_tiles);
    CHECK_FALSE(panel_vjp_demand<float, float>(mode, false).in_tiles);
  }
}

namespace {

/// The pieces of a panel where copies put them and where tiles look for them.
template <int lanes>
void check_tiles() {
  using tiles = panel_tiles<lanes>;
  CAPTURE(lanes);
  static_assert(tiles::tile_passes * tiles::warp_rows == 16 && 16 % tiles::tile_passes == 0);
  for (int x = 0; x < 16; ++x) {  // of a tile's rows
    for (int thread = 0; thread < 512; ++thread) {
      const int p = x / tiles::warp_rows, warp = thread / 32, which = thread % lanes;
      if (thread % 32 / lanes != x % tiles::warp_rows) continue;
      const int slot = 512 * p + tiles::slot(thread) + tiles::flip(thread, p);
      CHECK(slot * 16 == warp * 512 + tiles::offset(x, which));
      CHECK(tiles::offset(x, which) == (tiles::offset(x, which % 2) ^ which / 2 * 32));
    }
  }
  for (const int first : {0, 8}) {  // eight rows that are loaded at once
    for (int which = 0; which < lanes; ++which) {
      std::vector<int> banks(8);
      for (int x = first; x < first + 8; ++x) {
        ++banks[static_cast<std::size_t>(tiles::offset(x, which) / 16 % 8)];
      }
      CHECK(banks == std::vector<int>(8, 1));
    }
  }
}

/// Every projection of a panel is added up once, and those with z̄ are where lanes look for them.
template <int lanes>
void check_projections() {
  using tiles = panel_tiles<lanes>;
  const int columns = lanes * 8;
  std::vector<int> found(static_cast<std::size_t>(2 * columns)), placed(static_cast<std::size_t>(columns));
  for (int warp = 0; warp < tiles::across; ++warp) {  // its ith sum lies at 32 i + lane
    for (int lane = 0; lane < 32; ++lane) {
      const int thread = 32 * warp + lane, column = tiles::column(thread);
      REQUIRE(column < columns);
      ++found[static_cast<std::size_t>(tiles::probe(thread) * columns + column)];
      CHECK(column % 8 == lane / 4);                         // a row of the product
      CHECK(column / 8 == lane % 2 * tiles::across + warp);  // the ith of a half of them
      CHECK(tiles::probe(thread) == lane % 4 / 2);           // two columns of the product
    }
  }
  CHECK(found == std::vector<int>(found.size(), 1));
  for (int t = 0; t < 4; ++t) {
    for (int tile = 0; tile < tiles::across; ++tile) {
      const int first = t * columns / 4 + tile * 4;
      for (const auto& [column, i] : {std::pair{2 * t, 0}, {2 * t + 1, 1}, {2 * t + 8, 2}, {2 * t + 9, 3}}) {
        CHECK(tiles::dual_place(tile * 16 + column) == first + i);
        ++placed[static_cast<std::size_t>(first + i)];
      }
    }
  }
  CHECK(placed == std::vector<int>(placed.size(), 1));
}

}  // namespace

TEST_CASE("tiles find what was copied, in eight different banks at a time") {
  check_tiles<8>();
  check_tiles<4>();
}

TEST_CASE("the projections that tiles leave") {
  check_projections<8>();
  check_projections<4>();
}

TEST_CASE("the panel plans of 163 and 227 KiB are those that were timed") {
  // Of every device and shape; made anew where a plan is changed on purpose.
  for (const auto& [kib, expected] :
       {std::pair<std::size_t, std::uint64_t>{163, 17053585722261501008U}, {227, 14172893231301388825U}}) {
    digest all;
    for (const int element_bytes : {2, 4}) {
      for_each_device_and_shape({}, [&](const cuda::context& ctx, const expert_shape& s) {
        if (ctx.shared_memory == kib * 1024) {
          const panel_plan p = make_panel_plan(ctx, s, {element_bytes});
          all.add(p.lanes, p.row_blocks, p.members, p.passes, p.lanes > 0 ? panel_slots(p.depth) : 0, p.pitch,
                  p.shared_bytes);
          all.add_partition(p.part);
        }
      });
    }
    CHECK(all.value() == expected);
  }
}

TEST_CASE("the clusters that run at once") {
  cuda::context ctx = device(132, 90, 227);
  CHECK(resident_clusters(ctx, 1) == 132);
  CHECK(resident_clusters(ctx, 2) == 66);
  CHECK(resident_clusters(ctx, 4) == 29);
  CHECK(resident_clusters(ctx, 8) == 14);
  CHECK(resident_clusters(ctx, 16) == 0);
  ctx.capability = 80;
  CHECK(resident_clusters(ctx, 1) == 132);
  CHECK(resident_clusters(ctx, 2) == 0);
}

TEST_CASE("the plans that were measured") {
  const auto check = [](const panel_plan& p, int lanes, int row_blocks, int members, int passes,
                        panel_depth depth, int blocks, int team, std::size_t bytes) {
    CHECK(p.lanes == lanes);
    CHECK(p.row_blocks == row_blocks);
    CHECK(p.members == members);
    CHECK(p.passes == passes);
    CHECK((p.depth == depth));
    CHECK(p.part.blocks == blocks);
    CHECK(p.part.team == team);
    CHECK(p.shared_bytes == bytes);
  };
  const cuda::context h100 = device(132, 90, 227);
  const cuda::context a100 = device(108, 80, 163);
  check(make_panel_plan(h100, {64, 2048, 7168}, {2}), 8, 8, 0, 14, panel_depth::deep, 14, 1, 211616);
  check(make_panel_plan(h100, {64, 1024, 2048}, {2}), 8, 2, 1, 16, panel_depth::deep, 64, 1, 219808);
  check(make_panel_plan(h100, {64, 1024, 2048}, {4}), 8, 2, 1, 16, panel_depth::deep, 64, 1, 213664);
  check(make_panel_plan(h100, {64, 512, 1024}, {2}), 8, 1, 2, 16, panel_depth::deep, 64, 2, 219808);
  check(make_panel_plan(h100, {128, 768, 2048}, {2}), 8, 2, 1, 16, panel_depth::deep, 64, 1, 219808);
  const auto backward = [&](const expert_shape& s, vjp_mode mode, bool in_pairs) {
    return make_panel_plan(h100, s, panel_vjp_demand<bf16, bf16>(mode, in_pairs));
  };
  constexpr auto factored = vjp_mode::factored, write = vjp_mode::write, accumulate = vjp_mode::accumulate;
  check(backward({64, 1024, 2048}, factored, false), 8, 2, 1, 16, panel_depth::deep, 64, 1, 224480);
  check(backward({64, 1024, 2048}, write, false), 8, 2, 0, 16, panel_depth::deep, 64, 1, 232096);
  check(backward({64, 1024, 2048}, accumulate, false), 8, 2, 0, 16, panel_depth::even, 64, 1, 232096);
  check(backward({64, 2048, 7168}, factored, false), 4, 4, 0, 14, panel_depth::deep, 29, 1, 207840);
  check(backward({64, 2048, 7168}, write, false), 8, 8, 0, 14, panel_depth::deep, 14, 1, 232096);
  check(backward({32, 2880, 2880}, write, true), 8, 4, 0, 12, panel_depth::even, 29, 1, 219808);
  check(make_panel_plan(h100, {32, 2880, 2880}, {4, true}), 8, 4, 0, 12, panel_depth::deep, 29, 1, 205472);
  const cuda::context rtx = device(82, 80, 99);  // of sm_86
  check(make_panel_plan(rtx, {64, 1024, 2048}, {2}), 2, 1, 0, 8, panel_depth::low, 41, 2, 87712);
  check(make_panel_plan(a100, {64, 2048, 7168}, {2}), 1, 1, 0, 14, panel_depth::even, 54, 2, 151712);
  check(make_panel_plan(a100, {108, 768, 1024}, {2}), 8, 1, 1, 16, panel_depth::even, 108, 1, 166560);
  check(make_panel_plan(a100, {200, 768, 1024}, {2}), 8, 1, 0, 16, panel_depth::even, 54, 2, 162464);
}
