// Experts as frameworks other than transformers write them: up before gate, axes of their own, one tensor
// for all.
#include "packed.hpp"
#include "searched.hpp"

#include <mpi_router/io/moe/packed_gates.hpp>

#include <algorithm>
#include <array>
#include <cmath>

namespace test_frameworks {
using namespace io_test;

namespace {

using namespace mpi_router;

/// Whether the gates of a layer are these.
bool shows(const moe_layer& layer, const layer_data& original) {
  bool same = layer.shape() == expert_shape{original.n, original.f, original.d};
  for (index_t e = 0; same && e < original.n; ++e) {
    same = visit_gate(layer.gates[static_cast<std::size_t>(e)], [&](const auto& a) {
      bool alike = true;
      for (index_t f = 0; f < original.f; ++f) {
        for (index_t d = 0; d < original.d; ++d) {
          alike = alike && widen<double>(a(f, d)) == static_cast<double>(original.gate(e, f, d));
        }
      }
      return alike;
    });
  }
  return same;
}

/// A layer of stacks beside a router [N, D].
struct stack {
  const char* name;
  std::vector<index_t> shape;
  std::vector<float> values;
};
checkpoint_builder build(const layer_data& l, const std::string& router, const std::vector<stack>& stacks) {
  checkpoint_builder builder;
  builder.add<float>(router, {l.n, l.d}, l.router);
  for (const auto& each : stacks) {
    builder.add<float>(each.name, each.shape, each.values);
  }
  return builder;
}

}  // namespace

TEST_CASE("names that put w3 before w1 have up first") {
  const auto l = random_layer(120, N, F, D);
  for (const char* name : {"h.1.experts.w3w1.weight", "h.1.experts.w3_w1_weight", "h.1.experts.w31_weight"}) {
    CAPTURE(name);
    const searched s(
        build(l, "h.1.gate.weight",
              {{name, {N, 2 * F, D}, n2fd_up_first(l)}, {"h.1.experts.w2.weight", {N, D, F}, l.gates}}));
    REQUIRE(s.found.size() == 1);
    CHECK(s.found.omissions.empty());
    CHECK(s.found[0].layout == gate_layout::n2fd_up_first);
    CHECK(shows(s.found[0], l));
  }
}

TEST_CASE("where F alone tells that there is a gate beside up, its place is a question") {
  const auto l = random_layer(121, N, F, D);
  for (const auto& [up, down] : {std::pair{"h.1.experts.fc1.weight", "h.1.experts.fc2.weight"},
                                 std::pair{"h.1.experts.c_fc.weight", "h.1.experts.c_proj.weight"},
                                 std::pair{"h.1.experts.w_in", "h.1.experts.w_out"}}) {
    CAPTURE(up);
    const auto builder =
        build(l, "h.1.gate.weight", {{up, {N, 2 * F, D}, n2fd_up_first(l)}, {down, {N, D, F}, l.gates}});
    const auto reason = reason_of(searched(builder));
    CHECK(contains(reason, "gate before up (layout n2fd-concatenated)"));
    CHECK(contains(reason, "up before gate (layout n2fd-up-first)"));
    CHECK(contains(reason, "in turn") == contains(up, "c_fc"));
    moe_search search;
    search.layout = gate_layout::n2fd_up_first;
    const searched told(builder, search);
    REQUIRE(told.found.size() == 1);
    CHECK(shows(told.found[0], l));
  }
}

TEST_CASE("gate_and_up_proj of others than Hunyuan is a question, NeMo's gate_and_up_projs is not") {
  const auto l = random_layer(122, N, F, D);
  checkpoint_builder each;
  each.add<float>("h.1.mlp.gate.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const layer_data one{1, F, D, l.router, one_expert(l, e)};
    each.add<float>("h.1.mlp.experts." + std::to_string(e) + ".gate_and_up_proj.weight", {2 * F, D},
                    n2fd_up_first(one));
  }
  CHECK(contains(reason_of(searched(each)), "up before gate"));
  const auto nemo = build(l, "h.1.mlp.gate.weight",
                          {{"h.1.mlp.experts.gate_and_up_projs", {N, D, 2 * F}, nd2f_concatenated(l)},
                           {"h.1.mlp.experts.down_projs", {N, F, D}, l.gates}});
  const searched named(nemo, {}, R"({"model_type": "qwen3_moe"})");
  REQUIRE(named.found.size() == 1);
  CHECK(shows(named.found[0], l));
  CHECK(contains(reason_of(searched(nemo)), "in turn"));  // so gpt-oss has them
}

TEST_CASE("the up projection of a layout that has it first") {
  const auto l = random_layer(123, N, F, D);
  layer_data up = l;
  for (auto& x : up.gates) {
    x += 100;
  }
  auto both = n2fd_up_first(l);
  for (index_t e = 0; e < N; ++e) {
    const auto from = one_expert(up, e);
    std::ranges::copy(from, both.begin() + e * 2 * F * D);
  }
  const searched s(build(l, "h.1.gate.weight",
                         {{"h.1.experts.w3w1.weight", {N, 2 * F, D}, both},
                          {"h.1.experts.w2.weight", {N, D, F}, l.gates}}),
                   "gate+up");
  REQUIRE(s.found.size() == 1);
  const auto& measured = s.found[0].measured;
  REQUIRE(measured.size() == 2);
  const auto first = [](const gate_block& block) {
    return visit_gate(block, [](const auto& a) { return static_cast<float>(widen<double>(a(0, 0))); });
  };
  CHECK(first(measured[0].blocks[2]) == l.gate(2, 0, 0));
  CHECK(first(measured[1].blocks[2]) == up.gate(2, 0, 0));
}

TEST_CASE("gate and up along an axis of their own, as Flax has Gemma-4's") {
  const auto l = random_layer(124, N, F, D);
  std::vector<float> turned;
  for (index_t d = 0; d < D; ++d) {
    for (index_t e = 0; e < N; ++e) {
      turned.push_back(l.router[static_cast<std::size_t>(e * D + d)]);
    }
  }
  for (const char* einsum : {"layer_1.mlp.gating_einsum", "layer_1.mlp.gating_einsum.w"}) {
    CAPTURE(einsum);
    checkpoint_builder builder;
    builder.add<float>("layer_1.mlp.router_logits.w", {D, N}, turned);
    builder.add<float>(einsum, {N, 2, F, D}, n2fd_concatenated(l));
    builder.add<float>("layer_1.mlp.linear", {N, F, D}, std::vector<float>(l.gates.size(), 1.0F));
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == gate_layout::n2fd_concatenated);
    CHECK(shows(s.found[0], l));
  }
}

TEST_CASE("a stack of more axes may be the gates: another matrix is not taken for the only one") {
  const auto l = random_layer(125, N, F, D);
  for (const char* block : {"layer_1.moe.", "layer_1.moe.experts."}) {
    CAPTURE(block);
    checkpoint_builder builder;
    builder.add<float>("layer_1.moe.router.weight", {N, D}, l.router);
    builder.add<float>(block + std::string("ein_in"), {N, 2, F, D}, n2fd_concatenated(l));
    builder.add<float>(block + std::string("ein_out"), {N, F, D}, l.gates);
    CHECK(contains(reason_of(searched(builder)), "names do not tell which is the gate"));
  }
}

TEST_CASE("down projections of F = D tell that there are gates beside up") {
  const auto l = random_layer(126, N, D, D);
  const searched s(
      build(l, "decoder.layers.1.mlp.router.weight",
            {{"decoder.layers.1.mlp.experts.linear_fc1.weight", {N, 2 * D, D}, n2fd_concatenated(l)},
             {"decoder.layers.1.mlp.experts.linear_fc2.weight", {N, D, D}, l.gates}}));
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].part == expert_part::gate);
  CHECK(shows(s.found[0], l));
  CHECK(
      contains(reason_of(searched(build(l, "h.1.mlp.router.weight",
                                        {{"h.1.mlp.experts.fc1.weight", {N, 2 * D, D}, n2fd_concatenated(l)},
                                         {"h.1.mlp.experts.fc2.weight", {N, D, D}, l.gates}}))),
               "gate before up"));
}

TEST_CASE("Megatron's weight1 and weight2 are no experts 1 and 2") {
  const auto l = random_layer(127, N, F, D);
  const auto reason = reason_of(
      searched(build(l, "decoder.layers.1.mlp.router.weight",
                     {{"decoder.layers.1.mlp.experts.weight1", {D, N * 2 * F}, nd2f_concatenated(l)},
                      {"decoder.layers.1.mlp.experts.weight2", {N * F, D}, l.gates}})));
  CHECK_FALSE(contains(reason, "one shard of several"));
  CHECK(contains(reason, "experts.weight1"));
}

TEST_CASE("dense layers beside a router are not taken for a stack of experts") {
  const auto l = random_layer(128, N, F, D);
  for (const auto& [in, out] : {std::pair{"h.1.mlp.fc1.weight", "h.1.mlp.fc2.weight"},
                                std::pair{"h.1.mlp.fc.weight", "h.1.mlp.proj.weight"}}) {
    CAPTURE(in);
    CHECK(contains(
        reason_of(searched(build(l, "h.1.mlp.router.weight",
                                 {{in, {N * 2 * F, D}, n2fd_concatenated(l)}, {out, {D, N * F}, l.gates}}))),
        "there are no experts beside it"));
  }
}

TEST_CASE("a layer that is a question is said once") {
  const auto l = random_layer(129, N, D, D);
  CHECK(contains(reason_of(searched(build(l, "h.1.mlp.gate_weight",
                                          {{"h.1.mlp.experts.wi_gate", {N, D, D}, l.gates},
                                           {"h.1.mlp.experts.wi_up", {N, D, D}, l.gates},
                                           {"h.1.mlp.experts.wo", {N, D, D}, l.gates}}))),
                 "'h.1.mlp.experts.wi_gate' of shape [4, 10, 10] may be"));
}

TEST_CASE("what makes noise for a router in training is no second router and no layer of a network") {
  const auto l = random_layer(130, N, F, D);
  for (const auto& [router, noise] :
       {std::pair{"h.1.mlp.router.topkroute_linear.weight", "h.1.mlp.router.noise_linear.weight"},
        std::pair{"h.1.mlp.w_gate", "h.1.mlp.w_noise"}}) {
    CAPTURE(router);
    auto builder = build(l, router, {{noise, {N, D}, l.router}});
    for (index_t e = 0; e < N; ++e) {
      const auto expert = "h.1.mlp.experts." + std::to_string(e);
      builder.add<float>(expert + ".fc1.weight", {F, D}, one_expert(l, e));
      builder.add<float>(expert + ".fc2.weight", {D, F}, one_expert(l, e));
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].router->name() == router);
    CHECK(shows(s.found[0], l));
  }
}

TEST_CASE("experts that have their number in expert_0, and matrices of numbers of their own") {
  const auto l = random_layer(131, N, F, D);
  checkpoint_builder builder;
  builder.add<float>("block.1.mlp.router.classifier.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "block.1.mlp.experts.expert_" + std::to_string(e);
    builder.add<float>(expert + ".wi_0.weight", {F, D}, one_expert(l, e));
    builder.add<float>(expert + ".wi_1.weight", {F, D}, one_expert(l, 0));
    builder.add<float>(expert + ".wo.weight", {D, F}, one_expert(l, 0));
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].gate_name == "block.1.mlp.experts.expert_{expert}.wi_0.weight");
  CHECK(shows(s.found[0], l));
}

TEST_CASE("further routers of the same experts are said, with the way to look at them") {
  const auto l = random_layer(132, N, F, D);
  for (const auto& [own, other] : {std::pair{"h.1.mlp.gate.weight", "h.1.mlp.image_gate.weight"},
                                   std::pair{"h.1.mlp.router.weight", "h.1.mlp.vision_router.weight"}}) {
    CAPTURE(other);
    auto builder = build(l, own,
                         {{other, {N, D}, l.router},
                          {"h.1.mlp.value_gate.weight", {N, D + 1}, std::vector<float>(N * (D + 1), 1.0F)}});
    for (index_t e = 0; e < N; ++e) {
      builder.add<float>("h.1.mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                         one_expert(l, e));
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    REQUIRE(s.found.omissions.size() == 1);
    const auto& second = s.found.omissions[0];
    CHECK(second.name == other);
    CHECK(contains(second.reason, "second router"));
    CHECK(second.rows == N);
    REQUIRE(second.hints.size() == 1);
    moe_search search;
    search.patterns = second.hints[0].patterns;
    search.layout = second.hints[0].layout;
    const searched told(builder, search);
    REQUIRE(told.found.size() == 1);
    CHECK(told.found[0].router->name() == other);
  }
}

TEST_CASE("adapters are no experts") {
  const auto l = random_layer(133, N, F, D);
  auto builder = build(l, "h.1.mlp.adapter_router.weight", {});
  for (index_t e = 0; e < N; ++e) {
    const auto adapter = "h.1.mlp.adapters." + std::to_string(e);
    builder.add<float>(adapter + ".adapter_down.weight", {F, D}, one_expert(l, e));
    builder.add<float>(adapter + ".adapter_up.weight", {D, F}, one_expert(l, e));
  }
  const searched s(builder);
  CHECK(s.found.empty());
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(contains(s.found.omissions[0].reason, "an adapter"));
}

TEST_CASE("GroupedLinear alone: weight0 and so on are experts, where weight1 and weight2 alone are none") {
  const auto l = random_layer(134, N, F, D);
  auto builder = build(l, "h.1.mlp.gate.weight", {});
  for (index_t e = 0; e < N; ++e) {
    builder.add<float>("h.1.mlp.experts.weight" + std::to_string(e), {F, D}, one_expert(l, e));
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found.omissions.empty());
  CHECK(s.found[0].gate_name == "h.1.mlp.experts.weight{expert}");
  CHECK(shows(s.found[0], l));
}

TEST_CASE("what weighs a whole layer is no router: fairseq's gate of one row, a dense layer's own gate") {
  const auto l = random_layer(135, N, F, D);
  const std::string block = "decoder.layers.1.moe_layer.";
  const std::vector<float> row(D, 1.0F);
  auto builder = build(l, block + "moe_layer.gate.wg.weight", {});
  builder.add<float>(block + "gate.wg.weight", {1, D}, row);
  builder.add<float>(block + "moe_layer.mlp_gate.weight", {N, D}, l.router);
  builder.add<float>(block + "moe_layer.mlp_up.weight", {N, D}, l.router);
  builder.add<float>(block + "moe_layer.mlp_down.weight", {D, N}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = block + "moe_layer.experts." + std::to_string(e);
    builder.add<float>(expert + ".fc1.weight", {F, D}, one_expert(l, e));
    builder.add<float>(expert + ".fc2.weight", {D, F}, one_expert(l, 0));
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found.omissions.empty());
  CHECK(s.found[0].part == expert_part::up);
  CHECK(shows(s.found[0], l));
}

TEST_CASE("MegaBlocks without its sparse products, and SGLang for Triton's: the axes are turned") {
  const auto l = random_layer(136, N, F, D);
  const searched mlp(
      build(l, "h.1.ffn.router.layer.weight",
            {{"h.1.ffn.experts.mlp.w1", {N, D, F}, ndf(l)}, {"h.1.ffn.experts.mlp.w2", {N, F, D}, l.gates}}));
  REQUIRE(mlp.found.size() == 1);
  CHECK(mlp.found[0].layout == gate_layout::ndf);
  CHECK(shows(mlp.found[0], l));
  for (const auto& [config, in_turn] : {std::pair{R"({"model_type": "qwen3_moe"})", false},
                                        std::pair{R"({"model_type": "gpt_oss"})", true}}) {
    CAPTURE(config);
    const searched s(build(l, "h.1.mlp.gate.weight",
                           {{"h.1.mlp.experts.w13_weight",
                             {N, D, 2 * F},
                             in_turn ? nd2f_interleaved(l) : nd2f_concatenated(l)},
                            {"h.1.mlp.experts.w2_weight", {N, F, D}, l.gates}}),
                     {}, config);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found.omissions.empty());
    CHECK(shows(s.found[0], l));
  }
}

TEST_CASE("up before gate in FP8: decoded, and row by row as it stays packed") {
  auto l = random_layer(137, N, F, D);
  const auto coarse = [](float x) { return std::clamp(std::round(x * 4) / 4, -3.75F, 3.75F); };
  std::ranges::transform(l.gates, l.gates.begin(), coarse);  // numbers that FP8 has
  for (const bool turned : {false, true}) {
    CAPTURE(turned);
    std::vector<std::byte> codes;
    for (const float x : turned ? nd2f_up_first(l) : n2fd_up_first(l)) {
      unsigned code = 0;
      while (packed_test::e4m3_value(code) != static_cast<double>(coarse(x))) {
        ++code;
      }
      codes.push_back(static_cast<std::byte>(code));
    }
    auto builder = build(l, "h.1.mlp.gate.weight", {});
    builder.add_bytes("h.1.mlp.experts.w3w1.weight", dtype::f8_e4m3,
                      turned ? std::vector{N, D, 2 * F} : std::vector{N, 2 * F, D}, codes);
    builder.add<float>("h.1.mlp.experts.w3w1.weight_scale", {}, {1.0F});
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == (turned ? gate_layout::nd2f_up_first : gate_layout::n2fd_up_first));
    CHECK(shows(s.found[0], l));
    for (index_t e = 0; e < N; ++e) {
      const auto packed = packed_gate_of(s.found[0].gates[static_cast<std::size_t>(e)]);
      REQUIRE(packed.has_value() == !turned);
      for (index_t f = 0; packed && f < F; ++f) {
        std::array<double, D> row{};
        packed->load_row(f, row.data());
        for (index_t d = 0; d < D; ++d) {
          CHECK(row[static_cast<std::size_t>(d)] == static_cast<double>(l.gate(e, f, d)));
        }
      }
    }
  }
}

}  // namespace test_frameworks
