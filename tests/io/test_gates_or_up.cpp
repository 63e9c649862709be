// Matrices that hold gate and up in one, or up alone: what tells, and what is a question.
#include "searched.hpp"

namespace test_gates_or_up {
using namespace io_test;

namespace {

using namespace mpi_router;

/// The one layer, without a word about anything else.
const moe_layer& layer_of(const searched& s) {
  for (const auto& each : s.found.omissions) {
    FAIL_CHECK(each.name, ": ", each.reason);
  }
  REQUIRE(s.found.size() == 1);
  return s.found[0];
}

std::vector<gate_layout> hinted(const searched& s) {
  std::vector<gate_layout> out;
  for (const auto& hint : s.found.omissions.at(0).hints) {
    out.push_back(hint.layout);
  }
  return out;
}

}  // namespace

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
      CHECK(layer_of(searched(builder, search)).layout == layout);
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
    CHECK(layer_of(s).part == expert_part::gate);
    CHECK(layer_of(s).ffn_dim == F);
  }
  for (const char* config :
       {R"({"moe_ffn_hidden_size": 12})", R"({"ffn_hidden_size": 12})", R"({"model_type": "nemotron_h"})",
        R"({"moe_intermediate_size": 12, "intermediate_size": 6})"}) {
    CAPTURE(config);
    const searched s(builder, {}, config);
    CHECK(layer_of(s).part == expert_part::up);
    CHECK(layer_of(s).ffn_dim == 2 * F);
  }
  for (const char* config : {R"({"moe_ffn_hidden_size": 5})", R"({"moe_intermediate_size": [6, 12]})",
                             R"({"moe_intermediate_size": [6], "intermediate_size": 6})"}) {
    CAPTURE(config);
    CHECK(contains(reason_of(searched(builder, {}, config)), "may be"));
  }
}

TEST_CASE("what is taken to hold gate and up by a name that says up alone is said to be") {
  for (const auto& [fc1, shape, plain] :
       {std::tuple{"experts.linear_fc1.weight{}", std::vector<index_t>{2 * F, D}, gate_layout::nfd},
        std::tuple{"experts.local_experts.{}.linear_fc1.weight", std::vector<index_t>{2 * F, D},
                   gate_layout::nfd},
        std::tuple{"experts.fc1.weight", std::vector<index_t>{N, D, 2 * F}, gate_layout::ndf}}) {
    CAPTURE(fc1);
    const std::vector<random_tensor> all{{"h.1.mlp.router.weight", {N, D}},
                                         {"h.1.mlp." + std::string(fc1), shape}};
    const searched s(build(all));
    REQUIRE(s.found.size() == 1);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(s.found.omissions[0].kind == omission_kind::set_aside);
    CHECK(contains(s.found.omissions[0].reason, "is taken to hold gate and up"));
    CHECK(hinted(s) == std::vector{plain});
    const searched up(build(all), {}, R"({"moe_intermediate_size": 12})");
    CHECK(layer_of(up).part == expert_part::up);
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
    CHECK(layer_of(searched(build(all), {}, R"({"moe_intermediate_size": 12})")).part == expert_part::up);
    auto odd = all;
    odd[1].shape[1] = 7;
    CHECK(layer_of(searched(build(odd))).part == expert_part::up);
  }
  const std::vector<random_tensor> up{{"h.1.moe.gate.weight", {N, D}},
                                      {"h.1.moe.experts.up_proj", {N, 2 * F, D}}};  // has a name beside gates
  CHECK(layer_of(searched(build(up))).part == expert_part::up);
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
    CHECK(layer_of(s).part == expert_part::up);
    CHECK(layer_of(s).ffn_dim == F);
    const searched gated(builder, {}, R"({"model_type": "qwen3_moe"})");
    CHECK(layer_of(gated).ffn_dim == F / 2);
  }
  const searched down(build({{"h.1.mixer.gate.weight", {N, D}},
                             {"h.1.mixer.experts.w13_weight", {N, F, D}},
                             {"h.1.mixer.experts.w2_weight", {N, D, F}}}));
  CHECK(layer_of(down).part == expert_part::up);
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
    CHECK(layer_of(searched(build(plain))).ffn_dim == F);
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
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(contains(s.found.omissions[0].reason,
                 "experts have 18 neurons each, and those of 'model.layers.0.mlp' have 6"));
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
    CHECK(layer_of(s).layout == gate_layout::n2fd_concatenated);
    const auto reason = reason_of(searched(with({N, half, D}), {}, config));
    CHECK(contains(reason, "(layout n2fd-concatenated)"));
    CHECK(contains(reason, "(layout nd2f-concatenated)"));
    CHECK(contains(reason, "the down projections lie as beside the other"));
  }
}

}  // namespace test_gates_or_up
