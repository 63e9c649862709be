// The launch shapes of the gates: every token has a block, every expert a lane, shared memory what it needs.
#include <doctest/doctest.h>

#include <mpi_router/cuda/detail/plan/gate_plan.hpp>

#include "plan_support.hpp"

using namespace plan_test;

TEST_CASE("the gate plans keep their laws for every number of experts") {
  const cuda::context ctx = device(132, 90, 227);
  for (int n = 1; n <= most_gate_experts; n = n < 600 ? n + 1 : 2 * n) {
    for (const int k : {1, 8, 9}) {
      for (const bool grouped : {false, true}) {
        for (const bool loads : {false, true}) {
          for (const index_t tokens : {index_t{1}, index_t{777}, index_t{1} << 33}) {
            const gate_demand d{tokens, n, k, grouped ? 8 : 1, grouped ? 4 : 1, loads};
            const gate_plan p = make_gate_plan(ctx, d);
            CAPTURE(n);
            CAPTURE(k);
            laws l;
            l.hold(p.ranks() == (n <= 256 && k <= 8 && !grouped), "the ranking kernel where it reaches");
            l.hold(p.own == 0 ? n > 512 : p.lanes * p.own >= n, "a lane for each expert");
            l.hold(p.own == 0 || (p.ranks() ? p.own <= 32 : p.own <= 16), "no more than a kernel holds");
            const index_t at_once = p.threads / p.lanes;
            l.hold(p.threads % 32 == 0 && at_once >= 1, "whole warps");
            l.hold(p.blocks >= 1, "a block at least");
            l.hold(!loads || p.blocks <= 660, "few blocks add up loads");
            l.hold(loads || p.blocks == std::min<index_t>((tokens + at_once - 1) / at_once, 0x7fffffff),
                   "a block for each token");
            const int scratch = (p.ranks() || n <= 512 ? 0 : n) + (grouped ? 8 : 0);
            l.hold(p.scratch_per_warp == scratch, "scratch for keys and groups");
            const auto warps = p.ranks() ? 0 : p.threads / 32;
            l.hold(p.shared_bytes == static_cast<std::size_t>(4 * (warps * scratch + (loads ? n : 0))),
                   "shared memory for scratch and loads");
            CHECK_MESSAGE(l.kept(), l.broken());
          }
        }
      }
    }
  }
}
