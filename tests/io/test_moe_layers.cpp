// The layers of a checkpoint as a library gives them: every family, type and layout, and why something is in
// no layer.
#include "families_page.hpp"
#include "searched.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <array>

namespace test_moe_layers {
using namespace io_test;

namespace {

using namespace mpi_router;

/// The views show the numbers of the original, by all three ways.
void check_shows(const moe_layer& layer, const layer_data& original) {
  CHECK(layer.shape() == expert_shape{original.n, original.f, original.d});
  CHECK(layer.router_rows == original.n);
  CHECK(layer.is_uniform());
  const auto same_gate = [&](const auto& a, index_t e) {
    bool same = a.rows() == original.f && a.cols() == original.d;
    for (index_t f = 0; same && f < original.f; ++f) {
      for (index_t d = 0; d < original.d; ++d) {
        same = same && widen<double>(a(f, d)) == static_cast<double>(original.gate(e, f, d));
      }
    }
    return same;
  };
  for (index_t e = 0; e < original.n; ++e) {
    CHECK(
        visit_gate(layer.gates[static_cast<std::size_t>(e)], [&](const auto& a) { return same_gate(a, e); }));
  }
  visit_experts(layer, [&](const auto& experts) {
    CHECK(experts.shape() == layer.shape());
    for (index_t e = 0; e < original.n; ++e) {
      CHECK(same_gate(experts[e], e));
    }
  });
  CHECK(visit_router(layer, [&](const auto& router) {
    bool same = router.rows() == original.n && router.cols() == original.d;
    for (index_t e = 0; same && e < original.n; ++e) {
      for (index_t d = 0; d < original.d; ++d) {
        const auto expected = original.router[static_cast<std::size_t>(e * original.d + d)];
        same = same && widen<double>(router(e, d)) == static_cast<double>(expected);
      }
    }
    return same;
  }));
}

/// A layer as torch's Linear modules store it, a tensor an expert.
void add_linears(checkpoint_builder& builder, const std::string& prefix, const layer_data& l) {
  builder.add<bf16>(prefix + "mlp.gate.weight", {l.n, l.d}, l.router);
  for (index_t e = 0; e < l.n; ++e) {
    builder.add<bf16>(prefix + "mlp.experts." + std::to_string(e) + ".gate_proj.weight", {l.f, l.d},
                      one_expert(l, e));
  }
}

/// The same number of elements along the axes of any layout.
std::vector<index_t> shape_in(gate_layout layout) {
  switch (layout) {
    case gate_layout::nfd: return {N, F, D};
    case gate_layout::ndf: return {N, D, F};
    case gate_layout::n2fd_concatenated:
    case gate_layout::n2fd_interleaved:
    case gate_layout::n2fd_up_first: return {N, 2 * F, D};
    default: return {N, D, 2 * F};
  }
}
std::vector<float> arranged(const layer_data& l, gate_layout layout) {
  switch (layout) {
    case gate_layout::nfd: return l.gates;
    case gate_layout::ndf: return ndf(l);
    case gate_layout::n2fd_concatenated: return n2fd_concatenated(l);
    case gate_layout::n2fd_interleaved: return n2fd_interleaved(l);
    case gate_layout::nd2f_concatenated: return nd2f_concatenated(l);
    case gate_layout::nd2f_interleaved: return nd2f_interleaved(l);
    case gate_layout::n2fd_up_first: return n2fd_up_first(l);
    case gate_layout::nd2f_up_first: return nd2f_up_first(l);
  }
  return {};
}

/// A config.json of an architecture of the family that has this layout, where it has another of the same
/// axes, or where others have its names.
std::optional<std::string> config_for(const model_family& family, gate_layout layout) {
  const bool alone = std::ranges::none_of(
      family.layouts, [&](auto other) { return other != layout && shape_in(other) == shape_in(layout); });
  const auto known = std::ranges::find(family.architectures, layout, &architecture_layout::layout);
  REQUIRE((alone || known != family.architectures.end()));
  if (alone && (family.beside.empty() || known == family.architectures.end())) {
    return std::nullopt;
  }
  const bool is_any = known->architecture.empty();
  return json{{"model_type", is_any ? "any_moe" : known->architecture}}.dump();
}

/// The axes of one expert's own tensor.
std::vector<index_t> shape_of_one(gate_layout layout) {
  const auto shape = shape_in(layout);
  return {shape[1], shape[2]};
}
/// A layer of expert e alone.
layer_data one_layer(const layer_data& l, index_t e) {
  layer_data one{1, l.f, l.d, l.router, one_expert(l, e)};
  return one;
}
std::vector<float> transposed(const std::vector<float>& m, index_t rows, index_t cols) {
  std::vector<float> out;
  for (index_t j = 0; j < cols; ++j) {
    for (index_t i = 0; i < rows; ++i) {
      out.push_back(m[static_cast<std::size_t>(i * cols + j)]);
    }
  }
  return out;
}

}  // namespace

TEST_CASE("every family, under its own names and in each of its layouts") {
  const auto original = random_layer(40, N, F, D);
  for (const auto& family : model_families()) {
    for (const auto layout : family.layouts) {
      CAPTURE(family.name);
      CAPTURE(to_string(layout));
      using detail::moe::substituted;
      const std::string prefix = "model.layers.3.";
      const auto gate = substituted(family.gate, "{layer}", prefix);
      checkpoint_builder builder;
      const bool turned = family.layout_of_router == router_layout::dn;
      builder.add<float>(substituted(family.router, "{layer}", prefix),
                         turned ? std::vector{D, N} : std::vector{N, D},
                         turned ? transposed(original.router, N, D) : original.router);
      if (gate.find("{expert}") != gate.npos) {
        for (index_t e = 0; e < N; ++e) {
          builder.add<bf16>(substituted(gate, "{expert}", std::to_string(e)), shape_of_one(layout),
                            arranged(one_layer(original, e), layout));
        }
      } else {
        builder.add<bf16>(gate, shape_in(layout), arranged(original, layout));
      }
      if (!family.beside.empty()) {
        const searched alone(builder);
        CHECK((alone.found.empty() || alone.found[0].family != family.name));
      }
      const auto fc1 = gate.find("fc1");  // of gate and up, as fc2 tells
      if (!family.beside.empty() || (fc1 != gate.npos && family.part == expert_part::gate)) {
        const auto other = family.beside.empty() ? std::string(gate).replace(fc1, 3, "fc2")
                                                 : substituted(family.beside, "{layer}", prefix);
        const bool one_each = other.find("{expert}") != other.npos;
        if (!one_each) {
          builder.add<bf16>(other, {N, D, F}, original.gates);
        }
        for (index_t e = 0; one_each && e < N; ++e) {
          builder.add<bf16>(substituted(other, "{expert}", std::to_string(e)), {D, F},
                            one_expert(original, e));
        }
      }
      const auto config = config_for(family, layout);
      const searched s(builder, {}, config.value_or(""));
      REQUIRE(s.found.size() == 1);
      const bool is_assumed = layout == gate_layout::n2fd_concatenated && contains(gate, "w13");
      CHECK(s.found.omissions.size() == (is_assumed ? 1 : 0));
      const auto& layer = s.found[0];
      CHECK(layer.layout == layout);
      CHECK(layer.layout_known_by == (config && family.beside.empty() ? "config.json" : "its shape"));
      CHECK(layer.family == family.name);
      CHECK(layer.part == family.part);
      CHECK(layer.layout_of_router == family.layout_of_router);
      CHECK(layer.gate_name == gate);
      CHECK(layer.has_one_tensor_each() == (gate.find("{expert}") != gate.npos));
      CHECK(layer.name.starts_with("model.layers.3"));
      check_shows(layer, original);
    }
  }
}

TEST_CASE("where a name has gate and up or up alone, the down projection tells") {
  const auto original = random_layer(50, N, F, D);
  const std::string block = "decoder.layers.3.mlp.";
  for (const char* fc1 : {"experts.local_experts.{expert}.linear_fc1.weight",
                          "experts.linear_fc1.weight{expert}", "experts.experts.linear_fc1.weight"}) {
    for (const bool gated : {true, false}) {
      CAPTURE(fc1);
      CAPTURE(gated);
      using detail::moe::substituted;
      checkpoint_builder builder;
      builder.add<float>(block + "router.weight", {N, D}, original.router);
      const std::string name = block + fc1;
      const auto layout = gated ? gate_layout::n2fd_concatenated : gate_layout::nfd;
      const auto fc2 = std::string(name).replace(name.find("fc1"), 3, "fc2");
      if (name.find("{expert}") == name.npos) {
        builder.add<bf16>(name, shape_in(layout), arranged(original, layout));
        builder.add<bf16>(fc2, {N, D, F}, original.gates);
      }
      for (index_t e = 0; e < N && name.find("{expert}") != name.npos; ++e) {
        const auto number = std::to_string(e);
        builder.add<bf16>(substituted(name, "{expert}", number), shape_of_one(layout),
                          arranged(one_layer(original, e), layout));
        builder.add<bf16>(substituted(fc2, "{expert}", number), {D, F}, one_expert(original, e));
      }
      const searched s(builder);
      REQUIRE(s.found.size() == 1);
      CHECK(s.found.omissions.empty());
      CHECK(s.found[0].part == (gated ? expert_part::gate : expert_part::up));
      check_shows(s.found[0], original);
    }
  }
}

TEST_CASE("docs/families.md lists every family, as it is") {
  const auto page = read_bytes(MPIROUTER_TEST_DATA "/../../docs/families.md");
  CHECK(contains(page, families_table()));
}

TEST_CASE("every layout, named by the caller, also flattened to two axes") {
  const auto original = random_layer(41, N, F, D);
  for (const auto& [layout, name, meaning] : gate_layout_table) {
    CAPTURE(name);
    CHECK(to_string(layout) == name);
    CHECK(meaning_of(layout) == meaning);
    CHECK(gate_layout_from_string(name) == layout);
    auto shape = shape_in(layout);
    for (const bool flat : {false, true}) {
      checkpoint_builder builder;
      builder.add<f16>("a.0.way", {N, D}, original.router);
      builder.add<double>("a.0.in", flat ? std::vector{shape[0] * shape[1], shape[2]} : shape,
                          arranged(original, layout));
      const searched s(builder, {.patterns = name_patterns{"a.{layer}.way", "a.{layer}.in"},
                                 .layout = layout,
                                 .layout_of_router = router_layout::nd});
      REQUIRE(s.found.size() == 1);
      CHECK(s.found[0].family == "named by patterns");
      CHECK(s.found[0].layout_known_by == "layout");
    }
  }
  CHECK(!gate_layout_from_string("fnord"));
  CHECK(to_string(router_layout::dn) == "dn");
}

TEST_CASE("every type, and elements that the file does not align") {
  const auto original = random_layer(42, N, F, D);
  const auto check = [&]<class T>(T) {
    checkpoint_builder builder;
    builder.add<T>("mlp.gate.weight", {N, D}, original.router);
    for (index_t e = 0; e < N; ++e) {
      builder.add<T>("mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                     one_expert(original, e));
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], original);

    // The same bytes, one further on.
    const auto bytes = read_bytes(s.folder / "model.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    const temporary_folder folder;
    write_bytes(folder / "odd.safetensors",
                raw_file(bytes.substr(8, length) + " ", bytes.substr(8 + length)));
    const checkpoint odd(folder / "odd.safetensors");
    REQUIRE(!odd.tensors()[0]->template is_aligned<T>());
    const auto found = find_moe_layers(odd);
    REQUIRE(found.size() == 1);
    check_shows(found[0], original);
    CHECK(load_experts<T>(found[0]).view().num_experts() == N);
  };
  check(double{});
  check(float{});
  check(bf16{});
  check(f16{});
}

TEST_CASE("one tensor for all is seen where it is mapped") {
  checkpoint_builder builder;
  add_layer(builder, "", random_layer(43, N, F, D));
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  const auto* gates = s.model.find("mlp.experts.gate_proj");
  const auto* seen =
      visit_experts(s.found[0], [](const auto& experts) { return static_cast<const void*>(experts.data()); });
  CHECK(seen == gates->bytes().data());
}

TEST_CASE("a type that is not the stored one is refused") {
  checkpoint_builder builder;
  add_layer(builder, "", random_layer(43, N, F, D));
  const searched s(builder);
  CHECK(contains(message_of([&] { static_cast<void>(load_experts<float>(s.found[0])); }),
                 "is stored as BF16 and asked for as F32"));
  auto moved_from = load_experts<bf16>(s.found[0]);
  const auto moved = std::move(moved_from);
  CHECK(moved.view()[N - 1].rows() == F);
}

TEST_CASE("layers in natural order, as a range") {
  checkpoint_builder builder;
  for (const char* prefix : {"layers.10.", "layers.2.", "layers.1."}) {
    add_linears(builder, prefix, random_layer(44, N, F, D));
  }
  const searched s(builder);
  std::vector<std::string> names;
  for (const auto& layer : s.found) {
    names.push_back(layer.name);
  }
  CHECK(names == std::vector<std::string>{"layers.1.mlp", "layers.2.mlp", "layers.10.mlp"});
}

TEST_CASE("a transposed router is read where shapes force it, and proposed where the caller says otherwise") {
  const auto original = random_layer(45, N, F, D);
  checkpoint_builder builder;
  builder.add<float>("mlp.router.weight", {D, N}, transposed(original.router, N, D));
  builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, original.gates);
  CHECK(reason_of(searched(builder, {.patterns = {}, .layout = {}, .layout_of_router = router_layout::nd})) ==
        "the router has shape [10, 4] and there are 4 experts: it seems stored [D, N] (layout_of_router dn)");
  for (const auto asked : {std::optional<router_layout>(), std::optional(router_layout::dn)}) {
    const searched s(builder, {.patterns = {}, .layout = {}, .layout_of_router = asked});
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout_of_router == router_layout::dn);
    check_shows(s.found[0], original);
  }
}

TEST_CASE("stacks beside a router, under names that say nothing of experts") {
  const auto original = random_layer(53, N, F, D);
  const auto build = [&](std::vector<index_t> gate_shape, const std::vector<float>& gates) {
    checkpoint_builder builder;  // MaxText's, and a stack of another extent
    builder.add<float>("params.decoder.layers_3.moe_block.gate.kernel", {D, N},
                       transposed(original.router, N, D));
    builder.add<bf16>("params.decoder.layers_3.moe_block.wi_0", gate_shape, gates);
    builder.add<bf16>("params.decoder.layers_3.moe_block.wi_1", gate_shape,
                      std::vector<float>(gates.size(), 1.0F));
    builder.add<bf16>("params.decoder.layers_3.moe_block.wo", {N, F, D},
                      std::vector<float>(original.gates.size(), 1.0F));
    builder.add<float>("params.decoder.layers_3.moe_block.shared.wi_0", {N, D, F},
                       std::vector<float>(original.gates.size(), 1.0F));
    return builder;
  };
  auto whole = build({N, D, F}, ndf(original));
  const searched s(whole);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].gate_name == "params.decoder.layers_3.moe_block.wi_0");
  CHECK(s.found[0].layout == gate_layout::ndf);
  CHECK(s.found[0].layout_of_router == router_layout::dn);
  CHECK(s.found[0].family.starts_with("no known family"));
  check_shows(s.found[0], original);
  auto fewer = build({N - 1, D, F}, std::vector<float>(static_cast<std::size_t>((N - 1) * D * F), 1.0F));
  CHECK(contains(reason_of(searched(fewer)), "names do not tell which is the gate: "));  // what is left is wo
}

TEST_CASE("routers with an axis of one, and flat ones whose experts are counted") {
  const auto original = random_layer(50, N, F, D);
  for (const auto& shape : {std::vector<index_t>{1, N, D}, std::vector<index_t>{N * D}}) {
    checkpoint_builder builder;
    builder.add<float>("mlp.router.weight", shape, original.router);
    builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, original.gates);
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], original);
  }
}

TEST_CASE("a layout that the shape leaves open is asked for, or known by config.json") {
  const auto original = random_layer(46, N, D / 2, D);  // D = 2F
  checkpoint_builder builder;
  builder.add<float>("layers.0.mlp.router.weight", {N, D}, original.router);
  builder.add<bf16>("layers.0.mlp.experts.gate_up_proj", {N, D, D}, nd2f_interleaved(original));
  CHECK(
      reason_of(searched(builder)) ==
      "'layers.0.mlp.experts.gate_up_proj' of shape [4, 10, 10] may be [N, D, 2F], gate and up in turn "
      "(layout nd2f-interleaved) or [N, 2F, D], gate and up in turn (layout n2fd-interleaved) or [N, D, 2F], "
      "gate before up (layout nd2f-concatenated) or [N, 2F, D], gate before up (layout "
      "n2fd-concatenated): say which");
  const searched s(builder, {}, R"({"model_type": "gpt_oss"})");
  REQUIRE(s.found.size() == 1);
  CHECK(s.found[0].layout_known_by == "config.json");
  check_shows(s.found[0], original);

  const auto square = random_layer(47, N, D, D);
  checkpoint_builder linears;
  add_linears(linears, "", square);
  const searched t(linears);
  REQUIRE(t.found.size() == 1);
  CHECK(t.found[0].layout_known_by == "torch's Linear");
  check_shows(t.found[0], square);
}

TEST_CASE("no shape tells gate and up in turn from gate before up: names that both have are not enough") {
  const auto original = random_layer(51, N, F, D);
  for (const bool interleaved : {true, false}) {
    checkpoint_builder builder;
    builder.add<float>("layers.0.mlp.router.weight", {N, D}, original.router);
    builder.add<bf16>("layers.0.mlp.experts.gate_up_proj", {N, 2 * F, D},
                      interleaved ? n2fd_interleaved(original) : n2fd_concatenated(original));
    CHECK(contains(reason_of(searched(builder)),
                   "may be [N, 2F, D], gate and up in turn (layout n2fd-interleaved) or [N, 2F, D], gate "
                   "before up (layout n2fd-concatenated): say which"));
    const searched s(builder, {},
                     interleaved ? R"({"model_type": "gpt_oss"})" : R"({"model_type": "phimoe"})");
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout_known_by == "config.json");
    check_shows(s.found[0], original);
  }
}

TEST_CASE("a config.json that Python wrote may have numbers that JSON has not") {
  const std::string text =
      R"({"time_step_limit": [0.0, Infinity, -Infinity, NaN], "say": "\"NaN, Infinity\" \\", "model_type": "granitemoe",
          "hidden_size": 10, "quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 32]}})";
  const auto config = parse_model_config(text);
  CHECK(config.problem.empty());
  CHECK(config.is_called("granitemoe"));
  CHECK(config.hidden_dim == 10);
  const auto json = parse_python_json(text);
  CHECK(json["say"] == R"("NaN, Infinity" \)");
  CHECK(json["time_step_limit"][1].is_null());
  CHECK(parse_quantization(json).block_rows == 64);
  for (const char* none : {"Infinit", "{\"a\": Nan}", "[NaN", "\"", "{\"a\": \"\\", "NaNNaN"}) {
    CAPTURE(none);
    CHECK(parse_python_json(none).is_discarded());
  }
  checkpoint_builder builder;
  add_linears(builder, "model.layers.0.", random_layer(80, N, F, D));
  CHECK(searched(builder, {}, text).found.omissions.empty());
}

TEST_CASE("a square stack of Qwen3-VL's text model is as transformers 5 writes that alone") {
  const auto l = random_layer(78, N, D / 2, D);
  checkpoint_builder builder;
  builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
  builder.add<bf16>("layers.0.mlp.experts.gate_up_proj", {N, D, D}, n2fd_concatenated(l));
  const auto config = [](const char* type, const char* version) {
    return json{{"model_type", type},
                {"transformers_version", version},
                {"text_config", {{"model_type", "qwen3_vl_moe_text"}}}}
        .dump();
  };
  const searched s(builder, {}, config("qwen3_vl_moe_text", "5.17.0"));
  REQUIRE(s.found.size() == 1);
  check_shows(s.found[0], l);
  for (const auto& other : {config("qwen3_vl_moe_text", "4.57.0"), config("qwen3_vl_moe", "5.17.0")}) {
    CHECK(contains(reason_of(searched(builder, {}, other)), "say which"));
  }
}

TEST_CASE("a stack of gate and up that is square is as config.json's architecture has it") {
  const auto original = random_layer(52, N, D / 2, D);  // D = 2F
  for (const char* router : {"gate.weight", "router.classifier.weight", "gate.wg.weight"}) {
    checkpoint_builder builder;
    builder.add<float>(std::string("layers.0.mlp.") + router, {N, D}, original.router);
    builder.add<bf16>("layers.0.mlp.experts.gate_up_proj", {N, D, D}, n2fd_concatenated(original));
    CHECK(contains(reason_of(searched(builder)), "say which"));
    for (const char* model : {"mistral4", "longcat_flash", "hunyuan_v1_moe", "dots1", "minimax_m2",
                              "glm_moe_dsa", "exaone_moe", "solar_open", "axk1", "cohere2_moe", "afmoe",
                              "laguna", "hy_v3", "mimo_v2_flash", "bailing_hybrid", "gemma4"}) {
      const searched s(builder, {}, json{{"model_type", model}}.dump());
      REQUIRE(s.found.size() == 1);
      CHECK(s.found[0].layout == gate_layout::n2fd_concatenated);
      check_shows(s.found[0], original);
    }
  }
}

TEST_CASE("experts that all tokens see are no layer, and a router's own scale is said so") {
  const auto l = random_layer(53, N, F, D);
  checkpoint_builder builder;  // as Step-3 names them
  builder.add<float>("layers.0.moe.gate.weight", {N, D}, l.router);
  builder.add<bf16>("layers.0.moe.gate_proj.weight", {N, F, D}, l.gates);
  builder.add<bf16>("layers.0.share_expert.gate_proj.weight", {F, D}, one_expert(l, 0));
  builder.add<bf16>("layers.0.share_expert.up_proj.weight", {F, D}, one_expert(l, 1));
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found.omissions.empty());
  check_shows(s.found[0], l);

  checkpoint_builder scaled;  // as Gemma-4 has it
  scaled.add<float>("layers.0.router.proj.weight", {N, D}, l.router);
  scaled.add<float>("layers.0.router.scale", {D}, one_expert(random_layer(54, 1, 1, D), 0));
  scaled.add<bf16>("layers.0.experts.gate_up_proj", {N, 2 * F, D}, n2fd_concatenated(l));
  const searched t(scaled);
  REQUIRE(t.found.size() == 1);
  REQUIRE(t.found.omissions.size() == 1);
  CHECK(t.found.omissions[0].name == "layers.0.router.scale");
  CHECK(t.found.omissions[0].kind == omission_kind::set_aside);
  CHECK(contains(t.found.omissions[0].reason, "which is not applied"));
  check_shows(t.found[0], l);
}

TEST_CASE("why a router and its experts are no layer") {
  const auto l = random_layer(48, N, F, D);
  checkpoint_builder builder;
  std::string expected;
  SUBCASE("packed") {
    builder.add<bf16>("mlp.router.weight", {N, D}, l.router);
    builder.add_raw("mlp.experts.gate_proj", dtype::f8_e4m3, {N, F, D});
    expected =
        "'mlp.experts.gate_proj' is stored as F8_E4M3, and no scales of a packing known here are beside it";
  }
  SUBCASE("cast without its scales") {
    add_layer(builder, "", l);
    builder.add<float>("mlp.experts.gate_proj_scale_inv", {1}, {1});
    expected = "'mlp.experts.gate_proj_scale_inv' is beside it: it was cast without its scales";
  }
  SUBCASE("directions without their norms") {
    builder.add<bf16>("mlp.router.weight", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      const auto gate = "mlp.experts." + std::to_string(e) + ".gate_proj.weight";
      builder.add<bf16>(gate + "_v", {F, D}, one_expert(l, e));
      builder.add<bf16>(gate + "_g", {F}, std::vector<float>(F, 1.0F));
    }
    expected = "directions of a weight whose norms are 'mlp.experts.0.gate_proj.weight_g' (weight_norm)";
  }
  SUBCASE("an expert is missing") {
    builder.add<bf16>("mlp.gate.weight", {N, D}, l.router);
    builder.add<bf16>("mlp.experts.1.gate_proj.weight", {F, D}, one_expert(l, 1));
    expected = "3 of its 4 experts are not here, the first is 'mlp.experts.0.gate_proj.weight'";
  }
  SUBCASE("more experts than rows") {
    builder.add<bf16>("mlp.gate.weight", {1, D}, {l.router.begin(), l.router.begin() + D});
    builder.add<bf16>("mlp.experts.0.gate_proj.weight", {F, D}, one_expert(l, 0));
    builder.add<bf16>("mlp.experts.1.gate_proj.weight", {F, D}, one_expert(l, 1));
    expected = "the router has 1 rows, but there is a 'mlp.experts.1.gate_proj.weight' too";
  }
  SUBCASE("another hidden dimension") {
    builder.add<bf16>("mlp.router.weight", {N, D - 1}, {l.router.begin(), l.router.end() - N});
    builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, l.gates);
    expected = "has shape [4, 6, 10], which is not [N, F, D] (layout nfd) with the router's N = 4, D = 9";
  }
  SUBCASE("a router of three axes") {
    builder.add<bf16>("mlp.router.weight", {2, N / 2, D}, l.router);
    builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, l.gates);
    expected = "the router has shape [2, 2, 10], not [N, D]";
  }
  SUBCASE("a router alone") {
    builder.add<bf16>("mlp.router.weight", {N, D}, l.router);
    expected = "there are no experts beside it; patterns and layout name the tensors of other models";
  }
  SUBCASE("experts alone") {
    builder.add<bf16>("mlp.experts.gate_proj", {N, F, D}, l.gates);
    expected = "no router goes with them that has a router's name";
  }
  SUBCASE("names of no family") {
    builder.add<bf16>("moe.router.weight", {N, D}, l.router);
    builder.add<bf16>("moe.experts.a", {N, F, D}, l.gates);
    builder.add<bf16>("moe.experts.b", {N, F, D}, l.gates);
    expected = "names do not tell which is the gate: 'moe.experts.a' [4, 6, 10], 'moe.experts.b' [4, 6, 10]";
  }
  CHECK(contains(reason_of(searched(builder)), expected));
}

TEST_CASE("up projections take no lost gates' place where other layers have gates") {
  const auto l = random_layer(54, N, F, D);
  for (const bool all : {true, false}) {
    checkpoint_builder builder;
    for (const char* layer : {"layers.0.", "layers.1."}) {
      builder.add<float>(std::string(layer) + "mlp.gate.weight", {N, D}, l.router);
      for (index_t e = 0; e < N; ++e) {
        const auto expert = std::string(layer) + "mlp.experts." + std::to_string(e);
        if (!all && layer[7] == '0') {
          builder.add<bf16>(expert + ".gate_proj.weight", {F, D}, one_expert(l, e));
        }
        builder.add<bf16>(expert + ".up_proj.weight", {F, D}, one_expert(l, e));
        builder.add<bf16>(expert + ".down_proj.weight", {D, F}, one_expert(l, e));
      }
    }
    const searched s(builder);
    if (all) {
      CHECK(s.found.size() == 2);
      CHECK(s.found[0].part == expert_part::up);
      continue;
    }
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].part == expert_part::gate);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(s.found.omissions[0].name == "layers.1.mlp.gate.weight");
    CHECK(
        s.found.omissions[0].reason ==
        "its experts have no gates, as 'layers.0.mlp.experts.0.gate_proj.weight' is one; is a file missing?");
    CHECK(s.found.omissions[0].rows == N);
    CHECK(searched(builder, "up").found.size() == 2);  // where these are asked for
  }
}

TEST_CASE("up projections take no lost gates' place, be the layer that has gates whole or not") {
  const auto l = random_layer(54, N, F, D);
  checkpoint_builder builder;
  for (const char* layer : {"layers.0.", "layers.1."}) {
    builder.add<float>(std::string(layer) + "mlp.gate.weight", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      const auto expert = std::string(layer) + "mlp.experts." + std::to_string(e);
      if (layer[7] == '0' && e > 0) {
        builder.add<bf16>(expert + ".gate_proj.weight", {F, D}, one_expert(l, e));
      }
      builder.add<bf16>(expert + ".up_proj.weight", {F, D}, one_expert(l, e));
    }
  }
  const searched s(builder);
  CHECK(s.found.empty());
  CHECK(std::ranges::any_of(s.found.omissions, [](const auto& each) {
    return each.name == "layers.1.mlp.gate.weight" && contains(each.reason, "its experts have no gates");
  }));
}

TEST_CASE("stacks that lost their gates, in one layer or in all of an architecture that has gates") {
  const auto l = random_layer(55, N, F, D);
  for (const std::string end : {"", ".weight"}) {
    for (const std::string experts : {"experts.", "switch_mlp."}) {
      checkpoint_builder one;
      checkpoint_builder all;
      for (auto* builder : {&one, &all}) {
        for (const std::string layer : {"layers.0.mlp.", "layers.1.mlp."}) {
          builder->add<float>(layer + "gate.weight", {N, D}, l.router);
          builder->add<bf16>(layer + experts + "up_proj" + end, {N, F, D}, l.gates);
          builder->add<bf16>(layer + experts + "down_proj" + end, {N, D, F}, l.gates);
          if (builder == &one && layer == "layers.0.mlp.") {
            builder->add<bf16>(layer + experts + "gate_proj" + end, {N, F, D}, l.gates);
          }
        }
      }
      const searched s(one);
      REQUIRE(s.found.size() == 1);
      CHECK(s.found[0].name == "layers.0.mlp");
      REQUIRE(s.found.omissions.size() == 1);
      CHECK(contains(s.found.omissions[0].reason, "is one; is a file missing?"));
      CHECK(searched(all).found.size() == 2);
      for (const std::string type : {"qwen3moe", "arctic", "xversemoe", "anothermoe"}) {
        const searched told(all, moe_search{}, R"({"model_type": ")" + type + R"("})");
        CHECK(told.found.empty());
        REQUIRE(told.found.omissions.size() == 1);
        CHECK(
            contains(told.found.omissions[0].reason,
                     "no gates, and those of " + type + " are not known to be without; is a file missing?"));
        CHECK(told.found.omissions[0].rows == 2 * N);
      }
      for (const char* type : {"nemotron_h", "switch_transformers", "nllb-moe", "nomic_bert", ""}) {
        CHECK(searched(all, moe_search{}, R"({"model_type": ")" + std::string(type) + R"("})").found.size() ==
              2);
      }
    }
  }
}

TEST_CASE("experts that are named as those without gates are, whatever config.json says") {
  const auto l = random_layer(56, N, F, D);
  checkpoint_builder builder;
  builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "layers.0.mlp.experts." + std::to_string(e);
    builder.add<bf16>(expert + ".fc1.weight", {F, D}, one_expert(l, e));
    builder.add<bf16>(expert + ".fc2.weight", {D, F}, one_expert(l, e));
  }
  const searched s(builder, moe_search{}, R"({"model_type": "qwen3_moe"})");
  REQUIRE(s.found.size() == 1);
  check_shows(s.found[0], l);
}

TEST_CASE("adjugate experts are named, and stand for no expert of the layer") {
  const auto l = random_layer(57, N, F, D);
  for (const bool whole : {true, false}) {
    checkpoint_builder builder;
    builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
    for (index_t e = 0; whole && e < N; ++e) {
      const auto expert = "layers.0.mlp.experts." + std::to_string(e);
      builder.add<bf16>(expert + ".gate_proj.weight", {F, D}, one_expert(l, e));
    }
    for (index_t e = 0; e < N / 2; ++e) {
      const auto chunk = "layers.0.mlp.chunk_experts." + std::to_string(e);
      builder.add<bf16>(chunk + ".gate_proj.weight", {F, D}, one_expert(l, e));
      builder.add<bf16>(chunk + ".up_proj.weight", {F, D}, one_expert(l, e));
    }
    builder.add<bf16>("layers.0.mlp.ffn_gate_chexps.weight", {N / 2, F, D},
                      one_expert(random_layer(58, 1, N / 2 * F, D), 0));
    const searched s(builder);
    CHECK(s.found.size() == (whole ? 1 : 0));
    const auto adjugate = std::ranges::find_if(
        s.found.omissions, [](const auto& each) { return contains(each.reason, "adjugate experts"); });
    REQUIRE(adjugate != s.found.omissions.end());
    CHECK(adjugate->kind == omission_kind::set_aside);
    CHECK(adjugate->name == "layers.0.mlp.chunk_experts.0.gate_proj.weight and 2 more");
  }
}

TEST_CASE("names whose parts are not between dots: MaxText's dashes, Flax's slashes") {
  const auto l = random_layer(59, N, F, D);
  for (const std::string separator : {"-", "/"}) {
    CAPTURE(separator);
    const auto path = [&](std::string name) {
      for (auto at = name.find('.'); at != name.npos; at = name.find('.', at)) {
        name.replace(at, 1, separator);
      }
      return name;
    };
    const auto block = "params.params.decoder.layers_1.moe_block.";
    checkpoint_builder builder;
    std::vector<float> turned;
    for (index_t d = 0; d < D; ++d) {
      for (index_t e = 0; e < N; ++e) {
        turned.push_back(l.router[static_cast<std::size_t>(e * D + d)]);
      }
    }
    builder.add<float>(path(block + std::string("gate.kernel")), {D, N}, turned);
    builder.add<bf16>(path(block + std::string("wi_0")), {N, D, F}, ndf(l));
    builder.add<bf16>(path(block + std::string("wi_1")), {N, D, F}, ndf(l));
    builder.add<bf16>(path(block + std::string("wo")), {N, F, D}, l.gates);
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].name == "params.params.decoder.layers_1.moe_block");
    CHECK(s.found[0].router->plain()->name() == path("params.params.decoder.layers_1.moe_block.gate.kernel"));
    CHECK(s.found[0].layout_of_router == router_layout::dn);
    check_shows(s.found[0], l);
    moe_search named;  // by the names that the file has
    named.patterns = name_patterns{path("{layer}moe_block.gate.kernel"), path("{layer}moe_block.wi_0")};
    named.layout = gate_layout::ndf;
    CHECK(searched(builder, named).found.size() == 1);
  }
}

TEST_CASE("packed weights have dots for dashes too, so that no up projection stands for a packed gate") {
  const auto l = random_layer(67, N, F, D);
  const std::string block = "params-decoder-layers_0-moe_block-";
  for (const bool all : {false, true}) {
    checkpoint_builder builder;
    builder.add<bf16>(block + "gate-kernel", {N, D}, l.router);
    for (const std::string name : {"wi_0", "wi_1"}) {
      if (all || name == "wi_0") {
        builder.add_raw(block + name, dtype::f8_e4m3, {N, D, F}, std::byte{0x38});  // 1
        builder.add<float>(block + name + "_scale", {1}, {name == "wi_0" ? 2.0F : 3.0F});
      } else {
        builder.add<bf16>(block + name, {N, D, F}, ndf(l));
      }
    }
    builder.add<bf16>(block + "wo", {N, F, D}, l.gates);
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].gate_name == "params.decoder.layers_0.moe_block.wi_0");
    visit_gate(s.found[0].gates[0], [](const auto& a) { CHECK(widen<double>(a(0, 0)) == 2); });
  }
  checkpoint_builder refused;
  refused.add<bf16>(block + "gate-kernel", {N, D}, l.router);
  refused.add_raw(block + "wi_0", dtype::f8_e4m3, {N, D, F});
  refused.add<float>(block + "wi_0_scale", {3}, {1, 2, 3});
  refused.add<bf16>(block + "wi_1", {N, D, F}, ndf(l));
  const searched s(refused);
  CHECK(s.found.empty());
  REQUIRE_FALSE(s.found.omissions.empty());
  CHECK(contains(s.found.omissions[0].reason, "no packing known here has these"));
}

TEST_CASE("a pattern with a dash is taken as it is where the names have it") {
  const auto l = random_layer(68, N, F, D);
  checkpoint_builder builder;
  for (const std::string layer : {"layers.0.", "layers.1."}) {
    builder.add<bf16>(layer + "moe-router", {N, D}, l.router);
    builder.add<bf16>(layer + "moe-gates", {N, F, D}, l.gates);
  }
  moe_search named;
  named.patterns = name_patterns{"{layer}moe-router", "{layer}moe-gates"};
  const searched s(builder, named);
  REQUIRE(s.found.size() == 2);
  check_shows(s.found[0], l);
}

namespace {

/// Each of `rows` runs of numbers of the first layer, then that of the next: the layers along the second
/// axis; with one run, along the first.
std::vector<float> scanned(const std::vector<std::vector<float>>& layers, std::size_t runs) {
  std::vector<float> out;
  for (std::size_t a = 0; a < runs; ++a) {
    for (const auto& each : layers) {
      const auto run = static_cast<std::ptrdiff_t>(each.size() / runs);
      const auto begin = each.begin() + static_cast<std::ptrdiff_t>(a) * run;
      out.insert(out.end(), begin, begin + run);
    }
  }
  return out;
}

}  // namespace

TEST_CASE("layers that JAX's scan left in one are read, along the axis that router and experts agree on") {
  const std::vector layers{random_layer(70, N, F, D), random_layer(71, N, F, D), random_layer(72, N, F, D)};
  std::vector<std::vector<float>> routers;
  std::vector<std::vector<float>> gates;
  for (const auto& l : layers) {
    routers.push_back(transposed(l.router, N, D));
    gates.push_back(ndf(l));
  }
  const std::string block = "params-decoder-layers-MoeBlock_0-";
  const auto builder_along = [&](bool first) {
    checkpoint_builder builder;
    builder.add<float>(block + "gate-kernel",
                       first ? std::vector<index_t>{3, D, N} : std::vector{D, index_t{3}, N},
                       scanned(routers, first ? 1 : D));
    for (const char* name : {"wi_0", "wi_1"}) {
      builder.add<bf16>(block + name,
                        first ? std::vector<index_t>{3, N, D, F} : std::vector{N, index_t{3}, D, F},
                        scanned(gates, first ? 1 : N));
    }
    return builder;
  };
  for (const bool first : {false, true}) {
    CAPTURE(first);
    const searched s(builder_along(first));
    REQUIRE(s.found.size() == 3);
    CHECK(s.found.omissions.empty());
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(s.found[i].name == "params.decoder.layers." + std::to_string(i) + ".MoeBlock_0");
      check_shows(s.found[i], layers[i]);
    }
    const searched sum(builder_along(first), "gate+up");
    REQUIRE(sum.found.size() == 3);
  }
}

TEST_CASE("a scan whose axis shapes leave open is along the one that leaves config.json's experts") {
  const std::vector layers{random_layer(83, N, F, D), random_layer(84, N, F, D), random_layer(85, N, F, D)};
  checkpoint_builder builder;  // three layers of four experts, or four of three
  std::vector<std::vector<float>> routers;
  std::vector<std::vector<float>> gates;
  for (const auto& l : layers) {
    routers.push_back(l.router);
    gates.push_back(l.gates);
  }
  builder.add<float>("layers.moe.router.weight", {3, N, D}, scanned(routers, 1));
  builder.add<bf16>("layers.moe.experts.gate_proj", {3, N, F, D}, scanned(gates, 1));
  CHECK(searched(builder).found.empty());
  CHECK(searched(builder, {}, R"({"num_experts": 5})").found.empty());
  const searched s(builder, {}, R"({"num_experts": 4})");
  REQUIRE(s.found.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    check_shows(s.found[i], layers[i]);
  }
}

TEST_CASE("biases of gates and gates of attention are no routers of a scan") {
  const std::string block = "params-decoder-layers-MoeBlock_0-";
  checkpoint_builder builder;
  builder.add_raw(block + "gate-kernel", dtype::f32, {3, D, N});
  builder.add_raw(block + "wi_0", dtype::bf16, {3, N, D, F});
  builder.add_raw(block + "gate_proj_bias", dtype::bf16, {3, N, F});  // as if N layers of three experts
  builder.add_raw("params-decoder-layers-self_attention-gate", dtype::bf16, {3, D, 2});
  builder.add_raw("params-decoder-layers-self_attention-query-kernel", dtype::bf16, {D, 3, D, 2});
  CHECK(searched(builder).found.size() == 3);
}

TEST_CASE("a scan and a layer of its own of one name: neither is taken") {
  const auto l = random_layer(86, N, F, D);
  for (const bool is_router : {true, false}) {
    CAPTURE(is_router);
    checkpoint_builder builder;
    builder.add<float>("layers.moe.router.kernel", {2, D, N},
                       scanned({transposed(l.router, N, D), transposed(l.router, N, D)}, 1));
    builder.add<bf16>("layers.moe.experts.gate_proj", {2, N, F, D}, scanned({l.gates, l.gates}, 1));
    if (is_router) {
      builder.add_raw("layers.0.moe.router.kernel", dtype::f32, {D, N});
    } else {
      builder.add_raw("layers.0.moe.experts.gate_proj", dtype::bf16, {N, F, D});
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].name == "layers.1.moe");
    check_shows(s.found[0], l);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(contains(s.found.omissions[0].reason, "is here twice, as "));
    CHECK(contains(s.found.omissions[0].reason, is_router ? "F32 in 'layers.moe.router.kernel'"
                                                          : "BF16 in 'layers.moe.experts.gate_proj'"));
  }
}

TEST_CASE("layers of a scan are counted, for they are numbered within their stack") {
  const std::string config = R"({"model_type": "deepseek_v3", "num_hidden_layers": 6, "hidden_size": 10,
                                 "first_k_dense_replace": 3, "n_routed_experts": 4})";
  for (const index_t held : {index_t{3}, index_t{2}}) {
    checkpoint_builder builder;  // as MaxText has DeepSeek-V3: dense_layers, then moe_layers
    builder.add_raw("params-decoder-moe_layers-MoeBlock_0-gate-kernel", dtype::f32, {D, held, N});
    builder.add_raw("params-decoder-moe_layers-MoeBlock_0-wi_0", dtype::bf16, {N, held, D, F});
    const searched s(builder, {}, config);
    CHECK(s.found.size() == static_cast<std::size_t>(held));
    if (held == 3) {
      CHECK(s.found.omissions.empty());
      continue;
    }
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(s.found.omissions[0].kind == omission_kind::missing);
    CHECK(s.found.omissions[0].reason == "says that 3 layers have 4 experts each, and 2 are here");
    CHECK(s.found.omissions[0].layers == 1);
    CHECK(s.found.omissions[0].rows == N);
  }
}

TEST_CASE("a header may not ask for millions of layers") {
  checkpoint_builder builder;
  builder.add_raw("layers.moe.gate.kernel", dtype::u8, {4096, 3, 2});
  builder.add_raw("layers.moe.wi_0", dtype::u8, {4096, 2, 3, 1});
  for (int i = 0; i < 100; ++i) {
    builder.add_raw("layers.x" + std::to_string(i), dtype::u8, {4096});
  }
  const searched s(builder);
  CHECK(s.model.weights().size() == 102);
}

TEST_CASE("which layers config.json says have experts, by each of its rules") {
  using list = std::vector<index_t>;
  const auto config_with = [](const json& rules) {
    json config{{"num_hidden_layers", 6}, {"num_experts", N}};
    config.update(rules);
    return parse_model_config(config.dump());
  };
  const list all{0, 1, 2, 3, 4, 5};
  const std::vector<std::pair<json, list>> rules{
      {json::object(), all},
      {{{"moe_layer_end_index", 3}}, {0, 1, 2, 3}},
      {{{"moe_layer_end_index", -1}}, all},
      {{{"moe_layer_start_index", 2}, {"moe_layer_end_index", 3}}, {2, 3}},
      {{{"first_k_dense_replace", 2}}, {2, 3, 4, 5}},
      {{{"num_dense_layers", 4}}, {4, 5}},
      {{{"decoder_sparse_step", 2}}, {1, 3, 5}},
      {{{"decoder_sparse_step", -1}}, all},
      {{{"interleave_moe_layer_step", 3}}, {2, 5}},
      {{{"moe_layer_freq", 2}}, {0, 2, 4}},
      {{{"moe_layer_freq", {0, 1, 1}}}, {1, 2}},
      {{{"mlp_only_layers", {0, 5}}}, {1, 2, 3, 4}},
      {{{"moe_layers", {0, 5}}}, {0, 5}},
      {{{"moe_layers_enum", "1,4"}}, {1, 4}},
      {{{"hybrid_override_pattern", "M*EE"}}, {2, 3}},
      {{{"expert_layer_period", 2}, {"expert_layer_offset", 1}}, {1, 3, 5}},
      {{{"mlp_layer_types", {"dense", "sparse"}}}, {1}},
      {{{"is_encoder_decoder", false}}, all},
  };
  for (const auto& [rule, layers] : rules) {
    CAPTURE(rule.dump());
    CHECK(config_with(rule).moe_layers == layers);
  }
  // What is not known here, and what has two stacks of layers, says nothing of them.
  for (const json& rule :
       {json{{"dense_k_replace", 1}}, json{{"sparse_every", 2}}, json{{"is_encoder_decoder", true}}}) {
    CAPTURE(rule.dump());
    CHECK(!config_with(rule).moe_layers);
    CHECK(config_with(rule).num_experts == N);
  }
  CHECK(!config_with({{"num_experts", 1}}).num_experts);  // a dense model
  CHECK(!config_with({{"num_experts", 1}}).moe_layers);
  CHECK(config_with({{"transformers_version", "5.0.1"}}).is_of_transformers_5);
  CHECK(!config_with({{"transformers_version", "50.1"}}).is_of_transformers_5);
  CHECK(!config_with({{"transformers_version", "4.5"}}).is_of_transformers_5);
  const json nested{{"thinker_config", {{"text_config", {{"num_experts", N}, {"hidden_size", D}}}}}};
  CHECK(parse_model_config(nested.dump()).num_experts == N);
  CHECK(parse_model_config(nested.dump()).hidden_dim == D);
}

TEST_CASE("what names and shapes say alone, by hand") {
  using namespace mpi_router::detail::moe;
  const auto ffn_of = [](gate_layout layout, std::vector<index_t> shape) {
    return ffn_dim_of(layout, shape, N, D);
  };
  CHECK(ffn_of(gate_layout::n2fd_concatenated, {N, 6, D}) == 3);
  CHECK(!ffn_of(gate_layout::n2fd_concatenated, {N, 7, D}));  // no two halves
  CHECK(!ffn_of(gate_layout::nd2f_interleaved, {N * D, 7}));
  CHECK(ffn_of(gate_layout::nfd, {N, 7, D}) == 7);
  CHECK(!ffn_of(gate_layout::nfd, {N, 0, D}));
  CHECK(!ffn_of(gate_layout::ndf, {N * D, 0}));
  CHECK(ffn_dim_of_down(matrix_extents{D, F}, D) == F);
  CHECK(ffn_dim_of_down(matrix_extents{F, D}, D) == F);
  CHECK(ffn_dim_of_down(matrix_extents{D, D}, D) == D);
  CHECK(!ffn_dim_of_down(matrix_extents{F, F}, D));
  CHECK(pattern_of("m.v2.experts.1.net3.weight", "m.", 1) == "m.v2.experts.{expert}.net3.weight");
  CHECK(pattern_of("m.experts.1.net.1.weight", "m.", 1) == "m.experts.{expert}.net.1.weight");
  CHECK(pattern_of("m.experts.weight", "m.", 1) == "m.experts.weight");
  CHECK(kind_of("experts.0.gate_proj.linear.weight") == matrix_kind::gate);
  CHECK(kind_of("experts.0.gate_proj.a.b.weight") == matrix_kind::unclear);  // three words at most
  CHECK(match_layer("ab{layer}bc", "ab3.bc") == "3.");
  CHECK(!match_layer("ab{layer}bc", "abc"));
  CHECK(match_expert("e.{expert}.w.{expert}.x", "e.1.w.1.x") == 1);
  CHECK(!match_expert("e.{expert}.w.{expert}.x", "e.1.w.2.x"));
  const std::vector<index_t> numbers{0, 2, 3, 5, 7};
  CHECK(ranges_of(numbers, 4) == "0, 2-3, 5, 7");
  CHECK(ranges_of(numbers, 3) == "0, 2-3, 5, …");
  for (const char* word : {"expert_gate", "expert_bias", "num_experts", "shared_experts"}) {
    CAPTURE(word);
    CHECK(!is_expert_word(word));
  }
  CHECK(is_expert_word("experts"));
  CHECK(part_of("mlp.gate.weight").role == tensor_role::router);
  CHECK(part_of("mlp.gate.proj.weight").role != tensor_role::router);
  CHECK(part_of("mlp.router.proj.weight").role == tensor_role::router);
  CHECK(part_of("mlp.shared_expert.gate.weight").role == tensor_role::other);
  CHECK(is_no_expert("layers.0.conv1d.weight"));
  CHECK(is_no_expert("layers.0.norm.weight"));
  CHECK(!is_no_expert("layers.0.mats.weight"));
}

TEST_CASE("twelve blocks of a scan, beside what is none of it") {
  std::vector<layer_data> layers;
  std::vector<std::vector<float>> routers, gates;
  for (std::uint64_t i = 0; i < 12; ++i) {
    layers.push_back(random_layer(200 + i, N, F, D));
    routers.push_back(layers.back().router);
    gates.push_back(layers.back().gates);
  }
  checkpoint_builder builder;
  builder.add<float>("model.blocks.moe.router.weight", {12, N, D}, scanned(routers, 1));
  builder.add<bf16>("model.blocks.moe.experts.gate_proj", {12, N, F, D}, scanned(gates, 1));
  builder.add_raw("model.blocks.norm.scale", dtype::f32, {12});
  builder.add_raw("model.blocks.rope.table", dtype::f32, {5, 7});  // of all of them
  builder.add_raw("model.blocks.cache.empty", dtype::f32, {12, 0});
  const searched s(builder, {}, R"({"num_experts": 4})");
  REQUIRE(s.found.size() == 12);
  for (std::size_t i = 0; i < 12; ++i) {
    CHECK(s.found[i].name == "model.blocks." + std::to_string(i) + ".moe");
    check_shows(s.found[i], layers[i]);
    CHECK(s.model.find_weight("model.blocks." + std::to_string(i) + ".norm.scale") != nullptr);
  }
  for (const char* whole : {"model.blocks.rope.table", "model.blocks.cache.empty"}) {
    CHECK(s.model.find_weight(whole) != nullptr);
  }
  CHECK(s.model.find_weight("model.blocks.norm.scale") == nullptr);
  CHECK(s.model.weights().size() == 3 * 12 + 2);
}

TEST_CASE("what has no second axis is not split along it, whatever its extent") {
  checkpoint_builder builder;
  builder.add_raw("decoder-layers-moe-gate-kernel", dtype::f32, {D, 3, N});
  builder.add_raw("decoder-layers-moe-wi_0", dtype::bf16, {N, 3, D, F});
  builder.add_raw("decoder-layers-norm-scale", dtype::f32, {3});
  const searched s(builder);
  CHECK(s.found.size() == 3);
  const auto* norm = s.model.find_weight("decoder.layers.norm.scale");
  REQUIRE(norm != nullptr);
  CHECK(!norm->part());
}

TEST_CASE("no scans: layers that are numbered, experts alone, shapes without end") {
  checkpoint_builder numbered;
  numbered.add_raw("layers.0.moe.gate.kernel", dtype::f32, {D, 3, N});
  numbered.add_raw("layers.0.moe.wi_0", dtype::bf16, {N, 3, D, F});
  CHECK(searched(numbered).model.weights().size() == 2);
  checkpoint_builder alone;
  alone.add_raw("layers.moe.gate.kernel", dtype::f32, {D, 3, 1});
  alone.add_raw("layers.moe.wi_0", dtype::bf16, {1, 3, D, F});
  CHECK(searched(alone).model.weights().size() == 2);
  for (const index_t shapes : {16, 17}) {
    checkpoint_builder many;
    for (index_t i = 0; i < shapes; ++i) {
      const std::string block = "layers.moe" + std::to_string(i);
      many.add_raw(block + ".gate.kernel", dtype::u8, {D + i, 3, N});
      many.add_raw(block + ".wi_0", dtype::u8, {N, 3, D + i, F});
    }
    CHECK(searched(many).model.weights().size() ==
          static_cast<std::size_t>(2 * shapes * (shapes > 16 ? 1 : 3)));
  }
}

TEST_CASE("a scan whose axis nothing tells is not read, and is said to be one") {
  const std::string block = "params-decoder-layers-MoeBlock_0-";
  checkpoint_builder alone;
  alone.add_raw(block + "gate-kernel", dtype::f32, {D, 3, N});
  CHECK(contains(reason_of(searched(alone)), "routers of several layers in one, [10, 3, 4]"));
  checkpoint_builder either;  // as many layers as experts as dimensions
  either.add_raw(block + "gate-kernel", dtype::f32, {N, N, N});
  either.add_raw(block + "wi_0", dtype::f32, {N, N, N, N});
  CHECK(contains(reason_of(searched(either)), "routers of several layers in one, [4, 4, 4]"));
}

TEST_CASE("shards of DeepSeek's processes are read together: experts shared out, routers repeated") {
  const auto l = random_layer(73, N, F, D);
  const auto write = [&](const temporary_folder& folder, bool routers_differ) {
    for (index_t rank = 0; rank < 2; ++rank) {
      checkpoint_builder builder;
      auto router = l.router;
      router[5] += routers_differ && rank == 1 ? 1.0F : 0.0F;
      builder.add<float>("layers.3.ffn.gate.weight", {N, D}, router);
      builder.add<bf16>("layers.3.attn.wq.weight", {2, 2}, std::vector<float>(4, static_cast<float>(rank)));
      builder.add_raw("layers.3.attn.wkv.weight", dtype::bf16, {2, 2});
      for (index_t e = rank * N / 2; e < (rank + 1) * N / 2; ++e) {
        builder.add<bf16>("layers.3.ffn.experts." + std::to_string(e) + ".w1.weight", {F, D},
                          one_expert(l, e));
      }
      builder.write(folder / ("model" + std::to_string(rank) + "-mp2.safetensors"));
    }
  };
  temporary_folder folder;
  write(folder, false);
  const checkpoint model(folder.path());
  const auto found = find_moe_layers(model);
  REQUIRE(found.size() == 1);
  CHECK(found.omissions.empty());
  check_shows(found[0], l);
  const auto times = [&](std::string_view name) {
    return std::ranges::count(model.tensors(), name,
                              [](const auto* t) { return std::string_view(t->name()); });
  };
  CHECK(times("layers.3.ffn.gate.weight") == 1);
  CHECK(times("layers.3.attn.wkv.weight") == 2);            // no search looks at it: it is not compared
  const checkpoint one(folder / "model0-mp2.safetensors");  // the other is missed
  CHECK(one.missing_shards() == std::vector<std::string>{"model1-mp2.safetensors"});
  temporary_folder other;
  write(other, true);
  const checkpoint pieces(other.path());
  const auto none = find_moe_layers(pieces);
  CHECK(none.empty());
  REQUIRE(none.omissions.size() == 1);
  CHECK(
      contains(none.omissions[0].reason, "is here twice, in the files of two processes: perhaps in pieces"));
}

TEST_CASE("gate and up in one stack: which way round only the architecture tells") {
  const auto l = random_layer(74, N, F, D);
  const auto found = [&](const char* router, const char* gates, bool in_turn, bool ffn_last,
                         const std::string& config) {
    checkpoint_builder builder;
    builder.add<float>(router, {N, D}, l.router);
    builder.add<bf16>(gates, ffn_last ? std::vector{N, D, 2 * F} : std::vector{N, 2 * F, D},
                      ffn_last  ? in_turn ? nd2f_interleaved(l) : nd2f_concatenated(l)
                       : in_turn ? n2fd_interleaved(l)
                                : n2fd_concatenated(l));
    return searched(builder, {}, config);
  };
  const auto read = [&](const searched& s) {
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  };
  const std::string layer = "model.layers.0.mlp.";
  const auto router = layer + "router.weight";
  const auto gate = layer + "gate.weight";
  const auto stack = layer + "experts.gate_up_proj";
  const auto w13 = layer + "experts.w13_weight";
  const auto named = [](const char* type) { return json{{"model_type", type}}.dump(); };
  read(found(router.c_str(), stack.c_str(), true, true, named("gpt_oss")));
  read(found(router.c_str(), stack.c_str(), true, true, ""));  // only gpt-oss was released so
  read(found(router.c_str(), stack.c_str(), false, true, named("openai_privacy_filter")));
  CHECK(contains(reason_of(found(router.c_str(), stack.c_str(), false, true, named("other_moe"))),
                 "say which"));
  read(found(gate.c_str(), w13.c_str(), true, false, named("inkling_mm_model")));
  read(found(gate.c_str(), w13.c_str(), false, false, named("qwen3_moe")));
  CHECK(contains(reason_of(found(gate.c_str(), w13.c_str(), true, false, "")), "say which"));
  read(found("block.1.mlp.router.weight", "block.1.mlp.mlp1_weight", true, false, named("gpt_oss")));
  for (const char* any : {"qwen3_vl_moe", "pangu_ultra_moe", "sarvam_moe", "other_moe"}) {
    read(found(gate.c_str(), w13.c_str(), false, false, named(any)));  // vLLM writes all of them so
  }
  read(found(gate.c_str(), w13.c_str(), true, false, named("gpt_oss")));
  CHECK(contains(reason_of(found(gate.c_str(), w13.c_str(), false, false, named(""))), "say which"));
  read(found(router.c_str(), stack.c_str(), false, false, named("qwen3_moe")));
  read(found(router.c_str(), stack.c_str(), false, false, named("minimax_m2")));
  CHECK(contains(reason_of(found(router.c_str(), stack.c_str(), false, false, named("other_moe"))),
                 "say which"));
}

TEST_CASE("gpt-oss under names that no family has: its words tell, or it is a question") {
  using enum gate_layout;
  const auto l = random_layer(82, N, F, D);
  const auto found = [&](const std::string& router, const std::string& gates, gate_layout layout,
                         const std::string& type, const moe_search& wanted = {}) {
    checkpoint_builder builder;
    builder.add<float>("layers.0." + router, {N, D}, l.router);
    if (!contains(gates, "{expert}")) {
      builder.add<bf16>("layers.0." + gates, shape_in(layout), arranged(l, layout));
    }
    for (index_t e = 0; e < N && contains(gates, "{expert}"); ++e) {
      builder.add<bf16>("layers.0." + detail::moe::substituted(gates, "{expert}", std::to_string(e)),
                        shape_of_one(layout), arranged(one_layer(l, e), layout));
    }
    return searched(builder, wanted, type.empty() ? "" : json{{"model_type", type}}.dump());
  };
  const auto read = [&](const searched& s) {
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  };
  const auto asks = [&](const searched& s) { CHECK(contains(reason_of(s), "say which")); };
  for (const char* type : {"", "gpt_oss"}) {  // TorchTitan's
    read(found("moe.router.gate.weight", "moe.experts.mlp1_weight", n2fd_interleaved, type));
  }
  const std::string router = "mlp.router.weight";
  const std::string w13 = "mlp.experts.w13_weight";  // vLLM's
  asks(found(router, w13, n2fd_interleaved, ""));
  read(found(router, w13, n2fd_interleaved, "gpt_oss"));
  read(found(router, w13, n2fd_concatenated, "any_moe"));
  const std::string linear = "mlp.router.linear.weight";
  const std::string each = "mlp.experts.gate_up_projs.{expert}.weight";  // unsloth's
  asks(found(linear, each, n2fd_interleaved, ""));
  read(found(linear, each, n2fd_interleaved, "gpt_oss"));
  read(found(linear, each, n2fd_concatenated, "any_moe"));
  for (const auto layout : {n2fd_concatenated, nd2f_concatenated}) {  // of gpt-oss, but not its words
    asks(found(router, "mlp.experts.gate_up", layout, "gpt_oss"));
    moe_search asked;
    asked.layout = layout;
    read(found(router, "mlp.experts.gate_up", layout, "gpt_oss", asked));
  }
  asks(found(router, "mlp.experts.gate_up", nd2f_interleaved, ""));
  read(
      found("moe.gate.weight", "moe.experts.gate_up", n2fd_concatenated, ""));  // gpt-oss's router is another
}

TEST_CASE("a router that is a network has no row to compare with an expert") {
  for (const index_t inner : {D, N, index_t{7}}) {
    for (const bool by_name : {false, true}) {
      CAPTURE(inner);
      CAPTURE(by_name);
      const std::string block = by_name ? "model.layers.0.zaya_block." : "model.layers.0.mlp.";
      const std::string router = block + (by_name ? "router." : "gate.");
      checkpoint_builder builder;
      const auto add = [&](const std::string& name, std::vector<index_t> shape) {
        builder.add<float>(name, shape,
                           std::vector<float>(static_cast<std::size_t>(element_count(shape)), 1.0F));
      };
      add(router + "down_proj.weight", {inner, D});
      add(router + "router_mlp.0.weight", {inner, inner});
      add(router + "router_mlp.4.weight", {N, inner});
      add(block + "experts.gate_up_proj", {N, 2 * F, D});
      add(block + "experts.down_proj", {N, D, F});
      const searched s(builder);
      CHECK(contains(reason_of(s), "a network of 3 matrices, the first '" + router + "down_proj.weight'"));
    }
  }
}

TEST_CASE("tables, shared experts and a block's own name make no network of a router") {
  const auto l = random_layer(87, N, F, D);
  for (const std::string block : {"layers.0.router_moe.", "layers.0.gate_mlp.", "layers.0.moe.gate."}) {
    CAPTURE(block);
    const bool is_module = block.ends_with("gate.");  // the router's, not the block
    checkpoint_builder builder;
    builder.add<float>(block + "choose.weight", {N, D}, l.router);
    builder.add_raw(block + "choose.seen", dtype::i64, {N, 3});
    builder.add_raw(block + "shared.w1.weight", dtype::bf16, {F, D});
    for (index_t e = 0; e < N; ++e) {
      builder.add<bf16>((is_module ? "layers.0.moe." : block) + "experts." + std::to_string(e) + ".w1.weight",
                        {F, D}, one_expert(l, e));
    }
    if (!is_module) {
      builder.add_raw(block + "positions.weight", dtype::f32, {7, 3});
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  }
}

TEST_CASE("a router beside shared experts alone is no gate of a dense layer") {
  for (const char* shared : {"shared_up.weight", "shared_w2.weight"}) {
    checkpoint_builder builder;
    builder.add_raw("layers.0.moe.gate.weight", dtype::f32, {N, D});
    builder.add_raw(std::string("layers.0.moe.") + shared, dtype::bf16, {F, D});
    CHECK(contains(reason_of(searched(builder)), "looks like a router, but there are no experts beside it"));
  }
}

TEST_CASE("a router of columns beside experts that have as many neurons as there are of them") {
  for (const index_t dim : {index_t{16}, index_t{8}, index_t{6}}) {
    for (const index_t count : {index_t{8}, index_t{16}}) {
      const auto l = random_layer(81, count, count == dim ? 6 : count, dim);  // F = N, or else N = D
      const auto builder_of = [&](const std::string& name, bool turned) {
        checkpoint_builder builder;
        builder.add<float>(name, turned ? std::vector{l.d, l.n} : std::vector{l.n, l.d},
                           turned ? transposed(l.router, l.n, l.d) : l.router);
        for (index_t e = 0; e < l.n; ++e) {
          builder.add<bf16>("layers.0.moe.experts." + std::to_string(e) + ".w1.weight", {l.f, l.d},
                            one_expert(l, e));
        }
        return builder;
      };
      CAPTURE(dim);
      CAPTURE(count);
      const searched plain(builder_of("layers.0.moe.router.weight", false));
      REQUIRE(plain.found.size() == 1);
      check_shows(plain.found[0], l);
      const searched turned(builder_of("layers.0.moe.gate.kernel", true));
      moe_search asked;
      asked.layout_of_router = router_layout::dn;
      const searched told(builder_of("layers.0.moe.gate.kernel", true), asked);
      if (dim < count) {  // with D rows there would be too few for the experts
        REQUIRE(turned.found.size() == 1);
        check_shows(turned.found[0], l);
      } else {
        CHECK(contains(reason_of(turned), "may be [N, D]"));
        CHECK(turned.found.omissions[0].rows == l.n);
        for (const auto& config : {json{{"num_experts", l.n}}, json{{"hidden_size", l.d}}}) {
          const searched known(builder_of("layers.0.moe.gate.kernel", true), {}, config.dump());
          CHECK(known.found.size() == (l.n == l.d ? 0 : 1));
          for (const auto& layer : known.found) {
            check_shows(layer, l);
          }
        }
        REQUIRE(told.found.size() == 1);
        CHECK(told.found[0].layout_of_router == router_layout::dn);
        check_shows(told.found[0], l);
      }
    }
  }
}

TEST_CASE("a router under an adapter is read without it, and that is said") {
  const auto l = random_layer(79, N, F, D);
  for (const bool is_saved : {false, true}) {  // LoRA beside it, or a trained copy of the whole module
    CAPTURE(is_saved);
    checkpoint_builder builder;
    const std::string router = "model.layers.0.mlp.gate.";
    builder.add<float>(router + (is_saved ? "original_module.weight" : "base_layer.weight"), {N, D},
                       l.router);
    const auto other = [&](const std::string& name, index_t rows, index_t cols) {
      builder.add<float>(router + name, {rows, cols},
                         std::vector<float>(static_cast<std::size_t>(rows * cols), 1));
    };
    if (is_saved) {
      other("modules_to_save.default.weight", N, D);
    } else {
      other("lora_A.default.weight", 2, D);
      other("lora_B.default.weight", N, 2);
    }
    builder.add<bf16>("model.layers.0.mlp.experts.gate_proj", {N, F, D}, l.gates);
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(contains(s.found.omissions[0].reason, "an adapter"));
  }
}

TEST_CASE("what a router learned to multiply its weights by is no scale of a packing") {
  const auto l = random_layer(75, N, F, D);
  for (const char* learned : {"global_scale", "per_expert_scale", "route_scale", "noise_scale"}) {
    checkpoint_builder builder;
    add_linears(builder, "model.layers.0.", l);
    builder.add<float>(std::string("model.layers.0.mlp.gate.") + learned, {1}, {2.0F});
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  }
}

TEST_CASE("what is beside an expert's weight is of its packing, whatever it is called") {
  const auto l = random_layer(88, N, F, D);
  checkpoint_builder linears;
  checkpoint_builder stack;
  linears.add<float>("layers.0.ffn.gate.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "layers.0.ffn.experts." + std::to_string(e) + ".w1.";
    linears.add<bf16>(expert + "weight", {F, D}, one_expert(l, e));
    linears.add<float>(expert + "global_scale", {1}, {2.0F});
  }
  stack.add<float>("layers.0.moe.router.gate.weight", {N, D}, l.router);
  stack.add<bf16>("layers.0.moe.experts.w1", {N, F, D}, l.gates);
  stack.add<float>("layers.0.moe.experts.w1_global_scale", {1}, {2.0F});
  for (const auto* builder : {&linears, &stack}) {
    CHECK(contains(reason_of(searched(*builder)), "it was cast without its scales"));
  }
}

TEST_CASE("names of all experts' matrices may be plurals") {
  using namespace detail::moe;
  const auto l = random_layer(89, N, F, D);
  const std::vector<std::array<std::string, 3>> plurals{{"gates", "ups", "downs"}, {"w1s", "w3s", "w2s"}};
  for (const auto& [gates, ups, downs] : plurals) {
    CAPTURE(gates);
    const std::string experts = "layers.0.moe.experts.";
    CHECK(kind_of_component(gates) == matrix_kind::gate);
    CHECK(kind_of_component(ups) == matrix_kind::up);
    CHECK(kind_of_component(downs) == matrix_kind::down);
    checkpoint_builder builder;
    builder.add<float>("layers.0.moe.router.weight", {N, D}, l.router);
    builder.add<bf16>(experts + gates, {N, F, D}, l.gates);
    builder.add_raw(experts + ups, dtype::bf16, {N, F, D});
    builder.add_raw(experts + downs, dtype::bf16, {N, D, F});
    const searched s(builder, "gate+up+down");
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  }
  CHECK(kind_of_component("inputs") == matrix_kind::unclear);
}

TEST_CASE("one list of words: all that ask it agree on each") {
  using namespace detail::moe;
  for (const auto& words : part_words_table) {
    for (const char* around : {"{}", "{}_proj", "ffn_{}_exps", "{}_weight"}) {
      const auto in = [&](std::string_view word) { return substituted(around, "{}", word); };
      const auto pattern = [&](std::string_view word) {
        return "layers.0.mlp.experts." + in(word) + ".weight";
      };
      CAPTURE(in(words.own));
      CHECK(kind_of_component(in(words.own)) == words.kind);
      CHECK(kind_of(pattern(words.own)) == words.kind);
      CHECK(holds_gates(pattern(words.own)) ==
            (words.kind == matrix_kind::gate || words.kind == matrix_kind::gate_and_up));
      for (const auto up : words.up) {
        if (!up.empty()) {
          CHECK(std::ranges::count(names_of_part(pattern(words.own), 0, expert_part::up), pattern(up)) == 1);
          CHECK(kind_of_component(in(up)) ==
                (words.kind == matrix_kind::unclear ? words.kind : matrix_kind::up));
          CHECK(is_beside_gate(pattern(up)) == (words.kind != matrix_kind::unclear));
          CHECK_FALSE(holds_gates(pattern(up)));
        }
      }
      if (!words.down.empty()) {
        CHECK(names_of_part(pattern(words.own), 0, expert_part::down) == std::vector{pattern(words.down)});
        CHECK_FALSE(holds_gates(pattern(words.down)));
      }
    }
  }
  CHECK(names_of_part("experts.fused_w13", 0, expert_part::down) ==
        std::vector<std::string>{"experts.fused_w2"});
  for (const char* none : {"aggregate", "w12", "w11", "upsample", "outputs", "wise", "fc12"}) {
    CAPTURE(none);
    CHECK((kind_of_component(none) == matrix_kind::unclear || std::string_view(none) == "w12"));
  }
}

TEST_CASE("experts of an up and a down projection alone, under any of the words") {
  const auto l = random_layer(76, N, F, D);
  for (const auto& words : detail::moe::part_words_table) {
    if (words.kind != detail::moe::matrix_kind::up && words.kind != detail::moe::matrix_kind::gate) {
      continue;
    }
    const auto up = words.kind == detail::moe::matrix_kind::up ? words.own : words.up[0];
    CAPTURE(up);
    checkpoint_builder builder;
    builder.add<float>("layers.0.moe.router.weight", {N, D}, l.router);
    builder.add<bf16>("layers.0.moe.experts." + std::string(up), {N, F, D}, l.gates);
    builder.add<bf16>("layers.0.moe.experts." + std::string(words.down), {N, D, F}, ndf(l));
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].part == expert_part::up);
    check_shows(s.found[0], l);
  }
}

TEST_CASE("stars stand for numbers that differ alone") {
  using detail::moe::common_name;
  CHECK(common_name("layers.1.experts.0.w", "layers.1.experts.3.w") == "layers.1.experts.*.w");
  CHECK(common_name("layers.*.experts.0.w", "layers.2.experts.0.w") == "layers.*.experts.0.w");
  CHECK(common_name("decoder.layers_1.x", "decoder.layers_12.x") == "decoder.layers_*.x");
  CHECK(common_name("a.1.b", "a.1.b") == "a.1.b");
  checkpoint_builder builder;  // one layer of four experts, and no router
  const auto l = random_layer(77, N, F, D);
  for (index_t e = 0; e < N; ++e) {
    builder.add<bf16>("model.layers.5.mlp.experts." + std::to_string(e) + ".gate_proj.weight", {F, D},
                      one_expert(l, e));
  }
  const searched s(builder);
  REQUIRE(s.found.omissions.size() == 1);
  CHECK(s.found.omissions[0].name == "model.layers.5.mlp.experts.*.gate_proj.weight (4 tensors)");
}

TEST_CASE("words that hold those of gates: w12 is gate and up, before a w3 that is down") {
  const auto l = random_layer(63, N, F, D);
  for (const bool has_down : {true, false}) {
    checkpoint_builder builder;
    builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
    builder.add<bf16>("layers.0.mlp.experts.w12", {N, 2 * F, D}, n2fd_concatenated(l));
    if (has_down) {
      builder.add<bf16>("layers.0.mlp.experts.w3", {N, D, F}, ndf(l));
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    CHECK(s.found[0].layout == gate_layout::n2fd_concatenated);
    check_shows(s.found[0], l);
  }
}

TEST_CASE("what is named like a gate and has not the neurons of the down projection is none") {
  const auto l = random_layer(64, N, F, D);
  const auto refused = [&](const std::vector<std::pair<std::string, bool>>& matrices, bool one_row) {
    checkpoint_builder builder;
    builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      const auto expert = "layers.0.mlp.experts." + std::to_string(e) + ".";
      for (const auto& [name, is_down] : matrices) {
        builder.add<bf16>(expert + name + ".weight", is_down ? std::vector{D, F} : std::vector{F, D},
                          one_expert(l, e));
      }
      if (one_row) {
        builder.add<bf16>(expert + "gate.weight", {1, D}, std::vector<float>(D, 1.0F));
      }
    }
    return reason_of(searched(builder));
  };
  const std::string doubt = "names do not tell which is the gate";
  // A gate of the whole expert beside a network without one; Qwen's first, whose gate is w2.
  CHECK(contains(refused({{"fc1", false}, {"fc2", true}}, true), doubt));
  CHECK(contains(refused({{"w1", false}, {"w2", false}, {"c_proj", true}}, false), doubt));
  // LitGPT's words in a network of two layers, and LitGPT's own without its down projections.
  CHECK(contains(refused({{"fc_1", false}, {"fc_2", true}}, false), doubt));
  CHECK(contains(refused({{"fc_1", false}, {"fc_2", false}}, false), doubt));
}

TEST_CASE("a gate goes with one of two down projections, and with a flat stack of them") {
  const auto l = random_layer(69, N, F, D);
  checkpoint_builder two;
  two.add<float>("layers.0.moe.router.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "layers.0.moe.experts." + std::to_string(e) + ".";
    two.add<bf16>(expert + "w1.weight", {F, D}, one_expert(l, e));
    two.add<bf16>(expert + "w3.weight", {F, D}, one_expert(l, 0));
    two.add<bf16>(expert + "w2.weight", {D, F}, one_expert(l, e));
    two.add_raw(expert + "output_proj.weight", dtype::bf16, {D, D});
  }
  checkpoint_builder flat;
  flat.add<float>("layers.0.moe.router.weight", {N, D}, l.router);
  flat.add<bf16>("layers.0.moe.experts.w1", {N, F, D}, l.gates);
  flat.add<bf16>("layers.0.moe.experts.w3", {N, F, D}, ndf(l));
  flat.add<bf16>("layers.0.moe.experts.w2", {N * F, D}, l.gates);
  for (const auto* builder : {&two, &flat}) {
    const searched s(*builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
  }
}

TEST_CASE("numbers that are stacked behind a layer's own") {
  using detail::moe::place_of_layer;
  using detail::moe::with_stars;
  CHECK(place_of_layer("model.block_0.layers.2.mlp")->number == 2);
  CHECK(place_of_layer("model.block_0.layers.2.mlp")->series == "model.block_0.layers.");
  CHECK(place_of_layer("decoder.layers_3.mlp.nets.1.gate")->number == 3);
  CHECK(place_of_layer("decoder.block_003.layer_002.mlp")->written == "003");
  CHECK(with_stars("layers.0.mlp.experts.1.layer_2.weight") == "layers.*.mlp.experts.*.layer_2.weight");
  const auto l = random_layer(70, N, F, D);
  checkpoint_builder builder;
  for (const std::string layer :
       {"model.block_0.layers.0.", "model.block_0.layers.1.", "model.block_0.layers.2."}) {
    if (layer.ends_with("1.")) {  // found by shapes
      builder.add<bf16>(layer + "mlp.r", {N, D}, l.router);
      for (index_t e = 0; e < N; ++e) {
        builder.add<bf16>(layer + "mlp.nets." + std::to_string(e) + ".gate_proj.weight", {F, D},
                          one_expert(l, e));
      }
    } else {
      add_linears(builder, layer, l);
    }
  }
  const json config{{"model_type", "qwen3_moe"}, {"num_hidden_layers", 3}, {"num_experts", N},
                    {"hidden_size", D},          {"mlp_only_layers", {}},  {"decoder_sparse_step", 1}};
  const searched s(builder, moe_search{}, config.dump());
  REQUIRE(s.found.size() == 3);
  CHECK(s.found.omissions.empty());
  CHECK(hint_of(s.found[2]).patterns.router == "model.block_0.layers.{layer}.mlp.gate.weight");
}

TEST_CASE("layers whose numbers have zeros before them, found by shapes") {
  const auto l = random_layer(71, N, F, D);
  for (const std::string zeros : {"", "00"}) {
    checkpoint_builder builder;
    for (const std::string layer : {"0", "1"}) {
      const auto block = "decoder/block_" + zeros + layer + "/layer_" + zeros + "2/mlp/";
      builder.add<bf16>(block + "r", {N, D}, l.router);
      builder.add<bf16>(block + "nets/gate_w", {N, F, D}, l.gates);
    }
    const searched s(builder);
    CHECK(s.found.size() == 2);
  }
}

TEST_CASE("a long name of many numbers") {
  const auto l = random_layer(72, 2, F, D);
  std::string name = "x.expert_";
  for (int i = 0; i < 100'000; ++i) {
    name += "a1";
  }
  checkpoint_builder builder;
  builder.add<bf16>("x.router.weight", {2, D}, l.router);
  for (const std::string e : {".0", ".5"}) {
    builder.add<bf16>(name + e + ".gate_proj.weight", {F, D}, one_expert(l, 0));
  }
  CHECK(searched(builder).found.empty());
  CHECK(detail::moe::pattern_of("experts.01.w", "experts.", 1) == "experts.{expert}.w");
}

TEST_CASE("layers that are numbered as JAX numbers them") {
  using detail::moe::place_of_layer;
  using detail::moe::with_stars;
  CHECK(with_stars("decoder.layers_12.moe_block.gate.kernel") == "decoder.layers_*.moe_block.gate.kernel");
  CHECK(with_stars("mlp.gate.weight_1") == "mlp.gate.weight_1");
  CHECK(with_stars("blk.3.x") == "blk.*.x");
  CHECK(place_of_layer("decoder.layers_12.moe_block")->number == 12);
  CHECK(place_of_layer("decoder.layers_12.moe_block")->series == "decoder.layers_");
  CHECK(place_of_layer("Encoder.encoderblock_0.Moe")->number == 0);
  CHECK(place_of_layer("a.layers.7.b")->series == "a.layers.");
  CHECK_FALSE(place_of_layer("mlp.experts.expert_3").has_value());
  const auto l = random_layer(65, N, F, D);
  checkpoint_builder builder;
  for (const char* layer : {"decoder.layers_1.", "decoder.layers_10.", "decoder.layers_2."}) {
    add_layer(builder, layer, l);
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 3);
  CHECK(s.found[1].name == "decoder.layers_2.mlp");
  CHECK(hint_of(s.found[2]).patterns.router == "decoder.layers_{layer}.mlp.router.weight");
}

TEST_CASE("numbers of experts with zeros before them") {
  const auto l = random_layer(66, N, F, D);
  for (const std::string gate : {".gate_proj.weight", ".w_gate.weight"}) {  // of a family, and of none
    checkpoint_builder builder;
    builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      const auto expert = "layers.0.mlp.experts.00" + std::to_string(e);
      builder.add<bf16>(expert + gate, {F, D}, one_expert(l, e));
      builder.add<bf16>(expert + ".down.weight", {D, F}, one_expert(l, e));
    }
    const searched s(builder);
    REQUIRE(s.found.size() == 1);
    check_shows(s.found[0], l);
    builder.add<bf16>("layers.0.mlp.experts.2" + gate, {F, D}, one_expert(l, 2));
    CHECK(contains(
        reason_of(searched(builder)),
        "'layers.0.mlp.experts.002" + gate + "' and 'layers.0.mlp.experts.2" + gate + "' are both expert 2"));
  }
  checkpoint_builder lacking;
  lacking.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
  for (const index_t e : {0, 2, 3}) {
    lacking.add<bf16>("layers.0.mlp.experts.00" + std::to_string(e) + ".gate_proj.weight", {F, D},
                      one_expert(l, e));
  }
  CHECK(contains(reason_of(searched(lacking)), "the first is 'layers.0.mlp.experts.001.gate_proj.weight'"));
  {
    checkpoint_builder no_up;
    no_up.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
    for (index_t e = 0; e < N; ++e) {
      no_up.add<bf16>("layers.0.mlp.experts.00" + std::to_string(e) + ".gate_proj.weight", {F, D},
                      one_expert(l, e));
    }
    CHECK(
        contains(reason_of(searched(no_up, "up")), "there is no 'layers.0.mlp.experts.000.up_proj.weight'"));
  }
}

TEST_CASE("numbers of experts that nothing parts from their word") {
  const auto l = random_layer(60, N, F, D);
  checkpoint_builder builder;
  builder.add<float>("layers.0.mlp.gate.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "layers.0.mlp.expert" + std::to_string(e);
    builder.add<bf16>(expert + ".gate_proj.weight", {F, D}, one_expert(l, e));
    builder.add<bf16>(expert + ".up_proj.weight", {F, D}, one_expert(l, N - 1 - e));
    builder.add<bf16>(expert + ".down_proj.weight", {D, F}, one_expert(l, e));
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(s.found.omissions.empty());
  check_shows(s.found[0], l);
}

TEST_CASE("adapters of the kinds that are known are set aside") {
  const auto l = random_layer(61, N, F, D);
  for (const char* word :
       {"lora_A", "lora_magnitude_vector", "lokr_w1", "hada_w1_a", "oft_r", "boft_R", "ia3_l",
        "vera_lambda_b", "hra_u", "bone_block", "miss_block", "fourierft_spectrum", "vblora_logits_A",
        "randlora_A", "shira_weight", "c3a_kernel", "road_theta", "waveft_spectrum"}) {
    CAPTURE(word);
    checkpoint_builder builder;
    add_layer(builder, "", l);
    builder.add<float>("base_model.model.mlp.experts.0.gate_proj." + std::string(word), {2, 3},
                       std::vector<float>(6));
    const searched s(builder);
    CHECK(s.found.size() == 1);
    REQUIRE(s.found.omissions.size() == 1);
    CHECK(s.found.omissions[0].kind == omission_kind::set_aside);
    CHECK(contains(s.found.omissions[0].reason, "an adapter"));
  }
}

TEST_CASE("one layer of which something is said is named; of several, numbers are stars") {
  const auto l = random_layer(62, N, F, D);
  checkpoint_builder one;
  one.add<bf16>("layers.3.mlp.router.weight", {N, D}, l.router);
  CHECK(searched(one).found.omissions[0].name == "layers.3.mlp.router.weight");
  one.add<bf16>("layers.5.mlp.router.weight", {N, D}, l.router);
  CHECK(searched(one).found.omissions[0].name == "layers.*.mlp.router.weight (2 tensors)");
}

TEST_CASE("experts of a packing that config.json names and nobody here knows") {
  const auto l = random_layer(55, N, F, D);
  checkpoint_builder builder;  // as AQLM and quanto leave them
  builder.add<float>("mlp.gate.weight", {N, D}, l.router);
  for (index_t e = 0; e < N; ++e) {
    const auto expert = "mlp.experts." + std::to_string(e) + ".gate_proj.";
    builder.add<bf16>(expert + "codebooks", {1, 2, 1, 4}, std::vector<float>(8));
    builder.add<bf16>(expert + "scaling", {F, 1}, std::vector<float>(static_cast<std::size_t>(F)));
  }
  CHECK(!contains(reason_of(searched(builder)), "aqlm"));
  CHECK(contains(reason_of(searched(builder, {}, R"({"quantization_config": {"quant_method": "aqlm"}})")),
                 "config.json names quant_method 'aqlm', which is not known here"));
}

TEST_CASE("what is set aside, what is missing, and rows that have no expert") {
  const auto l = random_layer(49, N, F, D);
  checkpoint_builder builder;
  add_linears(builder, "layers.0.", l);
  builder.add<float>("exp_avg.layers.0.mlp.gate.weight", {N, D}, l.router);
  const auto config = R"({"num_hidden_layers": 3, "num_experts": 6, "hidden_size": 10})";
  const searched s(builder, {}, config, "model-00001-of-00002.safetensors");
  REQUIRE(s.found.size() == 1);
  std::map<std::string, omission_kind> kinds;
  index_t layers = 0;
  index_t rows = 0;
  for (const auto& o : s.found.omissions) {
    kinds[o.reason] = o.kind;
    layers += o.layers;
    rows += o.rows;
  }
  CHECK(kinds ==
        std::map<std::string, omission_kind>{
            {"optimizer state, which is no layer of the model", omission_kind::set_aside},
            {"not here, though the name of model-00001-of-00002.safetensors says that it is one of 2 "
             "shards",
             omission_kind::missing},
            {"says that layers 1-2 have 6 experts each, and they are not here", omission_kind::missing},
            {"config.json says 6 experts, and 4 are here", omission_kind::missing}});
  CHECK(layers == 2);
  CHECK(rows == 2 * 6 + 2);
}

TEST_CASE("a config.json may nest its parts as deep as it likes") {
#if defined(MPIROUTER_TEST_SANITIZED)  // which make frames of a stack larger
  constexpr int levels = 100'000;
#else
  constexpr int levels = 1'000'000;
#endif
  std::string text;
  for (int i = 0; i < levels; ++i) {
    text += R"({"text_config":)";
  }
  text += R"({"num_experts": 6, "hidden_size": 10})" + std::string(levels, '}');
  const auto config = parse_model_config(text);
  CHECK(config.problem == "");
  CHECK(config.num_experts == 6);
  CHECK(config.hidden_dim == 10);
  CHECK(parse_quantization(json::parse(text)).method == "");
}

TEST_CASE("LongCat's config.json counts its layers wherever it says that it is LongCat's") {
  const json inner{{"num_hidden_layers", 4}, {"n_routed_experts", N}, {"hidden_size", D}};
  const auto layers = [](const json& config) { return parse_model_config(config.dump()).moe_layers->size(); };
  for (const char* part : {"text_config", "llm_config"}) {
    CHECK(layers({{part, inner}}) == 4);
    CHECK(layers({{"model_type", "longcat_flash_omni"}, {part, inner}}) == 2);
    CHECK(layers({{"architectures", {"LongcatFlashForCausalLM"}}, {part, inner}}) == 2);
    auto named = inner;
    named["model_type"] = "longcat_flash";
    CHECK(layers({{"model_type", "x"}, {part, named}}) == 2);
    named["num_layers"] = 3;
    CHECK(layers({{part, named}}) == 3);
    named["num_layers"] = nullptr;
    CHECK(layers({{part, named}}) == 2);
  }
}

TEST_CASE("LongCat's config.json counts layers, and attention twice in each") {
  const auto layers_of = [](const char* model) {
    const json config{
        {"model_type", model}, {"num_layers", 2}, {"num_hidden_layers", 4}, {"n_routed_experts", 4}};
    return parse_model_config(config.dump()).moe_layers.value();
  };
  CHECK(layers_of("longcat_flash") == std::vector<index_t>{0, 1});
  CHECK(layers_of("qwen3_moe").size() == 4);
}

TEST_CASE("experts that no one batch has are seen one by one") {
  const auto l = random_layer(50, 2, F, D);
  checkpoint_builder builder;
  builder.add<float>("mlp.gate.weight", {2, D}, l.router);
  builder.add<bf16>("mlp.experts.0.gate_proj.weight", {F, D}, one_expert(l, 0));
  SUBCASE("F differs") {
    builder.add<bf16>("mlp.experts.1.gate_proj.weight", {F - 1, D},
                      {l.gates.begin(), l.gates.begin() + (F - 1) * D});
  }
  SUBCASE("the type differs") {
    builder.add<float>("mlp.experts.1.gate_proj.weight", {F, D}, one_expert(l, 1));
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  CHECK(contains(message_of([&] { visit_experts(s.found[0], [](const auto&) {}); }),
                 "no one batch has both; visit_gate takes them one by one"));
  CHECK(visit_gate(s.found[0].gates[1], [](const auto& a) { return a.cols(); }) == D);
}

TEST_CASE("what is packed is decoded to the type that is asked for, in which all is computed") {
  constexpr index_t cols = 16;
  checkpoint_builder builder;
  builder.add_raw("mlp.gate.weight", dtype::f8_e4m3, {N, cols}, std::byte{0x39});  // 1.125
  builder.add<float>("mlp.gate.weight_scale", {1}, {0.1F});
  for (index_t e = 0; e < N; ++e) {
    const auto name = "mlp.experts." + std::to_string(e) + ".gate_proj.weight";
    builder.add_raw(name + "_packed", dtype::u8, {F, cols / 2}, std::byte{0x33});  // 1.5
    builder.add_raw(name + "_scale", dtype::f8_e4m3, {F, 1}, std::byte{0x38});     // 1
    builder.add<float>(name + "_global_scale", {1}, {3});  // the reciprocal of what multiplies
  }
  const searched s(builder);
  REQUIRE(s.found.size() == 1);
  const auto is = []<class T>(T value) {
    return [value](const auto& row) {
      bool same = row.size() == cols && std::same_as<decltype(row), const vector_view<const T>&>;
      for (index_t d = 0; same && d < cols; ++d) {
        same = widen<double>(row[d]) == double{value};
      }
      return same;
    };
  };
  const auto last = [](const auto& check) {
    return [=](const auto& a) { return check(a.row(a.rows() - 1)); };
  };
  const auto& layer = s.found[0];
  CHECK(visit_gate(layer.gates[1], last(is(1.5F * (1 / 3.0F)))));
  CHECK(visit_gate<double>(layer.gates[1], last(is(1.5 * (1 / 3.0)))));
  CHECK(load_experts<double>(layer).view()[N - 1](F - 1, cols - 1) == 1.5 * (1 / 3.0));
  CHECK(visit_router(layer, last(is(1.125F * 0.1F))));
  CHECK(visit_router<double>(layer, last(is(1.125 * double{0.1F}))));
  CHECK(visit_router_row(layer, 2, is(1.125F * 0.1F)));
  CHECK(visit_router_row<double>(layer, 2, is(1.125 * double{0.1F})));
}

TEST_CASE("the words of the options are the caller's") {
  checkpoint_builder builder;
  builder.add<float>("way", {N, D}, random_layer(51, N, F, D).router);
  const moe_search wanted{.patterns = name_patterns{"way", "in"},
                          .layout = {},
                          .layout_of_router = router_layout::nd,
                          .words = {.layout = "--as",
                                    .layout_of_router = "--router-as",
                                    .patterns = "the flags",
                                    .patterns_and_layout = "the flags"}};
  CHECK(reason_of(searched(builder, wanted)) == "there is no 'in'");
  checkpoint_builder square;
  square.add<float>("way", {N, D}, random_layer(51, N, F, D).router);
  square.add<float>("in", {N, F, D + 1}, std::vector<float>(static_cast<std::size_t>(N * F * (D + 1))));
  CHECK(contains(reason_of(searched(square, wanted)), "[N, F, D] (--as nfd)"));
}

TEST_CASE("ranges of numbers, for messages") {
  const std::vector<index_t> numbers{0, 1, 2, 5, 7, 8};
  CHECK(ranges_of(numbers) == "0-2, 5, 7-8");
  CHECK(ranges_of(numbers, 2) == "0-2, 5, …");
  CHECK(ranges_of({}).empty());
}

}  // namespace test_moe_layers
