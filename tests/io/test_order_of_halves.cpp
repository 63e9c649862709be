// Gate and up in one under the name that servers give it: which comes first.
#include "searched.hpp"

namespace test_order_of_halves {
using namespace io_test;
using namespace mpi_router;

TEST_CASE("w13 is taken to have gate before up, and that is said: no name tells") {
  using enum gate_layout;
  for (const std::string block : {"h.1.mlp.", "h.1.block_sparse_moe."}) {
    CAPTURE(block);
    const auto builder = build({{block + "gate.weight", {N, D}},
                                {block + "experts.w13_weight", {N, 2 * F, D}},
                                {block + "experts.w2_weight", {N, D, F}}});
    const searched s(builder, {}, R"({"model_type": "qwen3_moe"})");
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == n2fd_concatenated);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(s.found.omissions[0].kind == omission_kind::set_aside);
    CHECK(contains(s.found.omissions[0].reason, "taken to have gate before up"));
    CHECK(hinted(s) == std::vector{n2fd_up_first});
    moe_search search;
    search.layout = n2fd_up_first;
    CHECK(only_layer(searched(builder, search)).layout == n2fd_up_first);
  }
  const auto unnamed =
      build({{"h.1.mlp.gate.weight", {N, D}}, {"h.1.mlp.experts.w13_weight", {N, 2 * F, D}}});
  CHECK(contains(reason_of(searched(unnamed)), "up before gate (layout n2fd-up-first)"));
  const searched inkling(unnamed, {}, R"({"model_type": "inkling_mm_model"})");
  CHECK(only_layer(inkling).layout == n2fd_interleaved);
}

TEST_CASE("w13 in NVFP4 is a question, but in Inkling's own release") {
  using enum gate_layout;
  constexpr index_t width = 32;
  for (const std::string block : {"h.1.mlp.", "h.1.block_sparse_moe."}) {
    CAPTURE(block);
    auto builder = build({{block + "gate.weight", {N, width}}, {block + "experts.w13_weight_scale_2", {N}}});
    builder.add_raw(block + "experts.w13_weight", dtype::u8, {N, 2 * F, width / 2});
    builder.add_raw(block + "experts.w13_weight_scale", dtype::f8_e4m3, {N, 2 * F, width / 16});
    const searched s(builder, {}, R"({"model_type": "qwen3_moe"})");
    CHECK(contains(reason_of(s), "a file that a server wrote"));
    CHECK(hinted(s) == std::vector{n2fd_concatenated, n2fd_up_first});
    moe_search search;
    search.layout = n2fd_up_first;
    CHECK(only_layer(searched(builder, search)).layout == n2fd_up_first);
    if (block == "h.1.mlp.") {
      CHECK(only_layer(searched(builder, {}, R"({"model_type": "inkling_mm_model"})")).layout ==
            n2fd_interleaved);
    }
    builder.add_raw(block + "experts.w13_blockscale_swizzled", dtype::f8_e4m3, {N, 2 * F, width / 16});
    CHECK(contains(reason_of(searched(builder, {}, R"({"model_type": "qwen3_moe"})")),
                   "w13_blockscale_swizzled"));
  }
}

TEST_CASE("w3_w1 has up first, and what TensorRT-LLM packs under that name is refused") {
  const std::string block = "h.1.mlp.";
  const searched plain(
      build({{block + "gate.weight", {N, D}}, {block + "experts.w3_w1_weight", {N, 2 * F, D}}}));
  CHECK(only_layer(plain).layout == gate_layout::n2fd_up_first);
  constexpr index_t width = 32;
  auto builder = build({{block + "gate.weight", {N, width}}});
  builder.add_raw(block + "experts.w3_w1_weight", dtype::i64, {N, 2 * F, width / 16});
  builder.add_raw(block + "experts.w3_w1_weight_scale", dtype::i32, {N, 2 * F, width / 64 + 1});
  CHECK(contains(reason_of(searched(builder)), "stored as I64"));
}

}  // namespace test_order_of_halves
