// An answer covers all of the checkpoint, or says what it leaves out.
#include "program.hpp"

#include <io/searched.hpp>

namespace test_coverage {
using namespace tool_test;

namespace {

using io_test::D;
using io_test::F;
using io_test::N;
using mpi_router::bf16;

/// A layer as torch's Linear modules store it, a tensor an expert.
void add_linears(checkpoint_builder& builder, const std::string& prefix, const layer_data& l) {
  builder.add<bf16>(prefix + "mlp.gate.weight", {l.n, l.d}, l.router);
  for (index_t e = 0; e < l.n; ++e) {
    const auto begin = l.gates.begin() + e * l.f * l.d;
    builder.add<bf16>(prefix + "mlp.experts." + std::to_string(e) + ".gate_proj.weight", {l.f, l.d},
                      {begin, begin + l.f * l.d});
  }
}

std::string layer_prefix(int i) { return "model.layers." + std::to_string(i) + "."; }

/// A folder with a model of layers in the named numbers, and what else a test puts there.
struct model_folder {
  temporary_folder folder;
  checkpoint_builder builder;

  explicit model_folder(std::initializer_list<int> layers = {0, 1}) {
    for (const int i : layers) {
      add_linears(builder, layer_prefix(i), random_layer(static_cast<std::uint64_t>(80 + i), N, F, D));
    }
  }
  void write(const std::string& name = "model.safetensors") const { builder.write(folder / name); }
  void config(const json& text) const { write_bytes(folder / "config.json", text.dump()); }
  [[nodiscard]] std::string path() const { return folder.path(); }
};

std::string last_line(const std::string& text) {
  const auto end = text.find_last_not_of('\n');
  const auto begin = text.find_last_of('\n', end);
  return text.substr(begin + 1, end - begin);
}

/// Runs with and without --require-angle: the statuses, and that the words stand in the last line of each.
void check_covers(const std::string& path, int status, const std::string& counts,
                  const std::vector<std::string>& words = {}, std::vector<std::string> flags = {}) {
  flags.insert(flags.begin(), path);
  const auto plain = run(flags);
  flags.insert(flags.end(), {"--require-angle", "1.6"});
  const auto demanding = run(flags);
  CAPTURE(plain.out);
  CAPTURE(plain.err);
  CAPTURE(demanding.err);
  CHECK(plain.status == 0);
  CHECK(demanding.status == status);
  CHECK(last_line(plain.out).starts_with(counts + " were looked at"));
  CHECK(last_line(demanding.err).starts_with(counts + " are certified to be within 1.6 rad"));
  for (const auto& word : words) {
    CAPTURE(word);
    CHECK(contains(last_line(plain.out), word));
    CHECK(contains(last_line(demanding.err), word));
  }
}

/// The whole of the one thing that is not looked at.
json only_unmatched(const std::vector<std::string>& arguments) {
  const auto document = run_json(arguments);
  CAPTURE(document["unmatched"].dump(1));
  REQUIRE(document["unmatched"].size() == 1);
  return document["unmatched"][0];
}

}  // namespace

TEST_CASE("a checkpoint that is all there") {
  const model_folder m;
  m.write();
  check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
  const auto document = run_json({m.path(), "--require-angle", "1.6"});
  const json expected{{"layers", 2},
                      {"layers_looked_at", 2},
                      {"layers_certified", 2},
                      {"rows", 8},
                      {"rows_looked_at", 8},
                      {"rows_certified", 8},
                      {"layers_not_asked_for", 0},
                      {"rows_not_asked_for", 0},
                      {"complete", true},
                      {"summary", "2 of 2 layers, 8 of 8 rows were looked at"}};
  CHECK(document["coverage"] == expected);
  CHECK(document["unmatched"].empty());
  const auto& layer = document["layers"][1];
  CHECK(layer["family"] == "OLMoE, Qwen-MoE, DeepSeek, GLM");
  CHECK(layer["layout"] == "nfd");
  CHECK(layer["layout_known_by"] == "its shape");
  CHECK(layer["dtype"] == "BF16");
  CHECK(layer["router_dtype"] == "BF16");
  CHECK(layer["router_layout"] == "nd");
  CHECK(layer["router_rows"] == N);
  CHECK(layer["router"] == "model.layers.1.mlp.gate.weight");
  CHECK(layer["gate"] == "model.layers.1.mlp.experts.{expert}.gate_proj.weight");
}

TEST_CASE("a layer that cannot be read is counted, and fails what asks for all") {
  model_folder m({0, 2});
  SUBCASE("packed under the names of its family") {
    m.builder.add<bf16>(layer_prefix(1) + "mlp.gate.weight", {N, D}, random_layer(1, N, F, D).router);
    for (index_t e = 0; e < N; ++e) {
      m.builder.add_raw(layer_prefix(1) + "mlp.experts." + std::to_string(e) + ".gate_proj.weight",
                        dtype::f8_e4m3, {F, D});
    }
  }
  SUBCASE("packed under names of its own: one layer, its router and its experts together") {
    m.builder.add<bf16>(layer_prefix(1) + "mlp.gate.weight", {N, D}, random_layer(1, N, F, D).router);
    for (index_t e = 0; e < N; ++e) {
      for (const char* which : {"gate_proj", "up_proj"}) {
        const auto expert = layer_prefix(1) + "mlp.experts." + std::to_string(e) + "." + which;
        m.builder.add_raw(expert + ".weight_packed", dtype::i32, {F, 2});
        m.builder.add_raw(expert + ".weight_scale", dtype::bf16, {F, 1});
        m.builder.add_raw(expert + ".weight_shape", dtype::i32, {2});
      }
    }
  }
  SUBCASE("names that no family has") {
    m.builder.add<bf16>(layer_prefix(1) + "moe.router.gate.weight", {N, D}, random_layer(1, N, F, D).router);
    for (const char* unclear : {"a", "b"}) {
      m.builder.add<bf16>(layer_prefix(1) + "moe.experts." + unclear, {N, F, D},
                          random_layer(1, N, F, D).gates);
    }
  }
  SUBCASE("experts alone") {
    for (index_t e = 0; e < N; ++e) {
      m.builder.add_raw(layer_prefix(1) + "mlp.experts.expert_" + std::to_string(e) + ".wi.weight",
                        dtype::bf16, {F, D});
    }
  }
  SUBCASE("a router alone") {
    m.builder.add<bf16>(layer_prefix(1) + "mlp.router.classifier.weight", {N, D},
                        random_layer(1, N, F, D).router);
  }
  m.write();
  check_covers(m.path(), 1, "2 of 3 layers, 8 of 12 rows", {"; 1 layer (4 rows) was not looked at"});
  const auto document = run_json({m.path()});
  CHECK(document["coverage"]["complete"] == false);
  CHECK(document["coverage"]["layers"] == 3);
  CHECK(document["coverage"]["rows_looked_at"] == 8);
  REQUIRE(document["unmatched"].size() == 1);
  CHECK(document["unmatched"][0]["what"] == "not looked at");
  CHECK(document["unmatched"][0]["layers"] == 1);
  CHECK(document["unmatched"][0]["rows"] == 4);
}

TEST_CASE("reasons are true: what is packed, what has another name, what is not there") {
  const auto reason = [](const char* router, const char* gate, dtype type, std::vector<index_t> shape) {
    model_folder m({0});
    if (*router != '\0') {
      m.builder.add<bf16>(layer_prefix(1) + router, {N, D}, random_layer(1, N, F, D).router);
    }
    m.builder.add_raw(layer_prefix(1) + gate, type, std::move(shape));
    m.write();
    return only_unmatched({m.path()})["reason"].get<std::string>();
  };
  CHECK(contains(reason("mlp.router.weight", "mlp.experts.gate_up_proj_blocks", dtype::u8, {N, 12, 1, 16}),
                 "MXFP4"));
  CHECK(contains(reason("mlp.gate.weight", "mlp.experts.0.gate_proj.qweight", dtype::i32, {D, 1}),
                 "AWQ and GPTQ"));
  CHECK(contains(reason("mlp.gate.weight", "mlp.switch_mlp.gate_proj.weight", dtype::u32, {N, F, 2}), "MLX"));
  const auto other = reason("mlp.gate.weight", "mlp.experts.0.w1.weight", dtype::bf16, {F, D});
  CHECK(contains(other, "rows 1-3 of the router have no expert"));
  CHECK_FALSE(contains(other, "no router goes with them"));
  CHECK(contains(reason("", "mlp.experts.0.wi.weight", dtype::bf16, {F, D}), "no router goes with them"));
}

TEST_CASE("a dense layer's gate is no router, nor is an expert's or a shared expert's") {
  model_folder m({1});
  const std::vector<float> values(F * D);
  m.builder.add<bf16>(layer_prefix(0) + "mlp.gate.weight", {F, D}, values);
  m.builder.add<bf16>(layer_prefix(0) + "mlp.up.weight", {F, D}, values);
  m.builder.add<bf16>(layer_prefix(0) + "self_attn.gate.weight", {F, D}, values);
  m.builder.add<bf16>(layer_prefix(1) + "mlp.shared_experts.gate_proj.weight", {F, D}, values);
  m.builder.add<bf16>(layer_prefix(1) + "mlp.shared_expert.gate.weight", {F, D}, values);
  m.builder.add<bf16>(layer_prefix(1) + "mlp.shared_expert_gate.weight", {1, D}, std::vector<float>(D));
  m.builder.add<bf16>(layer_prefix(1) + "mlp.expert_bias", {N}, std::vector<float>(N));
  m.write();
  check_covers(m.path(), 0, "1 of 1 layers, 4 of 4 rows");
}

TEST_CASE("layers that differ in their numbers alone are one line") {
  model_folder m({0});
  for (int i = 1; i < 30; ++i) {
    m.builder.add<bf16>(layer_prefix(i) + "mlp.router.gate.weight", {N, D}, random_layer(1, N, F, D).router);
    m.builder.add<bf16>(layer_prefix(i) + "mlp.experts.a", {N, F, D}, random_layer(1, N, F, D).gates);
    m.builder.add<bf16>(layer_prefix(i) + "mlp.experts.b", {N, F, D}, random_layer(1, N, F, D).gates);
  }
  m.write();
  const auto entry = only_unmatched({m.path()});
  CHECK(entry["name"] == "model.layers.*.mlp.router.gate.weight");
  CHECK(entry["layers"] == 29);
  CHECK(entry["rows"] == 116);
  check_covers(m.path(), 1, "1 of 30 layers, 4 of 120 rows", {"29 layers (116 rows) were not looked at"});
}

TEST_CASE("all reasons stand in the one line where nothing can be read") {
  model_folder m({});
  m.builder.add<bf16>("a.mlp.gate.weight", {N, D, 1}, random_layer(1, N, F, D).router);
  m.builder.add<bf16>("a.mlp.experts.0.gate_proj.weight", {F, D}, std::vector<float>(F * D));
  m.builder.add<bf16>("b.mlp.router.weight", {N, D}, random_layer(1, N, F, D).router);
  m.builder.add<bf16>("c.mlp.experts.w1", {N, F, D}, random_layer(1, N, F, D).gates);
  m.write();
  for (const char* reason :
       {"a.mlp.gate.weight: the router has shape [4, 10, 1], not [N, D]",
        "b.mlp.router.weight: looks like a router", "c.mlp.experts.w1: looks like experts"}) {
    check_refused({m.path()}, reason);
    check_refused({m.path(), "--require-angle", "1"}, reason);
  }
}

TEST_CASE("shards that names promise") {
  model_folder m;
  SUBCASE("one of three is not there") {
    m.write("model-00001-of-00003.safetensors");
    model_folder other({2});
    other.builder.write(m.folder / "model-00003-of-00003.safetensors");
    check_covers(m.path(), 1, "3 of 3 layers, 12 of 12 rows",
                 {"model-00002-of-00003.safetensors: not here, though the name of "
                  "model-00001-of-00003.safetensors says that it is one of 3 shards"});
    CHECK(contains(run({m.path()}).out, "missing: model-00002-of-00003.safetensors"));
    CHECK(only_unmatched({m.path()})["what"] == "missing");
  }
  SUBCASE("the file itself says that it is one of three") {
    m.write("model-00001-of-00003.safetensors");
    check_covers(m.folder / "model-00001-of-00003.safetensors", 1, "2 of 2 layers, 8 of 8 rows",
                 {"says that it is one of 3 shards"});
  }
}

TEST_CASE("what an index leaves out") {
  model_folder m;
  m.write("model-00001-of-00002.safetensors");
  json map = json::object();
  const mpi_router::safetensors_file shard(m.folder / "model-00001-of-00002.safetensors");
  for (const auto& t : shard.tensors()) {
    map[t.name()] = "model-00001-of-00002.safetensors";
  }
  const auto index = [&] {
    write_bytes(m.folder / "model.safetensors.index.json", json{{"weight_map", map}}.dump());
  };
  SUBCASE("a layer that a shard holds") {
    std::erase_if(map.get_ref<json::object_t&>(),
                  [](const auto& entry) { return contains(entry.first, "layers.1."); });
    index();
    std::filesystem::rename(m.folder / "model-00001-of-00002.safetensors", m.folder / "model.safetensors");
    for (auto& [name, file] : map.items()) {
      file = "model.safetensors";
    }
    index();
    check_covers(m.path(), 1, "1 of 2 layers, 4 of 8 rows", {"1 layer (4 rows) was not looked at"});
    const auto entry = only_unmatched({m.path()});
    CHECK(contains(entry["reason"], "5 tensors of the shards are not in the index"));
    CHECK(contains(entry["reason"], "they hold 1 whole MoE layer"));
  }
  SUBCASE("a shard, there or not") {
    index();
    check_covers(m.path(), 1, "2 of 2 layers, 8 of 8 rows", {"model-00002-of-00002.safetensors: not here"});
    model_folder({2}).builder.write(m.folder / "model-00002-of-00002.safetensors");
    check_covers(
        m.path(), 1, "2 of 2 layers, 8 of 8 rows",
        {"model-00002-of-00002.safetensors: not read: model.safetensors.index.json does not name it"});
  }
  SUBCASE("a file that is no shard of the model is a remark") {
    std::filesystem::rename(m.folder / "model-00001-of-00002.safetensors", m.folder / "model.safetensors");
    for (auto& [name, file] : map.items()) {
      file = "model.safetensors";
    }
    index();
    model_folder({2}).builder.write(m.folder / "consolidated.safetensors");
    check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
    CHECK(contains(run({m.path()}).out, "not used: consolidated.safetensors: not read"));
  }
}

TEST_CASE("what a config.json promises") {
  const auto check = [](std::initializer_list<int> held, json config, int status, const std::string& counts,
                        const std::vector<std::string>& words = {}) {
    CAPTURE(config.dump());
    const model_folder m(held);
    m.write();
    m.config(config);
    check_covers(m.path(), status, counts, words);
    CHECK(contains(run({m.folder / "model.safetensors"}).out, counts));
  };
  const auto whole = "2 of 2 layers, 8 of 8 rows";
  const auto short_by_one = "2 of 3 layers, 8 of 12 rows";
  const std::string layer_2 = "config.json: says that layer 2 has 4 experts each, and it is not here";
  check({0, 1}, {{"num_hidden_layers", 2}, {"num_experts", 4}}, 0, whole);
  check({0, 1}, {{"num_hidden_layers", 3}, {"num_experts", 4}}, 1, short_by_one, {layer_2});
  check({0, 1}, {{"num_hidden_layers", 3}, {"num_local_experts", 4}}, 1, short_by_one, {layer_2});
  check({0, 1}, {{"text_config", {{"num_hidden_layers", 3}, {"n_routed_experts", 4}}}}, 1, short_by_one,
        {layer_2});
  check({0, 1}, {{"num_hidden_layers", 5}, {"num_experts", 4}}, 1, "2 of 5 layers, 8 of 20 rows",
        {"says that layers 2-4 have 4 experts each, and they are not here"});
  // Which of the layers have experts.
  check({1, 2}, {{"num_hidden_layers", 3}, {"n_routed_experts", 4}, {"first_k_dense_replace", 1}}, 0, whole);
  check({1, 3}, {{"num_hidden_layers", 4}, {"num_experts", 4}, {"decoder_sparse_step", 2}}, 0, whole);
  check({0, 2}, {{"num_hidden_layers", 3}, {"num_experts", 4}, {"mlp_only_layers", {1}}}, 0, whole);
  check({0, 2}, {{"num_hidden_layers", 4}, {"n_routed_experts", 4}, {"moe_layer_freq", 2}}, 0, whole);
  check({1, 2}, {{"num_hidden_layers", 3}, {"n_routed_experts", 4}, {"moe_layer_freq", {0, 1, 1}}}, 0, whole);
  check({1, 2},
        {{"num_hidden_layers", 3}, {"num_experts", 4}, {"mlp_layer_types", {"dense", "sparse", "sparse"}}}, 0,
        whole);
  check(
      {1, 3},
      {{"num_hidden_layers", 4}, {"num_experts", 4}, {"expert_layer_period", 2}, {"expert_layer_offset", 1}},
      0, whole);
  check({0, 1}, {{"num_hidden_layers", 4}, {"num_experts", 4}, {"decoder_sparse_step", 2}}, 1,
        "2 of 3 layers, 8 of 12 rows", {"layer 3 has 4 experts"});
  // A rule that is not known here says nothing, and neither does a dense model's config.
  check({0, 1}, {{"num_hidden_layers", 9}, {"num_experts", 4}, {"moe_every_n_layers", 5}}, 0, whole);
  check({0, 1}, {{"num_hidden_layers", 9}}, 0, whole);
  // Fewer experts than promised, in layers that are there.
  check({0, 1}, {{"num_hidden_layers", 2}, {"num_experts", 6}}, 1, "2 of 2 layers, 8 of 12 rows",
        {"config.json says 6 experts, and 4 are here"});
  check({0, 1}, {{"num_hidden_layers", 2}, {"num_experts", 4}, {"hidden_size", 77}}, 1, whole,
        {"seems to be of another model: its hidden dimension is 77, the routers' is 10"});
}

TEST_CASE("a config.json that is broken is a remark") {
  const model_folder m;
  m.write();
  for (const char* text :
       {"", "{", "[]", "{\"num_hidden_layers\":", "{\"num_hidden_layers\":\"many\",\"num_experts\":[4]}"}) {
    CAPTURE(text);
    write_bytes(m.folder / "config.json", text);
    check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
  }
}

TEST_CASE("gates and routers with a scale beside them were cast without it") {
  for (const char* scale : {"weight_scale_inv", "weight_scale", "scale", "scales", "weight.absmax"}) {
    CAPTURE(scale);
    model_folder m({0, 1});
    m.builder.add<float>(layer_prefix(1) + "mlp.experts.2.gate_proj." + scale, {1}, {1});
    m.write();
    check_covers(m.path(), 1, "1 of 2 layers, 4 of 8 rows", {"1 layer (4 rows) was not looked at"});
    CHECK(
        contains(only_unmatched({m.path()})["reason"], std::string("gate_proj.") + scale + "' is beside it"));
  }
  for (const char* harmless : {"input_scale", "output_scale", "bias"}) {
    CAPTURE(harmless);
    model_folder m({0, 1});
    m.builder.add<float>(layer_prefix(1) + "mlp.experts.2.gate_proj." + harmless, {1}, {1});
    m.write();
    check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
  }
  checkpoint_builder fused;
  add_layer(fused, "", random_layer(1, N, F, D));
  fused.add<float>("mlp.experts.gate_proj_scale", {N, 1, F}, std::vector<float>(N * F));
  const temporary_folder folder;
  fused.write(folder / "m.safetensors");
  check_refused({folder / "m.safetensors"},
                "'mlp.experts.gate_proj_scale' is beside it: it was cast without its scales");
}

TEST_CASE("rows without an expert are named; the experts that are there are certified") {
  model_folder m({0});
  auto layer = random_layer(7, 6, F, D);
  m.builder.add<bf16>(layer_prefix(1) + "mlp.gate.weight", {6, D}, layer.router);
  for (index_t e = 0; e < N; ++e) {
    const auto begin = layer.gates.begin() + e * F * D;
    m.builder.add<bf16>(layer_prefix(1) + "mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                        {begin, begin + F * D});
  }
  m.write();
  check_covers(m.path(), 1, "2 of 2 layers, 8 of 10 rows", {"rows 4-5 of the router have no expert"});
  const auto document = run_json({m.path()});
  CHECK(document["layers"][1]["num_experts"] == N);
  CHECK(document["layers"][1]["router_rows"] == 6);
  CHECK(document["layers"][1]["experts"].size() == N);
  // A config.json that has so many experts and no more makes them identity experts: nothing is missing.
  m.config({{"num_hidden_layers", 2}, {"n_routed_experts", 4}});
  check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
  CHECK(contains(run({m.path()}).out, "rows 4-5 of the router have no expert; config.json says 4 experts"));
}

TEST_CASE("a router that is stored [D, N]") {
  const auto layer = random_layer(8, N, F, D);
  std::vector<float> turned(N * D);
  for (index_t e = 0; e < N; ++e) {
    for (index_t d = 0; d < D; ++d) {
      turned[static_cast<std::size_t>(d * N + e)] = layer.router[static_cast<std::size_t>(e * D + d)];
    }
  }
  const temporary_folder folder;
  checkpoint_builder original;
  add_layer(original, "", layer);
  original.write(folder / "original.safetensors");
  checkpoint_builder builder;
  builder.add<float>("mlp.router.weight", {D, N}, turned);
  builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, layer.gates);
  const std::string path = folder / "m.safetensors";
  builder.write(path);
  check_refused(
      {path, "--router-layout", "nd"},
      "the router has shape [10, 4] and there are 4 experts: it seems stored [D, N] (--router-layout dn)");
  CHECK(numbers_of(run_json({path})) == numbers_of(run_json({folder / "original.safetensors"})));
  const auto document = run_json({path, "--router-layout", "dn"});
  CHECK(numbers_of(document) == numbers_of(run_json({folder / "original.safetensors"})));
  CHECK(document["layers"][0]["router_layout"] == "dn");
  CHECK(contains(run({path, "--router-layout", "dn"}).out, "[D, N]"));
  check_refused({folder / "original.safetensors", "--router-layout", "dn"}, "it seems stored [N, D]");
  check_refused({path, "--router-layout", "x"}, "--router-layout");

  // Written again, a column a row.
  REQUIRE(run({"recondition", path, folder / "out.safetensors", "--router-layout", "dn"}).status == 0);
  REQUIRE(run({"recondition", folder / "original.safetensors", folder / "expected.safetensors"}).status == 0);
  CHECK(numbers_of(run_json({folder / "out.safetensors", "--router-layout", "dn"})) ==
        numbers_of(run_json({folder / "expected.safetensors"})));
}

TEST_CASE("a router of three axes beside experts with tensors of their own") {
  model_folder m({});
  const auto layer = random_layer(9, N, F, D);
  m.builder.add<bf16>("x.mlp.gate.weight", {2, N / 2, D}, layer.router);
  for (index_t e = 0; e < N; ++e) {
    m.builder.add<bf16>("x.mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                        std::vector<float>(F * D, 1));
  }
  m.write();
  check_refused({m.path()}, "x.mlp.gate.weight: the router has shape [2, 2, 10], not [N, D]");
}

TEST_CASE("experts of different widths, each on its own") {
  const auto wide = random_layer(10, 2, 6, D);
  const auto narrow = random_layer(11, 2, 3, D);
  const auto model = [&](bool first_wide, bool second_wide) {
    checkpoint_builder builder;
    builder.add<float>("mlp.gate.weight", {2, D}, wide.router);
    for (const auto& [e, is_wide] : {std::pair{0, first_wide}, {1, second_wide}}) {
      const auto& from = is_wide ? wide : narrow;
      const auto begin = from.gates.begin() + e * from.f * D;
      builder.add<bf16>("mlp.experts." + std::to_string(e) + ".gate_proj.weight", {from.f, D},
                        {begin, begin + from.f * D});
    }
    const temporary_folder folder;
    builder.write(folder / "m.safetensors");
    check_covers(folder / "m.safetensors", 0, "1 of 1 layers, 2 of 2 rows");
    return run_json({folder / "m.safetensors"})["layers"][0];
  };
  auto mixed = model(true, false);
  CHECK(mixed["ffn_dim"].is_null());
  CHECK(mixed["experts"][0]["ffn_dim"] == 6);
  CHECK(mixed["experts"][1]["ffn_dim"] == 3);
  for (auto& e : mixed["experts"]) {
    e.erase("ffn_dim");
  }
  CHECK(mixed["experts"][0] == model(true, true)["experts"][0]);
  CHECK(mixed["experts"][1] == model(false, false)["experts"][1]);
}

TEST_CASE("optimizer state and adapters are no layers of the model") {
  model_folder m;
  for (const char* state : {"exp_avg.", "exp_avg_sq.", "optimizer.state.momentum_buffer."}) {
    add_linears(m.builder, state + layer_prefix(1), random_layer(5, N, F, D));
  }
  for (const char* part : {"lora_A", "lora_B"}) {
    m.builder.add<bf16>(
        "base_model.model.model.layers.1.mlp.experts.0.gate_proj." + std::string(part) + ".weight", {2, D},
        std::vector<float>(2 * D));
  }
  m.write();
  check_covers(m.path(), 0, "2 of 2 layers, 8 of 8 rows");
  const auto document = run_json({m.path()});
  CHECK(document["layers"].size() == 2);
  REQUIRE(document["unmatched"].size() == 2);
  CHECK(document["unmatched"][0]["what"] == "set aside");
  CHECK(contains(document["unmatched"][0]["reason"], "an adapter (LoRA"));
  CHECK(contains(document["unmatched"][0]["name"], " and 1 more"));
  CHECK(contains(document["unmatched"][1]["reason"], "optimizer state"));
  CHECK(contains(document["unmatched"][1]["name"], " and 14 more"));
}

TEST_CASE("one layout rule: the shapes, the architecture, torch's Linear, or the user") {
  const temporary_folder folder;
  const std::string path = folder / "model.safetensors";
  const auto write = [&](const char* router, const char* gate, std::vector<index_t> shape) {
    std::filesystem::remove(folder / "config.json");
    checkpoint_builder builder;
    const auto numbers = random_layer(3, N, 8, 8);
    builder.add<float>(router, {N, 8}, numbers.router);
    builder.add<bf16>(gate, std::move(shape), numbers.gates);
    builder.write(path);
  };
  const auto architecture = [&](const char* name) {
    write_bytes(folder / "config.json", json{{"architectures", {name}}}.dump());
  };
  const auto known = [&](std::vector<std::string> flags = {}) {
    flags.insert(flags.begin(), path);
    const auto layer = run_json(flags)["layers"][0];
    return layer["layout"].get<std::string>() + " by " + layer["layout_known_by"].get<std::string>();
  };
  SUBCASE("D = 2F, whatever the family") {
    struct {
      const char* router;
      const char* gate;
      const char* architecture;
      const char* layout;
    } const families[] = {
        {"mlp.router.weight", "mlp.experts.gate_up_proj", "GptOssForCausalLM", "nd2f-interleaved"},
        {"feed_forward.router.weight", "feed_forward.experts.gate_up_proj", "Llama4ForCausalLM",
         "nd2f-concatenated"},
        {"block_sparse_moe.router.layer.weight", "block_sparse_moe.input_linear.weight",
         "GraniteMoeForCausalLM", "n2fd-concatenated"},
        {"mlp.gate.weight", "mlp.experts.gate_up_proj", "Qwen3_5MoeForCausalLM", "n2fd-concatenated"},
    };
    for (const auto& f : families) {
      CAPTURE(f.gate);
      write(f.router, f.gate, {N, 8, 8});
      check_refused({path}, "of shape [4, 8, 8] may be");
      check_refused({path}, std::string("--layout ") + f.layout);
      CHECK(known({"--layout", f.layout}) == std::string(f.layout) + " by --layout");
      architecture("SomethingElse");
      check_refused({path}, "say which");
      architecture(f.architecture);
      CHECK(known() == std::string(f.layout) + " by config.json");
      CHECK(contains(run({path}).out, "by config.json"));
    }
  }
  SUBCASE("F = D in one tensor for all") {
    write("mlp.router.weight", "mlp.experts.gate_proj", {N, 8, 8});
    check_refused({path}, "may be [N, F, D] (--layout nfd) or [N, D, F] (--layout ndf): say which");
    CHECK(known({"--layout", "ndf"}) == "ndf by --layout");
    write("router.layer.weight", "experts.mlp.w1", {N * 8, 8});
    check_refused({path}, "say which");
    architecture("DbrxForCausalLM");
    CHECK(known() == "nfd by config.json");
  }
  SUBCASE("F = D in a Linear of one expert") {
    checkpoint_builder builder;
    add_linears(builder, "", random_layer(3, N, 8, 8));
    builder.write(path);
    CHECK(known() == "nfd by torch's Linear");
    CHECK(known({"--layout", "ndf"}) == "ndf by --layout");
  }
  SUBCASE("names that the user gives ask the same") {
    write("a", "b", {N, 8, 8});
    check_refused({path, "--router", "a", "--gate", "b"}, "say which");
    CHECK(known({"--router", "a", "--gate", "b", "--layout", "nfd"}) == "nfd by --layout");
  }
}

TEST_CASE("with names that the user gives, the rest is still named") {
  model_folder m;
  m.builder.add<bf16>("blk.0.route", {N, D}, random_layer(1, N, F, D).router);
  m.builder.add<bf16>("blk.0.a", {N, F, D}, random_layer(1, N, F, D).gates);
  m.write();
  check_covers(m.path(), 1, "1 of 3 layers, 4 of 12 rows", {"2 layers (8 rows) were not looked at"},
               {"--router", "blk.{layer}.route", "--gate", "blk.{layer}.a"});
}

TEST_CASE("an angle that asks nothing is said; a folder keeps its name behind a slash") {
  model_folder m;
  m.write();
  const std::string said = "every row is within 1.5708 rad of every direction";
  const auto degrees = run({m.path() + "/", "--require-angle", "28"});
  CHECK(degrees.status == 0);
  CHECK(contains(degrees.err, said));
  CHECK(
      contains(degrees.out, "\n" + std::filesystem::path(m.path()).filename().string() + " model.layers.0"));
  CHECK_FALSE(contains(run({m.path(), "--require-angle", "1.5"}).err, said));
}

TEST_CASE("two checkpoints, one of them incomplete") {
  model_folder m;
  m.write();
  model_folder other;
  other.builder.add<bf16>("model.layers.2.mlp.router.weight", {N, D}, random_layer(1, N, F, D).router);
  other.write();
  const auto result = run({m.path(), other.path(), "--require-angle", "1.6"});
  CHECK(result.status == 1);
  CHECK(contains(result.err, "4 of 5 layers, 16 of 20 rows are certified"));
}

TEST_CASE("of several checkpoints, one that cannot be read is named and the others are done") {
  model_folder m;
  m.write();
  const temporary_folder folder;
  const std::string broken = folder / "broken.safetensors";
  write_bytes(broken, "no header");
  for (const auto& paths : {std::vector{m.path(), broken}, std::vector{broken, m.path()}}) {
    auto arguments = paths;
    arguments.insert(arguments.end(), {"--json", "-"});
    const auto result = run(arguments);
    CHECK(result.status == 2);
    CHECK(contains(result.err, "broken.safetensors"));
    const json document = json::parse(result.out);
    CHECK(document["layers"].size() == 2);
    CHECK(document["coverage"]["complete"] == false);
    REQUIRE(document["unmatched"].size() == 1);
    CHECK(document["unmatched"][0]["what"] == "missing");
    CHECK(contains(document["unmatched"][0]["reason"].get<std::string>(), "could not be read: "));
    arguments = paths;
    arguments.insert(arguments.end(), {"--require-angle", "1.6"});
    CHECK(run(arguments).status == 2);
    arguments.back() = "--list";
    arguments.erase(arguments.end() - 2);
    const auto listed = run(arguments);
    CHECK(listed.status == 2);
    CHECK(contains(listed.out, "2 layers"));
  }
  const auto none = run({broken, folder / "missing.safetensors"});
  CHECK(none.status == 2);
  CHECK(none.out.empty());
  CHECK(contains(none.err, "broken.safetensors"));
  CHECK(contains(none.err, "missing.safetensors"));
}

TEST_CASE("the page says what the answer covers") {
  model_folder m({0});
  m.builder.add<bf16>("model.layers.1.mlp.router.weight", {N, D}, random_layer(1, N, F, D).router);
  m.write();
  REQUIRE(run({m.path(), "--report", m.folder / "page"}).status == 0);
  CHECK(contains(read_bytes(m.folder / "page/index.html"), "1 of 2 layers, 4 of 8 rows were looked at"));
}

TEST_CASE("cosines without a certificate are marked and enter no mean; odd experts are listed by number") {
  // Of the second expert all directions are principal; the third and the fourth have none.
  layer_data layer{4, 2, 3, {1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0}, {3, 0, 0, 0, 1, 0,  //
                                                                   2, 0, 0, 0, 2, 0,  //
                                                                   1, 0, 0, 0, 2, 0,  //
                                                                   0, 0, 0, 0, 0, 0}};
  layer.router[4] = 1;
  const temporary_folder folder;
  checkpoint_builder builder;
  add_layer<float>(builder, "", layer);
  builder.write(folder / "m.safetensors");
  const auto table = run({folder / "m.safetensors"}).out;
  CAPTURE(table);
  CHECK(contains(table, "; 2 degenerate: 3 zero_image, 2 zero_row; no certificate: 1"));
  const auto row = table.find("\n       1  ");
  REQUIRE(row != table.npos);
  CHECK(std::count(table.begin() + static_cast<std::ptrdiff_t>(row) + 1,
                   table.begin() + static_cast<std::ptrdiff_t>(table.find('\n', row + 1)), '?') == 2);
  CHECK(contains(last_line(table.substr(0, table.rfind("; 2 degenerate"))),
                 "   1.000   1.000 "));  // of the first
  CHECK(contains(run({folder / "m.safetensors", "--summary"}).out, "2 degenerate: 3 zero_image, 2 zero_row"));
  REQUIRE(run({folder / "m.safetensors", "--report", folder / "page"}).status == 0);
  const auto page = read_bytes(folder / "page/index.html");
  CHECK(contains(page, "<tr><td>0<td>3<td>0.333<td>1.0000<td>1.0000<td>"));
  CHECK(page.find("?<td>", page.find("<tr><td>1<td>")) < page.find("<tr><td>2<td>"));
}

TEST_CASE("--list says what is there and computes nothing") {
  model_folder m({0, 3});
  m.write();
  const auto listed = run({m.path(), "--list"});
  CHECK(listed.status == 0);
  CHECK(contains(listed.out, "model.layers.3.mlp: 4 experts, F = 6, D = 10"));
  CHECK(last_line(listed.out) == "2 layers, 8 rows would be looked at");
  CHECK_FALSE(contains(listed.out, "cosine"));
  const auto document = run_json({m.path(), "--list"});
  REQUIRE(document["layers"].size() == 2);
  CHECK(document["layers"][1]["part"] == "gate");
  CHECK(document["layers"][1]["latent"].is_null());
  CHECK(document["layers"][1]["selects_by_table"] == false);
  CHECK(document["layers"][1]["experts"].empty());
}

TEST_CASE("--layers and --sample: a part, that is counted as one, with the numbers of the whole") {
  model_folder m({0, 1, 2, 7});
  m.write();
  const auto whole = numbers_of(run_json({m.path()}));
  check_covers(m.path(), 0, "2 of 4 layers, 8 of 16 rows", {"; 2 layers (8 rows in all) not asked for"},
               {"--layers", "1-2"});
  const auto some = numbers_of(run_json({m.path(), "--layers", "7,1"}));
  REQUIRE(some.size() == 2);
  CHECK(some[0] == whole[1]);
  CHECK(some[1] == whole[3]);

  check_covers(m.path(), 0, "4 of 4 layers, 8 of 16 rows", {"; 8 rows not asked for"}, {"--sample", "2"});
  const auto sampled = run_json({m.path(), "--sample", "2"});
  const auto& experts = sampled["layers"][0]["experts"];
  REQUIRE(experts.size() == 2);
  CHECK(experts[0]["expert"] == 1);
  CHECK(experts[1]["expert"] == 3);
  CHECK(experts[1] == run_json({m.path()})["layers"][0]["experts"][3]);
  CHECK(sampled["coverage"]["complete"] == true);
  CHECK(sampled["coverage"]["rows_not_asked_for"] == 8);
  CHECK(numbers_of(run_json({m.path(), "--sample", "100"})) == whole);
  CHECK(numbers_of(run_json({m.path(), "--threads", "1"})) == whole);

  check_refused({m.path(), "--layers", "5"}, "no layer has a number of --layers 5");
  check_refused({m.path(), "--layers", "1,5"}, "no layer has the number 5 of --layers 1,5");
  for (const std::string option : {"--layers", "--of", "--json", "--lines", "--report", "--layout"}) {
    check_refused({m.path(), option, ""}, option + ": an empty word");
  }
  for (const char* list : {"", "x", "3-1", "1,,2", "-1"}) {
    CAPTURE(list);
    check_refused({m.path(), std::string("--layers=") + list}, "--layers");
  }
  check_refused({m.path(), "--sample", "0"}, "--sample must be at least 1");
  check_refused({m.path(), "--threads", "-1"}, "--threads");
}

TEST_CASE("experts that see a latent, that have no gate, or that a table of tokens chooses") {
  const auto original = random_layer(70, N, F, D);
  const auto numbers = [](const model_folder& m) { return numbers_of(run_json({m.path()})); };
  {
    // A P of gates [F, L] and P [L, D], against a model that has the products themselves.
    constexpr index_t L = 4;
    const auto narrow = random_layer(71, N, F, L);
    const auto p = random_layer(72, 1, L, D).gates;
    model_folder latent({});
    model_folder product({});
    for (auto* m : {&latent, &product}) {
      m->builder.add<bf16>("x.0.mlp.gate.weight", {N, D}, original.router);
    }
    latent.builder.add<bf16>("x.0.mlp.fc1_latent_proj.weight", {L, D}, p);
    for (index_t e = 0; e < N; ++e) {
      std::vector<double> whole(static_cast<std::size_t>(F * D));
      std::vector<float> own;
      for (index_t f = 0; f < F; ++f) {
        for (index_t l = 0; l < L; ++l) {
          own.push_back(narrow.gate(e, f, l));
          for (index_t d = 0; d < D; ++d) {
            whole[static_cast<std::size_t>(f * D + d)] +=
                static_cast<double>(own.back()) * static_cast<double>(p[static_cast<std::size_t>(l * D + d)]);
          }
        }
      }
      const auto name = "x.0.mlp.experts." + std::to_string(e) + ".gate_proj.weight";
      latent.builder.add<bf16>(name, {F, L}, own);
      std::vector<std::byte> bytes(whole.size() * sizeof(double));
      std::memcpy(bytes.data(), whole.data(), bytes.size());
      product.builder.add_bytes(name, dtype::f64, {F, D}, bytes);
    }
    latent.write();
    product.write();
    const auto a = run_json({latent.path()});
    const auto b = run_json({product.path()});
    CHECK(a["layers"][0]["latent"] == "x.0.mlp.fc1_latent_proj.weight");
    CHECK(contains(run({latent.path()}).out, "experts see P x of 4 dimensions"));
    for (std::size_t e = 0; e < N; ++e) {
      const double of_latent = a["layers"][0]["experts"][e]["sigma1"];
      CHECK(of_latent ==
            doctest::Approx(b["layers"][0]["experts"][e]["sigma1"].get<double>()).epsilon(1e-12));
      CHECK(a["layers"][0]["experts"][e]["steps"] == b["layers"][0]["experts"][e]["steps"]);
    }
  }
  {
    model_folder gate({});
    model_folder up({});
    for (const auto& [m, name] : {std::pair{&gate, "gate_proj"}, {&up, "up_proj"}}) {
      m->builder.add<bf16>("x.0.mixer.gate.weight", {N, D}, original.router);
      for (index_t e = 0; e < N; ++e) {
        const auto begin = original.gates.begin() + e * F * D;
        m->builder.add<bf16>("x.0.mixer.experts." + std::to_string(e) + "." + name + ".weight", {F, D},
                             {begin, begin + F * D});
      }
      m->write();
    }
    CHECK(numbers(up) == numbers(gate));
    CHECK(run_json({up.path()})["layers"][0]["part"] == "up");
    CHECK(contains(run({up.path()}).out, "no gates: the up projections take their place"));
  }
  {
    model_folder m({});
    m.builder.add<bf16>("layers.0.ffn.gate.weight", {N, D}, original.router);
    m.builder.add_raw("layers.0.ffn.gate.tid2eid", dtype::i64, {8, 2});
    for (index_t e = 0; e < N; ++e) {
      const auto begin = original.gates.begin() + e * F * D;
      m.builder.add<bf16>("layers.0.ffn.experts." + std::to_string(e) + ".w1.weight", {F, D},
                          {begin, begin + F * D});
    }
    m.write();
    CHECK(run_json({m.path()})["layers"][0]["selects_by_table"] == true);
    CHECK(contains(run({m.path()}).out, "selection not by rows"));
  }
}

}  // namespace test_coverage
