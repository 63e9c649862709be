// Names and shapes that look like those of known models and belong to others.
#include "searched.hpp"

namespace test_lookalikes {
using namespace io_test;

namespace {

using namespace mpi_router;

/// A router, [N, D], and experts' matrices, [F, D], the last of them [D, F], with their numbers for "{}".
std::vector<random_tensor> layer_of(const std::string& router, const std::vector<std::string>& matrices) {
  std::vector<random_tensor> out{{router, {N, D}}};
  for (const auto& name : matrices) {
    out.push_back({name, &name == &matrices.back() ? std::vector{D, F} : std::vector{F, D}});
  }
  return out;
}
std::vector<random_tensor> and_one(std::vector<random_tensor> all, random_tensor one) {
  all.push_back(std::move(one));
  return all;
}

std::vector<std::string> usual(const std::string& block) {
  return {block + "experts.{}.gate_proj.weight", block + "experts.{}.up_proj.weight",
          block + "experts.{}.down_proj.weight"};
}

/// The gate's name of the one layer, without a word about anything else.
std::string gate_of(const searched& s) { return only_layer(s).gate_name; }

}  // namespace

TEST_CASE("a model or a part of one that is named for noise has routers all the same") {
  for (const char* part : {"noise_refiner.layers.1.ff.", "denoiser.blocks.1.moe."}) {
    CAPTURE(part);
    const std::string block = part;
    CHECK(gate_of(searched(build(layer_of(block + "switch.weight", usual(block))))) ==
          block + "experts.{expert}.gate_proj.weight");
    CHECK(gate_of(searched(build(layer_of(
              block + "switch.weight",
              {block + "nets.{}.w1.weight", block + "nets.{}.w3.weight", block + "nets.{}.w2.weight"})))) ==
          block + "nets.{expert}.w1.weight");
    auto network = layer_of(block + "router.2.weight", usual(block));
    network.push_back({block + "router.0.weight", {D, D}});
    CHECK(contains(reason_of(searched(build(network))), "a network of 2 matrices"));
    const searched second(
        build(and_one(layer_of(block + "gate.weight", usual(block)), {block + "image_gate.weight", {N, D}})));
    REQUIRE(second.found.omissions.size() == 1);
    CHECK(contains(second.found.omissions[0].reason, "second router"));
  }
}

TEST_CASE("a part of a model that is called an adapter has layers of its own") {
  const std::string block = "adapter.layers.1.mlp.";
  CHECK(contains(gate_of(searched(build(layer_of(block + "gate.weight", usual(block))))), "gate_proj"));
}

TEST_CASE("TransformerEngine's grouped linear layers: a weight with a number for each expert") {
  const auto gated =
      build(layer_of("h.1.mlp.gate.weight", {"h.1.mlp.experts_gate.weight{}", "h.1.mlp.experts_up.weight{}",
                                             "h.1.mlp.experts_down.weight{}"}));
  CHECK(gate_of(searched(gated)) == "h.1.mlp.experts_gate.weight{expert}");
  const auto named =
      build(layer_of("h.1.mlp.gate.weight", {"h.1.mlp.w1_experts.weight{}", "h.1.mlp.w3_experts.weight{}",
                                             "h.1.mlp.w2_experts.weight{}"}));
  CHECK(gate_of(searched(named)) == "h.1.mlp.w1_experts.weight{expert}");
  const searched ungated(build(
      layer_of("h.1.mlp.gate.weight", {"h.1.mlp.experts_fc1.weight{}", "h.1.mlp.experts_fc2.weight{}"})));
  CHECK(gate_of(ungated) == "h.1.mlp.experts_fc1.weight{expert}");
  REQUIRE(ungated.found.size() == 1);
  CHECK(ungated.found[0].part == expert_part::up);
}

TEST_CASE("gate and up along an axis of their own, of F = D, may each be [F, D] or [D, F]") {
  const auto builder = build({{"layer_1.mlp.router_logits.w", {D, N}},
                              {"layer_1.mlp.gating_einsum", {N, 2, D, D}},
                              {"layer_1.mlp.linear", {N, D, D}}});
  CHECK(contains(reason_of(searched(builder)), "[N, 2, D, F]"));
  moe_search search;
  search.layout = gate_layout::n2fd_concatenated;
  CHECK(searched(builder, search).found.size() == 1);
}

TEST_CASE("fc1 that holds gate and up has the gate first in Moondream alone") {
  const auto builder = build({{"h.1.mlp.router.weight", {N, D}},
                              {"h.1.mlp.fc1.weight", {N, 2 * F, D}},
                              {"h.1.mlp.fc2.weight", {N, D, F}}});
  for (const char* config : {"", R"({"model_type": "other"})"}) {
    CAPTURE(config);
    CHECK(contains(reason_of(searched(builder, {}, config)), "up before gate (layout n2fd-up-first)"));
  }
  const searched ungated(build({{"h.1.mlp.router.weight", {N, D}},
                                {"h.1.mlp.fc1.weight", {N, F, D}},
                                {"h.1.mlp.fc2.weight", {N, D, F}}}));
  CHECK(gate_of(ungated) == "h.1.mlp.fc1.weight");
  REQUIRE(ungated.found.size() == 1);
  CHECK(ungated.found[0].part == expert_part::up);
  const searched named(builder, {}, R"({"model_type": "moondream3"})");
  REQUIRE(named.found.size() == 1);
  CHECK(named.found[0].layout == gate_layout::n2fd_concatenated);
}

TEST_CASE("linear_fc1 of experts without gates, of an odd F, or turned") {
  const std::string fc1 = "h.1.mlp.experts.linear_fc1.weight";
  const std::string fc2 = "h.1.mlp.experts.linear_fc2.weight";
  for (const auto& [in, out, layout] :
       {std::tuple{std::vector<index_t>{N, 7, D}, std::vector<index_t>{N, D, 7}, gate_layout::nfd},
        std::tuple{std::vector<index_t>{N, D, F}, std::vector<index_t>{N, F, D}, gate_layout::ndf}}) {
    const searched s(build({{"h.1.mlp.router.weight", {N, D}}, {fc1, in}, {fc2, out}}));
    CHECK(gate_of(s) == fc1);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].part == expert_part::up);
    CHECK(s.found[0].layout == layout);
  }
  const searched turned(build({{"h.1.mlp.router.weight", {N, D}}, {fc1, {N, D, 2 * F}}, {fc2, {N, F, D}}}));
  CHECK(gate_of(turned) == fc1);
  REQUIRE(turned.found.size() == 1);
  CHECK(turned.found[0].layout == gate_layout::nd2f_concatenated);
}

TEST_CASE("NeMo's gate_and_up_projs of experts without gates are up projections") {
  const searched s(build({{"h.1.mlp.gate.weight", {N, D}},
                          {"h.1.mlp.experts.gate_and_up_projs", {N, D, F}},
                          {"h.1.mlp.experts.down_projs", {N, F, D}}}),
                   {}, R"({"model_type": "nemotron_h"})");
  CHECK(gate_of(s) == "h.1.mlp.experts.gate_and_up_projs");
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].part == expert_part::up);
}

TEST_CASE("a second router is said once, and what else is called a gate is none") {
  const std::string block = "h.1.mlp.";
  const auto with = [&](const std::string& name) {
    return searched(build(and_one(layer_of(block + "gate.weight", usual(block)), {block + name, {N, D}})));
  };
  const auto twice = with("moe_gate.weight");
  REQUIRE(twice.found.omissions.size() == 1);
  CHECK(twice.found.omissions[0].hints.size() == 1);
  for (const char* other : {"attn_gate.weight", "lora_gate.weight", "exp_avg_gate.weight"}) {
    CAPTURE(other);
    const auto s = with(other);
    CHECK(std::ranges::none_of(s.found.omissions,
                               [](const auto& each) { return each.kind == omission_kind::unseen; }));
  }
}

TEST_CASE("moe_w_in is a gate where it has Llama-4's name alone") {
  const searched ungated(build({{"h.1.ff.router.weight", {N, D}},
                                {"h.1.ff.experts.moe_w_in", {N, D, F}},
                                {"h.1.ff.experts.moe_w_out", {N, F, D}}}));
  CHECK(gate_of(ungated) == "h.1.ff.experts.moe_w_in");
  REQUIRE(ungated.found.size() == 1);
  CHECK(ungated.found[0].part == expert_part::up);
  CHECK(contains(reason_of(searched(build({{"h.1.ff.router.weight", {N, D}},
                                           {"h.1.ff.experts.moe_w_in", {N, D, 2 * F}},
                                           {"h.1.ff.experts.moe_w_out", {N, F, D}}}))),
                 "up before gate (layout nd2f-up-first)"));
  const std::string experts = "layers.1.feed_forward.experts.";
  const searched llama(build({{"layers.1.feed_forward.router_DE", {D, N}},
                              {experts + "moe_w_in_eD_F", {N, D, F}},
                              {experts + "moe_w_swiglu_eD_F", {N, D, F}},
                              {experts + "moe_w_out_eF_D", {N, F, D}}}),
                       "gate+up+down");
  REQUIRE(llama.found.size() == 1);
  CHECK(llama.found[0].measured[1].name == experts + "moe_w_swiglu_eD_F");
  CHECK(llama.found[0].measured[2].name == experts + "moe_w_out_eF_D");
}

TEST_CASE("a layer under Llama-4's own names that is a question is said once") {
  const std::string block = "layers.1.feed_forward.";
  CHECK(contains(reason_of(searched(build({{block + "router_DE", {D, N}},
                                           {block + "experts.moe_w_in_eD_F", {N, D, D}},
                                           {block + "experts.moe_w_swiglu_eD_F", {N, D, D}},
                                           {block + "experts.moe_w_out_eF_D", {N, D, D}}}))),
                 "[N, D, F] (layout ndf)"));
}

TEST_CASE("NVFP4 that was turned after it was packed tells which axis is D") {
  constexpr index_t width = 32;
  for (const char* router : {"h.1.feed_forward.router.weight", "h.1.mlp.gate.weight"}) {
    CAPTURE(router);
    const std::string name = router;
    const auto stack =
        name.substr(0, name.find(name.ends_with("gate.weight") ? "gate" : "router")) + "experts.gate_up_proj";
    auto builder = build({{name, {N, width}}, {stack + "_weight_scale_2", {1}}});
    builder.add_raw(stack, dtype::u8, {N, width / 2, width});
    builder.add_raw(stack + "_weight_scale", dtype::f8_e4m3, {N, width / 16, width});
    const searched s(builder, {}, R"({"model_type": "qwen3_moe"})");
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == gate_layout::nd2f_concatenated);
    CHECK(s.found[0].layout_known_by == "its packing");
  }
}

TEST_CASE("a down projection that cannot be read does not tell F") {
  auto builder =
      build({{"h.1.ff.router.weight", {N, D}}, {"h.1.ff.experts.linear_fc1.weight", {N, 2 * F, D}}});
  builder.add_raw("h.1.ff.experts.linear_fc2.weight", dtype::u8, {N, D, F});
  CHECK(contains(reason_of(searched(builder)), "names do not tell"));
}

TEST_CASE("which targets of a transform_config have gates among them") {
  using detail::packing::turns_inputs;
  using names = std::vector<std::string>;
  const auto turns = [](const names& targets, const names& ignored = {}) {
    const json step{{"location", "input"}, {"targets", targets}, {"ignore", ignored}};
    return turns_inputs({{"transform_config", {{"config_groups", {{"v", {{"apply", {step}}}}}}}}});
  };
  CHECK(turns({"Linear"}));
  CHECK(turns({"re:.*(gate_proj|up_proj|down_proj)$"}));
  CHECK(turns({"re:.*(w1|w2|w3)$"}));
  CHECK(turns({"re:.*down_proj$", "re:.*gate_proj$"}));
  CHECK_FALSE(turns({"re:.*down_proj$", "re:.*w2$"}));
  CHECK_FALSE(turns({"re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"}));
  CHECK_FALSE(turns({"re:.*(q_proj|k_proj|v_proj)$"}));
  CHECK_FALSE(turns({"Linear"}, {"lm_head", "re:.*mlp.experts.*"}));
  CHECK(turns({"Linear"}, {"lm_head", "re:.*shared_experts.*"}));
  CHECK(turns({"Linear"}, {"re:.*experts.*down_proj"}));
}

TEST_CASE("gates that no packing has are turned too, where a transform_config says so") {
  const auto builder = build(layer_of("h.1.mlp.gate.weight", usual("h.1.mlp.")));
  const auto config = [](const char* target) {
    const json step{{"location", "input"}, {"targets", json::array({target})}};
    return json{{"quantization_config",
                 {{"quant_method", "compressed-tensors"},
                  {"transform_config", {{"config_groups", {{"v", {{"apply", {step}}}}}}}}}}}
        .dump();
  };
  CHECK(contains(reason_of(searched(builder, {}, config("Linear"))), "transform_config"));
  CHECK(searched(builder, {}, config("re:.*q_proj$")).found.size() == 1);
}

}  // namespace test_lookalikes
