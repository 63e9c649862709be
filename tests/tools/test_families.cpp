// Every family and layout gives the numbers of the [N, F, D] original; what cannot be told apart is not
// guessed.
#include "program.hpp"

#include <io/searched.hpp>

namespace test_families {
using namespace tool_test;

namespace {

using io_test::D;
using io_test::F;
using io_test::N;
using io_test::n2fd_concatenated;
using io_test::n2fd_interleaved;
using io_test::nd2f_concatenated;
using io_test::nd2f_interleaved;
using io_test::ndf;
using io_test::one_expert;

struct models {
  temporary_folder folder;
  layer_data layer = random_layer(30, N, F, D);
  json expected;

  models() {
    checkpoint_builder original;
    add_layer(original, "", layer);
    original.write(folder / "original.safetensors");
    expected = numbers_of(run_json({folder / "original.safetensors"}));
    REQUIRE(expected.size() == 1);
    REQUIRE(expected[0].size() == N);
  }

  /// Writes the model, runs on it, and demands the numbers of the original in one layer of that name.
  void check(const checkpoint_builder& builder, const std::string& name,
             std::vector<std::string> flags = {}) const {
    CAPTURE(name);
    builder.write(folder / "model.safetensors");
    flags.insert(flags.begin(), folder / "model.safetensors");
    const auto document = run_json(flags);
    CHECK(numbers_of(document) == expected);
    CHECK(document["layers"][0]["name"] == name);
    CHECK(document["layers"][0]["ffn_dim"] == F);
    CHECK(document["layers"][0]["hidden_dim"] == D);
  }
};

using mpi_router::bf16;

}  // namespace

TEST_CASE("one tensor for each expert") {
  const models m;
  struct {
    const char* router;
    const char* before;
    const char* after;
    const char* name;
  } const families[] = {
      {"model.layers.7.mlp.gate.weight", "model.layers.7.mlp.experts.", ".gate_proj.weight",
       "model.layers.7.mlp"},
      {"model.layers.0.mlp.gate.wg.weight", "model.layers.0.mlp.experts.", ".gate_proj.weight",
       "model.layers.0.mlp"},
      {"layers.1.block_sparse_moe.gate.weight", "layers.1.block_sparse_moe.experts.", ".w1.weight",
       "layers.1.block_sparse_moe"},
      {"feed_forward.router.weight", "feed_forward.experts.", ".gate_proj.weight", "feed_forward"},
      {"model.layers.2.feed_forward.gate.weight", "model.layers.2.feed_forward.experts.", ".w1.weight",
       "model.layers.2.feed_forward"},
      {"transformer.h.3.mlp.gate.weight", "transformer.h.3.mlp.experts.", ".gate_proj.weight",
       "transformer.h.3.mlp"},
  };
  for (const auto& f : families) {
    checkpoint_builder builder;
    builder.add<float>(f.router, {N, D}, m.layer.router);
    for (index_t e = 0; e < N; ++e) {
      const std::string expert = f.before + std::to_string(e);
      builder.add<bf16>(expert + f.after, {F, D}, one_expert(m.layer, e));
      builder.add<bf16>(expert + ".up_proj.weight", {F, D}, one_expert(m.layer, 0));
      builder.add<bf16>(expert + ".down_proj.weight", {D, F}, one_expert(m.layer, 0));
    }
    m.check(builder, f.name);
  }
}

TEST_CASE("what stands beside the experts is no router: shared experts, dense layers, biases") {
  const models m;
  checkpoint_builder builder;
  builder.add<float>("model.layers.1.mlp.gate.weight", {N, D}, m.layer.router);
  builder.add<float>("model.layers.1.mlp.gate.e_score_correction_bias", {N}, std::vector<float>(N));
  builder.add<float>("model.layers.1.mlp.shared_expert_gate.weight", {1, D}, std::vector<float>(D, 1));
  for (const char* shared : {"shared_expert", "shared_experts"}) {
    builder.add<bf16>(std::string("model.layers.1.mlp.") + shared + ".gate_proj.weight", {F, D},
                      one_expert(m.layer, 0));
  }
  builder.add<bf16>("model.layers.0.mlp.gate_proj.weight", {F, D}, one_expert(m.layer, 0));
  for (index_t e = 0; e < N; ++e) {
    builder.add<bf16>("model.layers.1.mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                      one_expert(m.layer, e));
  }
  m.check(builder, "model.layers.1.mlp");
  CHECK(run_json({m.folder / "model.safetensors"})["unmatched"].empty());
}

TEST_CASE("one tensor for all experts") {
  const models m;
  const auto model = [&](const std::string& router, const std::string& gates, std::vector<index_t> shape,
                         const std::vector<float>& values) {
    checkpoint_builder builder;
    builder.add<float>(router, {N, D}, m.layer.router);
    builder.add<bf16>(gates, std::move(shape), values);
    return builder;
  };
  SUBCASE("this project") {
    m.check(model("mlp.router.weight", "mlp.experts.gate_proj", {N, F, D}, m.layer.gates), "mlp");
  }
  SUBCASE("MegaBlocks, flattened") {
    m.check(model("transformer.blocks.0.ffn.router.layer.weight", "transformer.blocks.0.ffn.experts.mlp.w1",
                  {N * F, D}, m.layer.gates),
            "transformer.blocks.0.ffn");
    m.check(model("router.layer.weight", "experts.mlp.w1", {N * F, D}, m.layer.gates), "");
  }
  SUBCASE("Granite") {
    m.check(model("model.layers.0.block_sparse_moe.router.layer.weight",
                  "model.layers.0.block_sparse_moe.input_linear.weight", {N, 2 * F, D},
                  n2fd_concatenated(m.layer)),
            "model.layers.0.block_sparse_moe");
  }
  SUBCASE("gpt-oss, with its bias") {
    auto builder = model("model.layers.0.mlp.router.weight", "model.layers.0.mlp.experts.gate_up_proj",
                         {N, D, 2 * F}, nd2f_interleaved(m.layer));
    builder.add<bf16>("model.layers.0.mlp.experts.gate_up_proj_bias", {N, 2 * F},
                      std::vector<float>(N * 2 * F, 1));
    builder.add<bf16>("model.layers.0.mlp.router.bias", {N}, std::vector<float>(N));
    m.check(builder, "model.layers.0.mlp");
    CHECK(run_json({m.folder / "model.safetensors"})["unmatched"].empty());
  }
  SUBCASE("Llama-4") {
    m.check(model("language_model.model.layers.1.feed_forward.router.weight",
                  "language_model.model.layers.1.feed_forward.experts.gate_up_proj", {N, D, 2 * F},
                  nd2f_concatenated(m.layer)),
            "language_model.model.layers.1.feed_forward");
  }
  SUBCASE("Qwen3-VL and its successors: the router's D tells which") {
    const std::string prefix = "model.language_model.layers.0.mlp";
    m.check(model(prefix + ".gate.weight", prefix + ".experts.gate_up_proj", {N, D, 2 * F},
                  nd2f_concatenated(m.layer)),
            prefix);
    m.check(model(prefix + ".gate.weight", prefix + ".experts.gate_up_proj", {N, 2 * F, D},
                  n2fd_concatenated(m.layer)),
            prefix);
  }
  SUBCASE("--layout overrules the family") {
    const std::string gates = "mlp.experts.gate_proj";
    m.check(model("mlp.router.weight", gates, {N, D, F}, ndf(m.layer)), "mlp", {"--layout", "ndf"});
    m.check(model("mlp.router.weight", gates, {N, 2 * F, D}, n2fd_interleaved(m.layer)), "mlp",
            {"--layout", "n2fd-interleaved"});
    m.check(model("mlp.router.weight", gates, {N, 2 * F, D}, n2fd_concatenated(m.layer)), "mlp",
            {"--layout", "n2fd-concatenated"});
    m.check(model("mlp.router.weight", gates, {N, D, 2 * F}, nd2f_interleaved(m.layer)), "mlp",
            {"--layout", "nd2f-interleaved"});
    m.check(model("mlp.router.weight", gates, {N, D, 2 * F}, nd2f_concatenated(m.layer)), "mlp",
            {"--layout", "nd2f-concatenated"});
  }
}

TEST_CASE("names that the user gives") {
  const models m;
  checkpoint_builder builder;
  for (const char* layer : {"0", "11"}) {
    builder.add<float>("blk." + std::string(layer) + ".route", {N, D}, m.layer.router);
    for (index_t e = 0; e < N; ++e) {
      builder.add<bf16>("blk." + std::string(layer) + ".ffn." + std::to_string(e) + ".a", {F, D},
                        one_expert(m.layer, e));
    }
  }
  builder.add<bf16>("whole", {N, D, F}, ndf(m.layer));
  builder.write(m.folder / "model.safetensors");
  const std::string path = m.folder / "model.safetensors";
  const auto document =
      run_json({path, "--router", "blk.{layer}.route", "--gate", "blk.{layer}.ffn.{expert}.a"});
  REQUIRE(document["layers"].size() == 2);
  CHECK(document["layers"][0]["name"] == "blk.0");
  CHECK(document["layers"][1]["name"] == "blk.11");
  CHECK(numbers_of(document)[0] == m.expected[0]);
  CHECK(numbers_of(document)[1] == m.expected[0]);
  CHECK(numbers_of(run_json({path, "--router", "blk.0.route", "--gate", "whole", "--layout", "ndf"})) ==
        m.expected);
  check_refused({path, "--router", "blk.{layer}.route", "--gate", "blk.{layer}.other"},
                "there is no 'blk.0.other'");
  check_refused({path, "--router", "nothing.{layer}", "--gate", "x.{layer}"}, "no MoE layer found");
  CHECK(numbers_of(run_json({path}))[0] == m.expected[0]);  // and by shapes alone
  CHECK(run_json({path})["layers"][0]["family"] ==
        "no known family: taken by what names look like and by shapes");
}

TEST_CASE_TEMPLATE("every floating-point type, aligned or not", T, double, float, mpi_router::f16, bf16) {
  const models m;
  checkpoint_builder builder;
  builder.add<T>("mlp.router.weight", {N, D}, m.layer.router);
  builder.add<T>("mlp.experts.gate_proj", {N, F, D}, m.layer.gates);
  m.check(builder, "mlp");
  // The same with one space less after the header: every tensor starts at an odd address.
  std::string bytes = read_bytes(m.folder / "model.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  bytes.insert(8 + length, " ");
  ++length;
  std::memcpy(bytes.data(), &length, sizeof length);
  write_bytes(m.folder / "odd.safetensors", bytes);
  CHECK(numbers_of(run_json({m.folder / "odd.safetensors"})) == m.expected);
}

TEST_CASE("shards: the experts of a layer in several files") {
  const models m;
  checkpoint_builder builder;
  builder.add<float>("mlp.gate.weight", {N, D}, m.layer.router);
  for (index_t e = 0; e < N; ++e) {
    builder.add<bf16>("mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                      one_expert(m.layer, e));
  }
  std::filesystem::create_directory(m.folder / "shards");
  builder.write_shards(m.folder / "shards", 3);
  CHECK(numbers_of(run_json({m.folder / "shards"})) == m.expected);
  CHECK(numbers_of(run_json({m.folder / "shards/model.safetensors.index.json"})) == m.expected);
  check_refused({m.folder / "shards/model-1.safetensors"}, "3 of its 4 experts are not here");
}

TEST_CASE("several checkpoints in one run") {
  const models m;
  const auto document = run_json({m.folder / "original.safetensors", data_file("tiny-mpi.safetensors")});
  REQUIRE(document["layers"].size() == 3);
  CHECK(numbers_of(document)[0] == m.expected[0]);
  CHECK(document["layers"][0]["file"] == (m.folder / "original.safetensors").string());
  CHECK(document["layers"][2]["file"] == data_file("tiny-mpi.safetensors"));
}

TEST_CASE("D = 2F: either layout fits, and none is guessed") {
  const temporary_folder folder;
  const auto layer = random_layer(31, 3, 4, 8);
  checkpoint_builder original;
  add_layer(original, "", layer);
  original.write(folder / "original.safetensors");
  const auto expected = numbers_of(run_json({folder / "original.safetensors"}));
  const std::string path = folder / "model.safetensors";

  checkpoint_builder qwen;
  qwen.add<float>("mlp.gate.weight", {3, 8}, layer.router);
  qwen.add<bf16>("mlp.experts.gate_up_proj", {3, 8, 8}, nd2f_concatenated(layer));
  qwen.write(path);
  check_refused({path}, "'mlp.experts.gate_up_proj' of shape [3, 8, 8] may be");
  check_refused({path}, "--layout nd2f-concatenated");
  check_refused({path}, "--layout n2fd-concatenated");
  CHECK(numbers_of(run_json({path, "--layout", "nd2f-concatenated"})) == expected);
  CHECK(numbers_of(run_json({path, "--layout", "n2fd-concatenated"})) != expected);

  checkpoint_builder oss;  // the names of one family alone do not say it either
  oss.add<float>("mlp.router.weight", {3, 8}, layer.router);
  oss.add<bf16>("mlp.experts.gate_up_proj", {3, 8, 8}, nd2f_interleaved(layer));
  oss.write(path);
  check_refused({path}, "--layout nd2f-interleaved");
  CHECK(numbers_of(run_json({path, "--layout", "nd2f-interleaved"})) == expected);
}

TEST_CASE("what cannot be used is listed with a hint, and the rest is done") {
  const temporary_folder folder;
  const auto layer = random_layer(32, 3, 4, 10);
  const std::string path = folder / "model.safetensors";
  checkpoint_builder builder;
  add_layer(builder, "layers.0.", layer);
  const auto attempt = [&](const std::string& name, const std::string& reason) {
    builder.write(path);
    const auto document = run_json({path});
    CHECK(document["layers"].size() == 1);
    REQUIRE(document["unmatched"].size() == 1);
    CAPTURE(document["unmatched"].dump());
    CHECK(document["unmatched"][0]["name"] == name);
    CHECK(contains(document["unmatched"][0]["reason"], reason));
    CHECK(contains(run({path}).out, "not used: " + name));
  };
  SUBCASE("a router without experts") {
    builder.add<float>("layers.1.mlp.gate.weight", {3, 10}, layer.router);
    attempt("layers.1.mlp.gate.weight", "looks like a router, but there are no experts beside it; --router");
  }
  SUBCASE("experts without a router") {
    builder.add<bf16>("layers.1.moe.experts.0.gate_proj.weight", {4, 10}, one_expert(layer, 0));
    builder.add<bf16>("layers.1.moe.experts.1.gate_proj.weight", {4, 10}, one_expert(layer, 1));
    attempt("layers.1.moe.experts.*.gate_proj.weight (2 tensors)", "no router goes with them");
  }
  SUBCASE("packed 4-bit weights") {
    builder.add<float>("layers.1.mlp.router.weight", {3, 10}, layer.router);
    builder.add_raw("layers.1.mlp.experts.gate_up_proj_blocks", dtype::u8, {3, 8, 1, 16});
    builder.add_raw("layers.1.mlp.experts.gate_up_proj_scales", dtype::u8, {3, 8, 1});
    builder.add_raw("layers.1.mlp.experts.gate_up_proj_bias", dtype::bf16, {3, 8});
    attempt("layers.1.mlp.router.weight", "'layers.1.mlp.experts.gate_up_proj' has shape [3, 8, 32]");
  }
  SUBCASE("8-bit weights") {
    builder.add<float>("layers.1.mlp.gate.weight", {3, 10}, layer.router);
    for (const char* e : {"0", "1", "2"}) {
      builder.add_raw("layers.1.mlp.experts." + std::string(e) + ".gate_proj.weight", dtype::f8_e4m3,
                      {4, 10});
      builder.add_raw("layers.1.mlp.experts." + std::string(e) + ".gate_proj.weight_scale_inv", dtype::f32,
                      {7});
    }
    attempt("layers.1.mlp.gate.weight",
            "'layers.1.mlp.experts.0.gate_proj.weight' is F8_E4M3 [4, 10], but its scales "
            "'layers.1.mlp.experts.0.gate_proj.weight_scale_inv' are F32 [7]");
  }
  SUBCASE("a missing expert") {
    builder.add<float>("layers.1.mlp.gate.weight", {3, 10}, layer.router);
    for (const char* e : {"0", "2"}) {
      builder.add<bf16>("layers.1.mlp.experts." + std::string(e) + ".gate_proj.weight", {4, 10},
                        one_expert(layer, 0));
    }
    attempt("layers.1.mlp.gate.weight",
            "1 of its 3 experts are not here, the first is 'layers.1.mlp.experts.1.gate_proj.weight'");
  }
  SUBCASE("an expert too many") {
    builder.add<float>("layers.1.mlp.gate.weight", {3, 10}, layer.router);
    for (const char* e : {"0", "1", "2", "3"}) {
      builder.add<bf16>("layers.1.mlp.experts." + std::string(e) + ".gate_proj.weight", {4, 10},
                        one_expert(layer, 0));
    }
    attempt("layers.1.mlp.gate.weight",
            "the router has 3 rows, but there is a 'layers.1.mlp.experts.3.gate_proj.weight' too");
  }
  SUBCASE("a hidden dimension that the router has not") {
    builder.add<float>("layers.1.mlp.router.weight", {3, 10}, layer.router);
    builder.add<bf16>("layers.1.mlp.experts.gate_proj", {3, 5, 8}, std::vector<float>(120));
    attempt("layers.1.mlp.router.weight",
            "'layers.1.mlp.experts.gate_proj' has shape [3, 5, 8], which is not [N, F, D] (--layout nfd) "
            "with the router's N = 3, D = 10");
  }
  SUBCASE("[N, D, F] under a name that means [N, F, D]") {
    builder.add<float>("layers.1.mlp.router.weight", {3, 10}, layer.router);
    builder.add<bf16>("layers.1.mlp.experts.gate_proj", {3, 10, 4}, ndf(layer));
    attempt("layers.1.mlp.router.weight", "which is not [N, F, D]");
  }
  SUBCASE("a router of another rank") {
    builder.add<float>("layers.1.mlp.router.weight", {3, 10, 1}, layer.router);
    builder.add<bf16>("layers.1.mlp.experts.gate_proj", {3, 4, 10}, layer.gates);
    attempt("layers.1.mlp.router.weight", "the router has shape [3, 10, 1], not [N, D]");
  }
  SUBCASE("a router that is empty") {
    builder.add<float>("layers.1.mlp.router.weight", {0, 10}, {});
    builder.add<bf16>("layers.1.mlp.experts.gate_proj", {0, 4, 10}, {});
    attempt("layers.1.mlp.router.weight", "the router has shape [0, 10], not [N, D]");
  }
  SUBCASE("an odd number of fused neurons") {
    builder.add<float>("layers.1.mlp.router.weight", {3, 10}, layer.router);
    builder.add<bf16>("layers.1.mlp.experts.gate_up_proj", {3, 10, 7}, std::vector<float>(210));
    attempt("layers.1.mlp.router.weight", "nd2f-interleaved");
  }
}

}  // namespace test_families
