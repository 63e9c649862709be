// Matrices that hold gate and up in one, or up alone: what tells, and what is a question.
#include "searched.hpp"

namespace test_gates_or_up {
using namespace io_test;
using namespace mpi_router;

TEST_CASE("linear_fc1 of all experts, without linear_fc2: up alone or gate and up is a question") {
  using enum gate_layout;
  const std::string block = "decoder.layers.1.mlp.";
  for (const char* name : {"experts.linear_fc1.weight", "experts.experts.linear_fc1.weight"}) {
    CAPTURE(name);
    const auto builder = build({{block + "router.weight", {N, D}}, {block + name, {N, 2 * F, D}}});
    const searched s(builder);
    const auto reason = reason_of(s);
    CHECK(contains(reason, "'" + block + name + "' of shape [4, 12, 10] may be"));
    CHECK(contains(reason, "[N, F, D] (layout nfd)"));
    CHECK(contains(reason, "gate before up (layout n2fd-concatenated)"));
    CHECK(contains(reason, "linear_fc2.weight' beside it, whose F would tell"));
    CHECK(hinted(s) == std::vector{n2fd_concatenated, nfd});
    for (const auto layout : {n2fd_concatenated, nfd}) {  // each is an answer
      moe_search search;
      search.layout = layout;
      CHECK(only_layer(searched(builder, search)).layout == layout);
    }
  }
}

TEST_CASE("config.json tells whether linear_fc1 has gate and up, by F or by its architecture") {
  const std::string block = "decoder.layers.1.mlp.";
  const auto builder =
      build({{block + "router.weight", {N, D}}, {block + "experts.linear_fc1.weight", {N, 2 * F, D}}});
  for (const char* config :
       {R"({"moe_ffn_hidden_size": 6})", R"({"intermediate_size": 6})", R"({"model_type": "qwen3_moe"})",
        R"({"moe_intermediate_size": 6, "intermediate_size": 12})"}) {
    CAPTURE(config);
    const searched s(builder, {}, config);
    CHECK(only_layer(s).part == expert_part::gate);
    CHECK(only_layer(s).ffn_dim == F);
  }
  for (const char* config :
       {R"({"moe_ffn_hidden_size": 12})", R"({"ffn_hidden_size": 12})", R"({"model_type": "nemotron_h"})",
        R"({"moe_intermediate_size": 12, "intermediate_size": 6})"}) {
    CAPTURE(config);
    const searched s(builder, {}, config);
    CHECK(only_layer(s).part == expert_part::up);
    CHECK(only_layer(s).ffn_dim == 2 * F);
  }
  for (const char* config : {R"({"moe_ffn_hidden_size": 5})", R"({"moe_intermediate_size": [6, 12]})",
                             R"({"moe_intermediate_size": [6], "intermediate_size": 6})"}) {
    CAPTURE(config);
    CHECK(contains(reason_of(searched(builder, {}, config)), "may be"));
  }
}

TEST_CASE("linear_fc1 of each expert, and Aria's fc1, without a down projection are questions too") {
  using enum gate_layout;
  const std::string block = "h.1.mlp.";
  for (const auto& [fc1, shape, both, plain] :
       {std::tuple{"experts.linear_fc1.weight{}", std::vector<index_t>{2 * F, D}, n2fd_concatenated, nfd},
        std::tuple{"experts.local_experts.{}.linear_fc1.weight", std::vector<index_t>{2 * F, D},
                   n2fd_concatenated, nfd},
        std::tuple{"experts.fc1.weight", std::vector<index_t>{N, D, 2 * F}, nd2f_concatenated, ndf}}) {
    CAPTURE(fc1);
    const auto builder = build({{block + "router.weight", {N, D}}, {block + fc1, shape}});
    const searched s(builder);
    CHECK(contains(reason_of(s), "beside it, whose F would tell"));
    CHECK(hinted(s) == std::vector{both, plain});
    for (const auto layout : {both, plain}) {
      moe_search search;
      search.layout = layout;
      CHECK(only_layer(searched(builder, search)).layout == layout);
    }
    for (const char* config :
         {R"({"gated_linear_unit": true})", R"({"swiglu": true})", R"({"model_type": "aria"})",
          R"({"hidden_act": "SwiGLU"})", R"({"moe_intermediate_size": 6})"}) {
      CAPTURE(config);
      CHECK(only_layer(searched(builder, {}, config)).layout == both);
    }
    for (const char* config :
         {R"({"gated_linear_unit": false})", R"({"swiglu": false, "model_type": "aria"})",
          R"({"moe_intermediate_size": 12})", R"({"model_type": "nemotron_h"})"}) {
      CAPTURE(config);
      const searched up(builder, {}, config);
      CHECK(only_layer(up).part == expert_part::up);
      CHECK(up.found[0].layout == plain);
    }
    CHECK(contains(reason_of(searched(builder, {}, R"({"hidden_act": "silu"})")), "may be"));
  }
}

TEST_CASE("a switch for gates that F contradicts does not tell, unless F is that of any layer") {
  const auto builder =
      build({{"h.1.mlp.router.weight", {N, D}}, {"h.1.mlp.experts.linear_fc1.weight{}", {2 * F, D}}});
  CHECK(
      contains(reason_of(searched(builder, {}, R"({"gated_linear_unit": true, "moe_ffn_hidden_size": 12})")),
               "may be"));
  CHECK(
      contains(reason_of(searched(builder, {}, R"({"gated_linear_unit": false, "moe_ffn_hidden_size": 6})")),
               "may be"));
  const searched dense(builder, {}, R"({"gated_linear_unit": true, "ffn_hidden_size": 12})");
  CHECK(only_layer(dense).part == expert_part::gate);
}

TEST_CASE("down projections of some of the experts tell what the others hold") {
  for (const index_t down : {F, 2 * F}) {
    CAPTURE(down);
    auto tensors =
        std::vector<random_tensor>{{"h.1.mlp.router.weight", {N, D}},
                                   {"h.1.mlp.experts.local_experts.{}.linear_fc1.weight", {2 * F, D}},
                                   {"h.1.mlp.experts.local_experts.2.linear_fc2.weight", {D, down}}};
    const searched s(build(tensors));
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].part == (down == F ? expert_part::gate : expert_part::up));
    tensors.push_back({"h.1.mlp.experts.local_experts.1.linear_fc2.weight", {D, 3 * F - down}});
    CHECK(searched(build(tensors)).found.empty());  // one of each
  }
}

TEST_CASE("fc1 and its like under names of no family, without fc2") {
  for (const char* fc1 : {"fc1.weight", "linear_fc1.weight", "c_fc.weight", "w_in", "dense_h_to_4h.weight"}) {
    CAPTURE(fc1);
    const std::vector<random_tensor> all{{"h.1.moe.gate.weight", {N, D}},
                                         {"h.1.moe.experts." + std::string(fc1), {N, 2 * F, D}}};
    const auto reason = reason_of(searched(build(all)));
    CHECK(contains(reason, "[N, F, D] (layout nfd)"));
    CHECK(contains(reason, "gate before up (layout n2fd-concatenated)"));
    CHECK(contains(reason, "no down projections beside it"));
    CHECK(only_layer(searched(build(all), {}, R"({"moe_intermediate_size": 12})")).part == expert_part::up);
    auto odd = all;
    odd[1].shape[1] = 7;
    CHECK(only_layer(searched(build(odd))).part == expert_part::up);
  }
  const std::vector<random_tensor> up{{"h.1.moe.gate.weight", {N, D}},
                                      {"h.1.moe.experts.up_proj", {N, 2 * F, D}}};  // has a name beside gates
  CHECK(only_layer(searched(build(up))).part == expert_part::up);
}

TEST_CASE("names of gate and up in one have up alone where an architecture has no gates") {
  for (const auto& [router, name, shape] :
       {std::tuple{"h.1.mlp.gate.weight", "h.1.mlp.experts.w13_weight", std::vector<index_t>{N, F, D}},
        std::tuple{"h.1.mixer.gate.weight", "h.1.mixer.experts.w13_weight", std::vector<index_t>{N, F, D}},
        std::tuple{"h.1.mlp.gate.weight", "h.1.mlp.experts.gate_and_up_projs",
                   std::vector<index_t>{N, D, F}}}) {
    CAPTURE(name);
    const auto builder = build({{router, {N, D}}, {name, shape}});
    const searched s(builder, {}, R"({"model_type": "nemotron_h"})");
    CHECK(only_layer(s).part == expert_part::up);
    CHECK(only_layer(s).ffn_dim == F);
    const searched gated(builder, {}, R"({"model_type": "qwen3_moe"})");
    REQUIRE(gated.found.size() == 1);
    CHECK(gated.found[0].ffn_dim == F / 2);
  }
  const searched down(build({{"h.1.mixer.gate.weight", {N, D}},
                             {"h.1.mixer.experts.w13_weight", {N, F, D}},
                             {"h.1.mixer.experts.w2_weight", {N, D, F}}}));
  CHECK(only_layer(down).part == expert_part::up);
}

TEST_CASE("gates, or up alone, with twice the neurons of the down projections hold gate and up") {
  const index_t both = 2 * F;
  const std::vector<std::vector<random_tensor>> layers{
      {{"h.1.moe.router.gate.weight", {N, D}},
       {"h.1.moe.experts.w1", {N, both, D}},
       {"h.1.moe.experts.w2", {N, D, F}}},
      {{"h.1.feed_forward_moe.router.weight", {N, D}},
       {"h.1.feed_forward_moe.experts.mlp.w1", {N * both, D}},
       {"h.1.feed_forward_moe.experts.mlp.w2", {N * F, D}}},
      {{"h.1.block_sparse_moe.gate.weight", {N, D}},
       {"h.1.block_sparse_moe.experts.{}.w1.weight", {both, D}},
       {"h.1.block_sparse_moe.experts.{}.w2.weight", {D, F}}},
      {{"h.1.mlp.gate.weight", {N, D}},
       {"h.1.mlp.experts.{}.gate_proj.weight", {both, D}},
       {"h.1.mlp.experts.{}.down_proj.weight", {D, F}}},
      {{"h.1.mlp.router.classifier.weight", {N, D}},
       {"h.1.mlp.experts.expert_{}.wi.weight", {both, D}},
       {"h.1.mlp.experts.expert_{}.wo.weight", {D, F}}}};
  for (const auto& tensors : layers) {
    CAPTURE(tensors[1].name);
    const auto reason = reason_of(searched(build(tensors)));
    CHECK(contains(reason, "gate before up (layout n2fd-concatenated)"));
    CHECK(contains(reason, "up before gate (layout n2fd-up-first)"));
    auto plain = tensors;
    plain[1].shape[plain[1].shape.size() - 2] /= 2;
    CHECK(only_layer(searched(build(plain))).ffn_dim == F);
  }
}

TEST_CASE("one rank of several has a part of each expert's neurons, as config.json tells") {
  const auto builder = build({{"model.layers.0.mlp.gate.weight", {N, D}},
                              {"model.layers.0.mlp.experts.w13_weight", {N, 2 * F, D}},
                              {"model.layers.0.mlp.experts.w2_weight", {N, D, F}}});
  const auto missing = [&](const std::string& config, const std::string& file) {
    const searched s(builder, {}, config, file);
    CHECK(s.found.size() == 1);
    return std::ranges::count(s.found.omissions, omission_kind::missing, &omission::kind);
  };
  const std::string rank = "model-rank-0-part-0.safetensors";
  const std::string own = R"({"model_type": "qwen3_moe", "moe_intermediate_size": )";
  const std::string any = R"({"model_type": "mixtral", "intermediate_size": )";
  CHECK(missing(own + "12}", rank) == 1);
  CHECK(missing(own + "12}", "model.safetensors") == 1);
  CHECK(missing(any + "12}", rank) == 1);
  CHECK(missing(any + "12}", "model.safetensors") == 0);  // of a dense layer, perhaps
  for (const char* same : {"6}", "13}", "3}"}) {
    CAPTURE(same);
    CHECK(missing(own + same, rank) == 0);
  }
  const searched s(builder, {}, own + "18}");
  CHECK(std::ranges::any_of(s.found.omissions, [](const auto& each) {
    return contains(each.reason, "experts have 18 neurons each, and those of 'model.layers.0.mlp' have 6");
  }));
}

TEST_CASE("a square stack of gate and up lies as its down projections do, or config.json is not believed") {
  constexpr index_t half = D / 2;
  for (const auto& [name, down] : {std::pair{"experts.gate_up_proj", "experts.down_proj"},
                                   std::pair{"experts.w13_weight", "experts.w2_weight"}}) {
    CAPTURE(name);
    const auto with = [&](const std::vector<index_t>& shape) {
      return build({{"h.1.mlp.gate.weight", {N, D}},
                    {"h.1.mlp." + std::string(name), {N, D, D}},
                    {"h.1.mlp." + std::string(down), shape}});
    };
    const std::string config = R"({"model_type": "qwen3_moe"})";
    const searched s(with({N, D, half}), {}, config);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == gate_layout::n2fd_concatenated);
    const auto reason = reason_of(searched(with({N, half, D}), {}, config));
    CHECK(contains(reason, "(layout n2fd-concatenated)"));
    CHECK(contains(reason, "(layout nd2f-concatenated)"));
    CHECK(contains(reason, "the down projections lie as beside the other"));
  }
}

}  // namespace test_gates_or_up
