// Layers that hold several groups of experts, each with a router of its own, and the names that would settle
// a doubt.
#include "searched.hpp"

#include <mpi_router/io/moe_layers.hpp>

namespace test_groups {
using namespace io_test;

namespace {

using namespace mpi_router;

std::vector<float> turned(const std::vector<float>& m, index_t rows) {
  std::vector<float> out;
  for (index_t d = 0; d < D; ++d) {
    for (index_t n = 0; n < rows; ++n) {
      out.push_back(m[static_cast<std::size_t>(n * D + d)]);
    }
  }
  return out;
}

const std::string block = "model.layers.3.mlp.";

/// Groups of experts that are numbered through, with routers "gate.weight", "gate.weight_1", ….
checkpoint_builder groups_of(const std::vector<layer_data>& groups, bool turn, index_t first_number = 0) {
  checkpoint_builder builder;
  index_t number = first_number;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const auto& group = groups[g];
    builder.add<float>(block + "gate.weight" + (g == 0 ? "" : "_" + std::to_string(g)),
                       turn ? std::vector{D, group.n} : std::vector{group.n, D},
                       turn ? turned(group.router, group.n) : group.router);
    for (index_t e = 0; e < group.n; ++e, ++number) {
      const auto expert = block + "experts." + std::to_string(number);
      builder.add<bf16>(expert + ".gate_proj.weight", {group.f, D}, one_expert(group, e));
      builder.add<bf16>(expert + ".up_proj.weight", {group.f, D}, one_expert(group, group.n - 1 - e));
    }
  }
  builder.add<float>(block + "moe_statics.e_score_correction_bias",
                     {static_cast<index_t>(groups.size()), groups[0].n},
                     std::vector<float>(groups.size() * static_cast<std::size_t>(groups[0].n)));
  return builder;
}

/// The layer is this group, expert for expert and row for row.
void check_is(const moe_layer& layer, const layer_data& group, index_t first_expert) {
  CHECK(layer.shape() == expert_shape{group.n, group.f, D});
  CHECK(layer.first_expert == first_expert);
  CHECK(layer.router_rows == group.n);
  for (index_t e = 0; e < group.n; ++e) {
    visit_gate(layer.gates[static_cast<std::size_t>(e)], [&](const auto& a) {
      CHECK(widen<double>(a(group.f - 1, 2)) == static_cast<double>(group.gate(e, group.f - 1, 2)));
    });
    visit_router_row(layer, e, [&](const auto& row) {
      CHECK(widen<double>(row[D - 1]) ==
            static_cast<double>(group.router[static_cast<std::size_t>(e * D + D - 1)]));
    });
  }
}

}  // namespace

TEST_CASE("two groups of experts are two layers, whichever way their routers lie") {
  const std::vector groups{random_layer(1, 4, 6, D), random_layer(2, 3, 5, D)};
  for (const bool turn : {false, true}) {
    CAPTURE(turn);
    const searched s(groups_of(groups, turn));
    REQUIRE(s.found.size() == 2);
    CHECK(s.found.omissions.empty());
    CHECK(s.found[0].name == block + "gate.weight");
    CHECK(s.found[1].name == block + "gate.weight_1");
    check_is(s.found[0], groups[0], 0);
    check_is(s.found[1], groups[1], 4);
  }
}

TEST_CASE("the experts that config.json counts are those of all groups") {
  const std::vector groups{random_layer(1, 4, 6, D), random_layer(2, 3, 5, D)};
  const searched s(groups_of(groups, false), moe_search{}, R"({"num_experts": 7, "hidden_size": 10})");
  CHECK(s.found.size() == 2);
  CHECK(s.found.omissions.empty());
}

TEST_CASE("the other parts of a second group are its own") {
  const std::vector groups{random_layer(1, 4, 6, D), random_layer(2, 3, 5, D)};
  moe_search wanted;
  wanted.of = part_weights{0, 1, 0};
  const searched s(groups_of(groups, true), wanted);
  REQUIRE(s.found.size() == 2);
  for (const std::size_t g : {0U, 1U}) {
    for (index_t e = 0; e < groups[g].n; ++e) {
      visit_gate(s.found[g].measured[0].blocks[static_cast<std::size_t>(e)], [&](const auto& a) {
        CHECK(widen<double>(a(1, 1)) == static_cast<double>(groups[g].gate(groups[g].n - 1 - e, 1, 1)));
      });
    }
  }
}

TEST_CASE("groups of one shape are not told apart, but by an architecture that is known to number through") {
  const std::vector alike{random_layer(1, 4, 6, D), random_layer(2, 4, 6, D), random_layer(3, 4, 6, D)};
  const searched doubtful(groups_of(alike, true));
  CHECK(doubtful.found.empty());
  index_t rows = 0;
  index_t layers = 0;
  for (const auto& omission : doubtful.found.omissions) {
    CHECK(omission.kind == omission_kind::unseen);
    CHECK(contains(omission.reason, "their shapes do not show which belong to which"));
    CHECK(contains(omission.reason, "'model.layers.3.mlp.gate.weight_1' [10, 4]"));
    rows += omission.rows;
    layers += omission.layers;
  }
  CHECK(layers == 3);
  CHECK(rows == 12);
  const searched told(groups_of(alike, true), moe_search{},
                      R"({"model_type": "ernie4_5_moe_vl", "moe_num_experts": [4, 4]})");
  REQUIRE(told.found.size() == 3);
  check_is(told.found[2], alike[2], 8);
}

TEST_CASE("square experts of two groups, of which no shape says anything") {
  const std::vector square{random_layer(1, 4, D, D), random_layer(2, 4, D, D)};
  for (const char* type : {"ernie4_5_moe_vl", "ernie4_5_vl_moe"}) {
    const searched s(groups_of(square, true), moe_search{},
                     json{{"model_type", type}, {"moe_num_experts", {4, 4}}}.dump());
    REQUIRE(s.found.size() == 2);
    check_is(s.found[0], square[0], 0);
    check_is(s.found[1], square[1], 4);
    CHECK(s.found[0].layout_known_by == "torch's Linear");
  }
  CHECK(searched(groups_of(square, true)).found.empty());
}

TEST_CASE("groups that do not add up are named") {
  const std::vector groups{random_layer(1, 4, 6, D), random_layer(2, 3, 5, D)};
  const auto reason = [](const checkpoint_builder& builder) {
    const searched s(builder);
    CHECK(s.found.empty());
    REQUIRE_FALSE(s.found.omissions.empty());
    return s.found.omissions[0].reason;
  };
  auto more = groups_of(groups, false);
  more.add<bf16>(block + "experts.7.gate_proj.weight", {5, D}, one_expert(groups[1], 0));
  CHECK(contains(reason(more), "there are more or fewer of them than rows"));
  CHECK(contains(reason(groups_of(groups, false, 1)), "they are not numbered from 0 on"));
  // The shapes change one expert before the rows of the first router end; or there, and where they end too.
  for (const index_t fourth : {5, 7}) {
    checkpoint_builder wrong;
    wrong.add<float>(block + "gate.weight", {4, D}, groups[0].router);
    wrong.add<float>(block + "gate.weight_1", {3, D}, groups[1].router);
    for (index_t e = 0; e < 7; ++e) {
      const index_t f = e < 3 ? 6 : e == 3 ? fourth : 5;
      wrong.add<bf16>(block + "experts." + std::to_string(e) + ".gate_proj.weight", {f, D},
                      std::vector<float>(static_cast<std::size_t>(f * D)));
    }
    CHECK(contains(reason(wrong), "their shapes do not show which belong to which"));
  }
}

TEST_CASE("a second router that stands for no group is named") {
  const auto group = random_layer(1, 4, 6, D);
  auto builder = groups_of({group}, false);
  builder.add<float>(block + "gate.weight_2", {3, D}, std::vector<float>(30));
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].name == "model.layers.3.mlp");
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(contains(s.found.omissions[0].reason, "looks like a second router of a layer"));
  CHECK(s.found.omissions[0].rows == 3);
}

TEST_CASE("a doubt comes with the names and layouts that settle it") {
  const auto square = random_layer(5, 4, D, D);
  for (const std::string router : {"gate.weight", "choose.weight"}) {
    CAPTURE(router);
    checkpoint_builder builder;
    builder.add<float>("model.layers.3.mlp." + router, {4, D}, square.router);
    builder.add<bf16>("model.layers.3.mlp.of_mine.gate", {4, D, D}, square.gates);
    const searched s(builder);
    CHECK(s.found.empty());
    REQUIRE(s.found.omissions.size() == 1);
    REQUIRE(s.found.omissions[0].hints.size() == 2);
    for (const auto& hint : s.found.omissions[0].hints) {
      CHECK(hint.patterns.router == "model.layers.{layer}.mlp." + router);
      CHECK(hint.patterns.gate == "model.layers.{layer}.mlp.of_mine.gate");
      moe_search told;
      told.patterns = hint.patterns;
      told.layout = hint.layout;
      told.layout_of_router = hint.layout_of_router;
      const auto again = find_moe_layers(s.model, told);
      REQUIRE(again.size() == 1);
      CHECK(again[0].layout == hint.layout);
    }
  }
}

TEST_CASE("names that do not tell which is the gate: each that may be it") {
  const auto l = random_layer(6, 4, 6, D);
  checkpoint_builder builder;
  builder.add<float>("h.2.moe.gate.weight", {4, D}, l.router);
  for (const char* name : {"a", "b"}) {
    for (index_t e = 0; e < 4; ++e) {
      builder.add<bf16>("h.2.moe.experts." + std::to_string(e) + "." + name, {6, D}, one_expert(l, e));
    }
  }
  const searched s(builder);
  CHECK(s.found.empty());
  REQUIRE(s.found.omissions.size() == 1);
  const auto& hints = s.found.omissions[0].hints;
  REQUIRE(hints.size() == 2);
  CHECK(hints[0].patterns.router == "h.{layer}.moe.gate.weight");
  CHECK(hints[0].patterns.gate == "h.{layer}.moe.experts.{expert}.a");
  CHECK(hints[1].patterns.gate == "h.{layer}.moe.experts.{expert}.b");
  CHECK(hints[0].layout == gate_layout::nfd);
}

TEST_CASE("names without a number are their own patterns; a number that both share is {layer}") {
  using detail::moe::patterns_of;
  CHECK(patterns_of("gate.weight", "experts.{expert}.w1").router == "gate.weight");
  const auto deep = patterns_of("a.007.b.7.gate", "a.007.b.7.e.{expert}.w");
  CHECK(deep.router == "a.{layer}.b.7.gate");
  CHECK(deep.gate == "a.{layer}.b.7.e.{expert}.w");
  CHECK(patterns_of("a.1.gate", "a.2.experts").router == "a.1.gate");  // not of one layer by their numbers
}

}  // namespace test_groups
