// Which tensors of a checkpoint are one packed weight, under which name, shape and packing; each number
// against the formula of its format, written out here.
#include "checkpoints.hpp"
#include "gguf.hpp"

#include <mpi_router/io/moe_layers.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>

#include <bit>
#include <cmath>
#include <functional>

namespace test_weights {
using namespace io_test;
using namespace mpi_router;
using test_support::contains;
using test_support::message_of;

namespace {

constexpr double e2m1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

/// E4M3 (fn) without its NaN.
double e4m3(unsigned code) {
  const int e = static_cast<int>(code >> 3U & 15U);
  const double m = static_cast<double>(code & 7U) / 8;
  return ((code & 128U) != 0 ? -1 : 1) * (e == 0 ? std::ldexp(m, -6) : std::ldexp(1 + m, e - 7));
}

using bytes = std::vector<std::byte>;

unsigned at(const bytes& data, index_t i) { return static_cast<unsigned>(data[static_cast<std::size_t>(i)]); }
unsigned nibble(const bytes& data, index_t i) { return at(data, i / 2) >> (4 * (i % 2)) & 15U; }
double signed_at(const bytes& data, index_t i) {
  return static_cast<double>(static_cast<std::int8_t>(at(data, i)));
}

/// A checkpoint of parts that are made here, with random bytes and scales.
struct parts {
  temporary_folder folder;
  checkpoint_builder builder;
  test_support::random_source random{90};

  /// Random bytes, none of which is a NaN of E4M3 or E8M0.
  bytes codes(index_t count, unsigned low = 0, unsigned high = 255) {
    bytes out(static_cast<std::size_t>(count));
    for (auto& b : out) {
      auto code = static_cast<unsigned>(random.integer(static_cast<int>(low), static_cast<int>(high)));
      code = (code & 0x7fU) == 0x7fU ? code - 1 : code;
      b = static_cast<std::byte>(code);
    }
    return out;
  }
  bytes add(const std::string& name, dtype type, const std::vector<index_t>& shape, bytes data) {
    builder.add_bytes(name, type, shape, data);
    return data;
  }
  std::vector<float> scales(const std::string& name, const std::vector<index_t>& shape, index_t count) {
    std::vector<float> out;
    for (index_t i = 0; i < count; ++i) {
      out.push_back(static_cast<float>(static_cast<bf16>(static_cast<float>(random.normal()))));
    }
    builder.add<bf16>(name, shape, out);
    return out;
  }
  void integers(const std::string& name, const std::vector<std::int32_t>& values) {
    bytes out(values.size() * sizeof(std::int32_t));
    std::memcpy(out.data(), values.data(), out.size());
    add(name, dtype::i32, {static_cast<index_t>(values.size())}, out);
  }
  /// A file of its own each time: Windows replaces none that is mapped.
  [[nodiscard]] checkpoint open(const json& config = {}) const {
    const auto path = folder / ("m" + std::to_string(folder.entries()) + ".safetensors");
    builder.write(path);
    if (!config.is_null()) {
      write_bytes(folder / "config.json", config.dump());
    }
    return checkpoint(path);
  }
};

using formula = std::function<double(index_t, index_t)>;

/// That the one weight of that name has this shape and these numbers, and that nothing else is left.
void check_is(const checkpoint& model, const std::string& name, const std::vector<index_t>& shape,
              const std::string& stored_as, const formula& expected) {
  CAPTURE(name);
  REQUIRE(model.weights().size() == 1);
  const auto* w = model.find_weight(name);
  REQUIRE(w != nullptr);
  CHECK(w->problem() == "");
  CHECK(std::vector(w->shape().begin(), w->shape().end()) == shape);
  CHECK(contains(w->stored_as(), stored_as));
  REQUIRE(w->is_packed());
  std::vector<float> decoded(static_cast<std::size_t>(w->rows() * w->cols()));
  w->decode(0, w->rows(), decoded.data());
  std::vector<float> middle(static_cast<std::size_t>(2 * w->cols()));
  w->decode(1, 2, middle.data());
  index_t wrong = 0;
  for (index_t f = 0; f < w->rows(); ++f) {
    for (index_t d = 0; d < w->cols(); ++d) {
      const double is = static_cast<double>(decoded[static_cast<std::size_t>(f * w->cols() + d)]);
      const double should = expected(f, d);
      wrong += std::abs(is - should) <= 1e-6 * std::abs(should) ? 0 : 1;
      const bool held = f == 1 || f == 2;
      wrong += held && static_cast<double>(middle[static_cast<std::size_t>((f - 1) * w->cols() + d)]) != is
                   ? 1
                   : 0;
    }
  }
  CHECK(wrong == 0);
}

std::string problem_of(const checkpoint& model, const std::string& name) {
  const auto* w = model.find_weight(name);
  return w == nullptr ? "no such weight" : w->problem();
}

json with_blocks() {
  return {{"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}};
}

template <class T>
double num(const std::vector<T>& v, index_t i) {
  return static_cast<double>(v[static_cast<std::size_t>(i)]);
}

}  // namespace

TEST_CASE("FP8: blocks with partial ends, whatever shape their scales are written in") {
  constexpr index_t F = 130, D = 200;
  for (const auto& shape :
       {std::vector<index_t>{2, 2}, std::vector<index_t>{4}, std::vector<index_t>{2, 1, 2, 1}}) {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale_inv", shape, 4);
    check_is(p.open(with_blocks()), "a.weight", {F, D}, "128×128",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f / 128 * 2 + d / 128); });
  }
}

TEST_CASE("MXFP8: powers of two for 32 columns of a row each, the last of them fewer") {
  constexpr index_t F = 6, D = 80;
  for (const auto type : {dtype::u8, dtype::f8_e8m0}) {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    bytes exponents = p.codes(F * 3);
    for (auto& e : exponents) e = (e & std::byte{31}) | std::byte{96};
    const auto s = p.add("a.weight_scale_inv", type, {F, 3}, exponents);
    check_is(p.open(json{{"quantization_config", {{"quant_method", "mxfp8"}}}}), "a.weight", {F, D}, "FP8",
             [&](index_t f, index_t d) {
               return e4m3(at(code, f * D + d)) *
                      std::ldexp(1.0, static_cast<int>(at(s, f * 3 + d / 32)) - 127);
             });
  }
}

TEST_CASE("MXFP8 without a config: a power of two for 32 columns, the last of them fewer") {
  constexpr index_t F = 5, D = 80;
  parts p;
  const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
  const auto s = p.add("a.weight_scale", dtype::u8, {F, 3}, p.codes(F * 3, 110, 140));
  check_is(p.open(), "a.weight", {F, D}, "FP8 E4M3, 1×32 blocks", [&](index_t f, index_t d) {
    return e4m3(at(code, f * D + d)) * std::ldexp(1.0, static_cast<int>(at(s, f * 3 + d / 32)) - 127);
  });
}

TEST_CASE("FP8: a scale for each row, for each column, for all; stacks of them") {
  constexpr index_t N = 3, F = 6, D = 10;
  for (const auto& shape : {std::vector<index_t>{F, 1}, std::vector<index_t>{F}}) {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", shape, F);
    check_is(p.open(), "a.weight", {F, D}, "each row",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f); });
  }
  {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", {}, 1);
    check_is(p.open(), "a.weight", {F, D}, "one scale",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, 0); });
  }
  {
    parts p;  // Llama-4
    const auto code = p.add("e.gate_up_proj", dtype::f8_e4m3, {N, D, F}, p.codes(N * D * F));
    const auto s = p.scales("e.gate_up_proj_scale", {N, 1, F}, N * F);
    check_is(p.open(), "e.gate_up_proj", {N, D, F}, "each column",
             [&](index_t r, index_t f) { return e4m3(at(code, r * F + f)) * num(s, r / D * F + f); });
  }
  {
    parts p;  // one scale for gates and one for up projections, which are no blocks of 128 rows
    p.add("e.gate_up_proj", dtype::f8_e4m3, {N, 200, D}, p.codes(N * 200 * D));
    p.scales("e.gate_up_proj_scale", {N, 2}, N * 2);
    CHECK(contains(problem_of(p.open(), "e.gate_up_proj"), "no packing known here has these"));
  }
  {
    parts p;
    const auto code = p.add("e.gate_up_proj", dtype::f8_e4m3, {N, F, D}, p.codes(N * F * D));
    const auto s = p.scales("e.gate_up_proj_scale_inv", {N, 1, 1}, N);
    check_is(p.open(with_blocks()), "e.gate_up_proj", {N, F, D}, "FP8 E4M3",
             [&](index_t r, index_t d) { return e4m3(at(code, r * D + d)) * num(s, r / F); });
  }
}

TEST_CASE("FP8 under Mistral's own names; offsets and SVDQuant's additions are not passed over") {
  constexpr index_t F = 6, D = 32;
  {
    parts p;
    const auto code = p.add("e.w1.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("e.w1.qscale_weight", {}, 1);
    check_is(p.open(), "e.w1.weight", {F, D}, "one scale",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, 0); });
    p.scales("e.w1.qscale_act", {}, 1);  // of what goes in
    CHECK(problem_of(p.open(), "e.w1.weight") == "");
  }
  for (const unsigned offset : {0U, 1U}) {
    parts p;
    p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
    p.scales("a.weight_scale", {F, 1}, F);
    p.add("a.weight_offset", dtype::bf16, {F, 1},
          bytes(static_cast<std::size_t>(2 * F), static_cast<std::byte>(offset)));
    CHECK(contains(problem_of(p.open(), "a.weight"), "'a.weight_offset' beside it") == (offset != 0));
  }
  parts p;
  p.add("a.weight", dtype::u8, {F, D / 2}, p.codes(F * D / 2));
  p.add("a.weight_scale", dtype::f8_e4m3, {F, D / 16}, p.codes(F * D / 16));
  p.builder.add<float>("a.weight_scale_2", {}, {0.5F});
  CHECK(problem_of(p.open(), "a.weight") == "");
  p.builder.add<bf16>("a.svdquant_lora_a", {1, D}, std::vector<float>(D, 1));
  CHECK(contains(problem_of(p.open(), "a.weight"), "'a.svdquant_lora_a' beside it"));
}

TEST_CASE("FP8 of AMD's: another bias, and a NaN where a negative zero would be") {
  constexpr index_t F = 4, D = 6;
  for (const auto& [type, mantissa, bias, name] : {std::tuple{dtype::f8_e4m3fnuz, 3, 8, "FP8 E4M3FNUZ"},
                                                   std::tuple{dtype::f8_e5m2fnuz, 2, 16, "FP8 E5M2FNUZ"}}) {
    parts nan;
    nan.builder.add_raw("a.weight", type, {1, 3}, std::byte{0x80});
    nan.scales("a.weight_scale", {1, 1}, 1);
    std::vector<float> row(3);
    nan.open().find_weight("a.weight")->decode(0, 1, row.data());
    CHECK(std::ranges::all_of(row, [](float x) { return std::isnan(x); }));
    parts p;
    auto drawn = p.codes(F * D);
    for (auto& c : drawn) {
      c = c == std::byte{0x80} ? std::byte{0xff} : c;
    }
    drawn[0] = std::byte{0x83};
    const auto code = p.add("a.weight", type, {F, D}, drawn);
    const auto s = p.scales("a.weight_scale", {F, 1}, F);
    const int bits = mantissa;
    const int offset = bias;
    check_is(p.open(), "a.weight", {F, D}, name, [&](index_t f, index_t d) {
      const unsigned c = at(code, f * D + d);
      const int e = static_cast<int>((c & 0x7fU) >> bits);
      const double m = std::ldexp(static_cast<double>(c & ((1U << bits) - 1U)), -bits);
      const double sign = c < 0x80U ? 1 : -1;
      return sign * (e == 0 ? std::ldexp(m, 1 - offset) : std::ldexp(1 + m, e - offset)) * num(s, f);
    });
  }
}

TEST_CASE("int8 and FP8 as SGLang names them: blocks with partial ends, rows") {
  constexpr index_t F = 130, D = 260;
  const auto said = [](const char* method) {
    return json{{"quantization_config", {{"quant_method", method}}}};
  };
  auto blocks = said("blockwise_int8");
  blocks["quantization_config"]["weight_block_size"] = {128, 128};
  for (const auto& config : {blocks, said("w8a8_int8"), json()}) {
    parts p;
    const auto code = p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale_inv", {2, 3}, 6);
    check_is(p.open(config), "a.weight", {F, D}, "int8, 128×128 blocks", [&](index_t f, index_t d) {
      return signed_at(code, f * D + d) * num(s, f / 128 * 3 + d / 128);
    });
  }
  for (const auto& shape :
       {std::vector<index_t>{F, 1}, std::vector<index_t>{F}, std::vector<index_t>{1, F}}) {
    parts p;
    const auto code = p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", shape, F);
    check_is(p.open(said("w8a8_int8")), "a.weight", {F, D}, "int8",
             [&](index_t f, index_t d) { return signed_at(code, f * D + d) * num(s, f); });
    parts q;
    const auto floats = q.add("a.weight", dtype::f8_e4m3, {F, D}, q.codes(F * D));
    const auto t = q.scales("a.weight_scale", shape, F);
    check_is(q.open(said("w8a8_fp8")), "a.weight", {F, D}, "each row",
             [&](index_t f, index_t d) { return e4m3(at(floats, f * D + d)) * num(t, f); });
  }
  for (const auto type : {dtype::i8, dtype::f8_e4m3}) {  // two readings, of which a method may be the one
    const auto opened = [&](index_t rows, index_t cols, const char* method) {
      parts p;
      p.add("a.weight", type, {rows, cols}, p.codes(rows * cols));
      p.scales("a.weight_scale", {1, rows}, rows);
      const auto model = p.open(*method == '\0' ? json() : said(method));
      const auto* w = model.find_weight("a.weight");
      return w->is_packed() ? w->stored_as() : w->problem();
    };
    const std::string by_row = type == dtype::i8 ? "int8" : "FP8 E4M3, a scale for each row";
    const std::string by_column =
        type == dtype::i8 ? "int8, a scale for each column" : "FP8 E4M3, a scale for each column";
    const char* method = type == dtype::i8 ? "w8a8_int8" : "w8a8_fp8";
    CHECK(contains(opened(16, 2048, ""),
                   "are [1, 16]: they may be one for each row, or one for each block of"));
    CHECK(opened(16, 2048, method) == by_row);
    CHECK(contains(opened(8, 8, ""), "are [1, 8]: they may be one for each row, or one for each column"));
    CHECK(opened(8, 8, method) == by_row);
    CHECK(opened(8, 8, "fbgemm_fp8") == by_column);
    CHECK(opened(16, 130, "") == by_row);
  }
  parts as_many_as_rows;  // [2, 2] scales of four rows are none for each row
  as_many_as_rows.add("a.weight", dtype::i8, {4, 6}, as_many_as_rows.codes(24));
  as_many_as_rows.scales("a.weight_scale", {2, 2}, 4);
  CHECK(contains(problem_of(as_many_as_rows.open(), "a.weight"), "no packing known here has these"));
}

TEST_CASE("int8 of a stack: zero points for each row, each group, or one for all of each expert") {
  constexpr index_t N = 3, F = 4, D = 32;
  for (const index_t groups : {0, 1, 2}) {
    CAPTURE(groups);
    parts p;
    const index_t rows = groups == 0 ? 1 : F;
    const index_t each = std::max<index_t>(groups, 1);
    const auto code = p.add("e.gate_proj", dtype::i8, {N, F, D}, p.codes(N * F * D));
    const auto s = p.scales("e.gate_proj_scale", {N, rows, each}, N * rows * each);
    const auto zero = p.add("e.gate_proj_zero_point", dtype::i8, {N, rows, each}, p.codes(N * rows * each));
    check_is(p.open(), "e.gate_proj", {N, F, D}, "int8", [&](index_t r, index_t d) {
      const index_t i = (groups == 0 ? r / F : r) * each + d * each / D;
      return (signed_at(code, r * D + d) - signed_at(zero, i)) * num(s, i);
    });
  }
  parts wide;
  wide.add("e.gate_proj", dtype::i8, {N, F, D}, wide.codes(N * F * D));
  wide.scales("e.gate_proj_scale", {N, F, 1}, N * F);
  wide.add("e.gate_proj_zero_point", dtype::i32, {N, F, 1}, wide.codes(N * F * 4));
  CHECK(contains(problem_of(wide.open(), "e.gate_proj"), "zero points"));
}

TEST_CASE("Quark: FP8 and MXFP4 as others write them, and nothing else") {
  constexpr index_t F = 4, D = 64;
  const json mxfp4{{"dtype", "fp4"}, {"group_size", 32}, {"scale_format", "e8m0"}};
  const json fp8{{"dtype", "fp8_e4m3"}, {"qscheme", "per_tensor"}};
  const auto config = [](const json& weight, const json& of_a_layer) {
    return json{{"quantization_config",
                 {{"quant_method", "quark"},
                  {"global_quant_config", {{"weight", weight}}},
                  {"layer_quant_config", {{"*.x", {{"weight", of_a_layer}}}}}}}};
  };
  parts p;
  const auto code = p.add("a.weight", dtype::u8, {F, D / 2}, p.codes(F * D / 2));
  const auto s = p.add("a.weight_scale", dtype::u8, {F, D / 32}, p.codes(F * D / 32, 110, 140));
  check_is(p.open(config(mxfp4, nullptr)), "a.weight", {F, D}, "MXFP4", [&](index_t f, index_t d) {
    return e2m1[nibble(code, f * D + d)] * std::ldexp(1.0, static_cast<int>(at(s, f * 2 + d / 32)) - 127);
  });
  CHECK(problem_of(p.open(config(fp8, mxfp4)), "a.weight") == "");
  CHECK(problem_of(p.open(config(nullptr, nullptr)), "a.weight") == "");
  const auto refused = [&](const json& weight, const json& of_a_layer, const char* said) {
    CHECK(contains(problem_of(p.open(config(weight, of_a_layer)), "a.weight"), said));
  };
  refused({{"dtype", "int4"}}, nullptr, "packed by weights of 'int4' of Quark");
  CHECK(problem_of(p.open(config(mxfp4, {{"dtype", "uint4"}})), "a.weight") == "");  // which others are
  CHECK(problem_of(p.open(config({{"dtype", "int8"}}, mxfp4)), "a.weight") == "");
  parts floats;
  floats.add("a.weight", dtype::f8_e5m2, {F, D}, floats.codes(F * D));
  floats.scales("a.weight_scale", {F, 1}, F);
  for (const char* type : {"fp8_e5m2", "int8"}) {
    CHECK(problem_of(floats.open(config({{"dtype", type}}, nullptr)), "a.weight") == "");
  }
  parts integers;
  integers.add("a.weight", dtype::i8, {F, D}, integers.codes(F * D));
  integers.scales("a.weight_scale", {F, 1}, F);
  CHECK(contains(problem_of(integers.open(config(mxfp4, {{"dtype", "int8"}})), "a.weight"),
                 "weights of 'int8' of Quark"));
  refused({{"dtype", "fp4"}, {"group_size", 16}, {"scale_format", "e4m3"}}, nullptr, "weights of 'fp4'");
  refused(json::array({fp8, mxfp4}), nullptr, "weights of 'several steps' of Quark");
}

TEST_CASE("FP8: blocks as compressed-tensors names them, and as ModelOpt writes their scales") {
  constexpr index_t F = 130, D = 200;
  const auto by = [](const json& structure) {
    return json{{"quantization_config",
                 {{"quant_method", "compressed-tensors"},
                  {"config_groups", {{"group_0", {{"weights", {{"block_structure", structure}}}}}}}}}};
  };
  for (const json& structure : {json({64, 100}), json("64x100")}) {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", {3, 2}, 6);
    check_is(p.open(by(structure)), "a.weight", {F, D}, "64×100",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f / 64 * 2 + d / 100); });
  }
  {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", {2, 1, 2, 1}, 4);
    check_is(p.open(), "a.weight", {F, D}, "128×128",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f / 128 * 2 + d / 128); });
  }
  for (const json& no_structure : {json("64"), json("x"), json({64}), json({0, 0}), json(64)}) {
    parts p;  // as many scales as blocks, but of the transposed grid
    p.add("a.weight", dtype::f8_e4m3, {F, 300}, p.codes(F * 300));
    p.scales("a.weight_scale", {3, 2}, 6);
    CHECK(contains(problem_of(p.open(by(no_structure)), "a.weight"), "its scales 'a.weight_scale'"));
    CHECK(contains(problem_of(p.open(with_blocks()), "a.weight"), "its scales 'a.weight_scale'"));
  }
}

TEST_CASE("four-bit floats: DeepSeek-V4, gpt-oss, compressed-tensors, ModelOpt") {
  constexpr index_t N = 3, F = 5, D = 64;
  const auto mx = [](const bytes& code, const bytes& scale) {
    return [&](index_t f, index_t d) {
      return e2m1[nibble(code, f * D + d)] *
             std::ldexp(1.0, static_cast<int>(at(scale, (f * D + d) / 32)) - 127);
    };
  };
  {
    parts p;
    const auto code = p.add("a.w1.weight", dtype::i8, {F, D / 2}, p.codes(F * D / 2));
    const auto scale = p.add("a.w1.scale", dtype::f8_e8m0, {F, 2}, p.codes(F * 2, 110, 140));
    check_is(p.open(), "a.w1.weight", {F, D}, "MXFP4", mx(code, scale));
  }
  for (const char* mark : {"_", "."}) {
    parts p;
    const std::string name = "e.gate_up_proj";
    const auto code = p.add(name + mark + "blocks", dtype::u8, {N, F, 2, 16}, p.codes(N * F * 32));
    const auto scale = p.add(name + mark + "scales", dtype::u8, {N, F, 2}, p.codes(N * F * 2, 110, 140));
    check_is(p.open(), name, {N, F, D}, "MXFP4", mx(code, scale));
  }
  {
    parts p;
    const auto code = p.add("a.weight_packed", dtype::u8, {F, D / 2}, p.codes(F * D / 2));
    const auto scale = p.add("a.weight_scale", dtype::u8, {F, 2}, p.codes(F * 2, 110, 140));
    check_is(p.open(), "a.weight", {F, D}, "MXFP4", mx(code, scale));
  }
  for (const bool reciprocal : {true, false}) {
    for (const index_t group : {16, 32}) {  // 32: ModelOpt's W4A8
      parts p;
      const auto code =
          p.add(reciprocal ? "a.weight_packed" : "a.weight", dtype::u8, {F, D / 2}, p.codes(F * D / 2));
      const auto scale = p.add("a.weight_scale", dtype::f8_e4m3, {F, D / group}, p.codes(F * D / group));
      p.builder.add<float>(reciprocal ? "a.weight_global_scale" : "a.weight_scale_2", {1}, {3});
      const double global = reciprocal ? 1.0 / 3 : 3.0;
      const char* name = group == 16 ? "NVFP4, groups of 16" : "FP4 E2M1, groups of 32";
      if (reciprocal && group == 32) {  // nobody writes it so
        CHECK(contains(problem_of(p.open(), "a.weight"), "weight_scale"));
        continue;
      }
      check_is(p.open(), "a.weight", {F, D}, name, [&](index_t f, index_t d) {
        return e2m1[nibble(code, f * D + d)] * e4m3(at(scale, (f * D + d) / group)) * global;
      });
    }
  }
}

TEST_CASE("NVFP4 of a stack: scales under its own name, one for all of each expert") {
  constexpr index_t N = 3, F = 4, D = 32;
  for (const char* mark : {"_scale", "_weight_scale"}) {
    for (const index_t globals : {index_t{1}, N}) {
      parts p;
      const std::string scale_name = std::string("e.gate_up_proj") + mark;
      const auto code = p.add("e.gate_up_proj", dtype::u8, {N, F, D / 2}, p.codes(N * F * D / 2));
      const auto scale = p.add(scale_name, dtype::f8_e4m3, {N, F, D / 16}, p.codes(N * F * D / 16));
      std::vector<float> global{3, 5, 7};
      global.resize(static_cast<std::size_t>(globals));
      p.builder.add<float>(scale_name + "_2", {globals}, global);
      check_is(p.open(), "e.gate_up_proj", {N, F, D}, "NVFP4", [&](index_t r, index_t d) {
        return e2m1[nibble(code, r * D + d)] * e4m3(at(scale, (r * D + d) / 16)) *
               num(global, globals == 1 ? 0 : r / F);
      });
    }
  }
  parts p;
  p.add("a.weight_packed", dtype::u8, {F, D / 2}, p.codes(F * D / 2));
  p.add("a.weight_scale", dtype::f8_e4m3, {F, D / 16}, p.codes(F * D / 16));
  CHECK(contains(problem_of(p.open(), "a.weight"), "has no weight_global_scale beside it"));

  parts q;  // packed along D, then turned, as ModelOpt exports Llama-4's and gpt-oss's stacks
  const auto code = q.add("e.gate_up_proj", dtype::u8, {N, D / 2, 2 * F}, q.codes(N * F * D));
  const auto scale =
      q.add("e.gate_up_proj_weight_scale", dtype::f8_e4m3, {N, D / 16, 2 * F}, q.codes(N * F * D / 8));
  q.builder.add<float>("e.gate_up_proj_weight_scale_2", {N}, {3, 5, 7});
  check_is(q.open(), "e.gate_up_proj", {N, D, 2 * F}, "NVFP4", [&](index_t r, index_t f) {
    const index_t pair = (r / 2 * 2 * F + f) * 2 + r % 2;  // rows 2k and 2k + 1 share bytes
    return e2m1[nibble(code, pair)] * e4m3(at(scale, r / 16 * 2 * F + f)) *
           num(std::vector<float>{3, 5, 7}, r / D);
  });
}

TEST_CASE(
    "FP8: ModelOpt's [rows / 128, 1, columns / 128, 1] of 128 columns of blocks is no column of scales") {
  constexpr index_t F = 128, D = 128 * 128;
  parts p;
  const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
  const auto s = p.scales("a.weight_scale", {1, 1, 128, 1}, 128);
  check_is(p.open(), "a.weight", {F, D}, "128×128",
           [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, d / 128); });
}

TEST_CASE(
    "weights for inputs that a transform_config turns are refused, those of other modules are no matter") {
  const auto problem_with = [](const json& step) {
    parts p;
    p.add("a.weight", dtype::f8_e4m3, {4, 8}, p.codes(32));
    p.scales("a.weight_scale", {4}, 4);
    const json scheme{{"type", "hadamard"}, {"apply", {step}}};
    return problem_of(p.open({{"quantization_config",
                               {{"quant_method", "compressed-tensors"},
                                {"transform_config", {{"config_groups", {{"v", scheme}}}}}}}}),
                      "a.weight");
  };
  const auto step = [](const char* location, const json& targets) {
    return json{{"location", location}, {"targets", targets}};
  };
  CHECK(contains(problem_with(step("input", json::array({"Linear"}))), "by a transform_config"));
  CHECK(contains(problem_with({{"location", "input"}}), "by a transform_config"));
  CHECK(problem_with(step("output", json::array({"Linear"}))).empty());
  CHECK(problem_with(step("input", json::array({"re:.*down_proj$"}))).empty());
  CHECK(problem_with("no step").empty());
}

TEST_CASE("a config.json that nests as deep as it likes, or names more sizes than any model has") {
  const auto open_with = [](const std::string& entry) {
    parts p;
    p.add("a.weight", dtype::f8_e4m3, {4, 8}, p.codes(32));
    p.scales("a.weight_scale", {4}, 4);
    p.builder.write(p.folder / "model.safetensors");
    write_bytes(p.folder / "config.json", R"({"quantization_config": )" + entry + "}");
    return problem_of(checkpoint(p.folder / "model.safetensors"), "a.weight");
  };
  const std::string deep = std::string(200'000, '[') + std::string(200'000, ']');
  CHECK(open_with(R"({"quant_method": "fp8", "weight_block_size": )" + deep + "}") == "");
  CHECK(open_with(R"({"quant_method": "fp8", "weight_block_size": [)" + deep + "," + deep + "]}") == "");
  std::string groups;
  for (int size = 1; size <= 100; ++size) {
    groups +=
        core::concatenate(size > 1 ? "," : "", "\"", size, R"(": {"weights": {"group_size": )", size, "}}");
  }
  CHECK(contains(open_with(R"({"quant_method": "compressed-tensors", "config_groups": {)" + groups + "}}"),
                 "packed by more than 64 formats or sizes of groups"));
}

TEST_CASE("integers: compressed-tensors of every width, int8, MLX") {
  constexpr index_t F = 6, D = 64;
  for (const index_t bits : {2, 3, 4, 5, 8}) {
    CAPTURE(bits);
    parts p;
    const index_t words = (D * bits + 31) / 32;
    const auto code = p.add("a.weight_packed", dtype::i32, {F, words}, p.codes(F * words * 4));
    const auto s = p.scales("a.weight_scale", {F, 2}, F * 2);
    p.add("a.weight_shape", dtype::i64, {2}, [&] {
      const std::int64_t shape[2] = {F, D};
      bytes out(sizeof shape);
      std::memcpy(out.data(), shape, sizeof shape);
      return out;
    }());
    check_is(p.open(), "a.weight", {F, D}, "int" + std::to_string(bits), [&](index_t f, index_t d) {
      unsigned value = 0;
      for (index_t b = 0; b < bits; ++b) {
        const index_t bit = f * words * 32 + d * bits + b;
        value |= (at(code, bit / 8) >> (bit % 8) & 1U) << b;
      }
      return (static_cast<double>(value) - std::ldexp(1.0, static_cast<int>(bits) - 1)) *
             num(s, f * 2 + d / 32);
    });
  }
  {
    parts p;  // one scale for the tensor
    const auto code = p.add("a.weight_packed", dtype::i32, {F, D / 8}, p.codes(F * D / 2));
    const auto s = p.scales("a.weight_scale", {1}, 1);
    p.integers("a.weight_shape", {F, D});
    check_is(p.open(), "a.weight", {F, D}, "int4", [&](index_t f, index_t d) {
      return (static_cast<double>(nibble(code, f * D + d)) - 8) * num(s, 0);
    });
  }
  for (const bool symmetric : {true, false}) {
    for (const index_t groups : {0, 1, 2}) {  // 0: one scale for the tensor
      parts p;
      const index_t rows = groups == 0 ? 1 : F;
      const index_t of_row = std::max<index_t>(groups, 1);
      const auto code = p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
      const auto s = p.scales("a.weight_scale", {rows, of_row}, rows * of_row);
      const auto zero = symmetric
                            ? bytes()
                            : p.add("a.weight_zero_point", dtype::i8, {rows, of_row}, p.codes(rows * of_row));
      check_is(p.open(), "a.weight", {F, D}, "int8", [&](index_t f, index_t d) {
        const index_t i = (groups == 0 ? 0 : f * groups) + d * of_row / D;
        return (signed_at(code, f * D + d) - (symmetric ? 0 : signed_at(zero, i))) * num(s, i);
      });
    }
  }
  for (const index_t bits : {4, 8}) {
    parts p;
    const index_t words = D * bits / 32;
    const auto code = p.add("m.gate.weight", dtype::u32, {2, F, words}, p.codes(2 * F * words * 4));
    const auto s = p.scales("m.gate.scales", {2, F, 2}, 2 * F * 2);
    const auto b = p.scales("m.gate.biases", {2, F, 2}, 2 * F * 2);
    const json config{{"quantization", {{"group_size", 32}, {"bits", 4}, {"m.gate", {{"bits", bits}}}}}};
    check_is(p.open(config), "m.gate.weight", {2, F, D}, "MLX", [&](index_t r, index_t d) {
      const index_t i = r * D + d;
      const unsigned q = bits == 8 ? at(code, i) : nibble(code, i);
      return num(s, i / 32) * q + num(b, i / 32);
    });
  }
}

namespace {

json grouped(const char* method, index_t size) {
  return {{"quantization_config", {{"quant_method", method}, {"bits", 4}, {"group_size", size}}}};
}
json compressed_groups(index_t size) {
  return {{"quantization_config",
           {{"quant_method", "compressed-tensors"},
            {"config_groups", {{"group_0", {{"weights", {{"group_size", size}}}}}}}}}};
}

}  // namespace

TEST_CASE("a last group that is partial: config.json says so, or nothing is read") {
  constexpr index_t F = 8, D = 96, G = 64;  // two groups: of 64 and 32, or twice 48
  const auto open_or_problem = [](const parts& p, const json& config) {
    CHECK(contains(problem_of(p.open(), "a.weight"), "no packing known here has these"));
    return p.open(config);
  };
  {
    parts p;
    const auto code = p.add("a.weight_packed", dtype::i32, {F, D / 8}, p.codes(F * D / 2));
    const auto s = p.scales("a.weight_scale", {F, 2}, F * 2);
    p.integers("a.weight_shape", {F, D});
    check_is(open_or_problem(p, compressed_groups(G)), "a.weight", {F, D}, "groups of 64",
             [&](index_t f, index_t d) {
               return (static_cast<double>(nibble(code, f * D + d)) - 8) * num(s, f * 2 + d / G);
             });
  }
  {
    parts p;  // one scale, where config.json says groups
    p.add("a.weight_packed", dtype::i32, {F, D / 8}, p.codes(F * D / 2));
    p.scales("a.weight_scale", {1}, 1);
    p.integers("a.weight_shape", {F, D});
    CHECK(contains(problem_of(p.open(compressed_groups(G)), "a.weight"), "a.weight_scale"));
  }
  {
    parts p;
    const auto code = p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", {F, 2}, F * 2);
    check_is(open_or_problem(p, compressed_groups(G)), "a.weight", {F, D}, "groups of 64",
             [&](index_t f, index_t d) {
               return static_cast<double>(static_cast<std::int8_t>(at(code, f * D + d))) *
                      num(s, f * 2 + d / G);
             });
  }
  {
    parts p;
    const auto code = p.add("a.weight", dtype::f8_e4m3, {F, D}, p.codes(F * D));
    const auto s = p.scales("a.weight_scale", {F, 2}, F * 2);
    check_is(open_or_problem(p, compressed_groups(G)), "a.weight", {F, D}, "1×64",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f * 2 + d / G); });
  }
  {
    parts p;
    const auto q = p.add("a.qweight", dtype::i32, {D / 8, F}, p.codes(D * F / 2));
    p.add("a.qzeros", dtype::i32, {2, F / 8}, bytes(static_cast<std::size_t>(F), std::byte{0x77}));
    const auto s = p.scales("a.scales", {2, F}, 2 * F);
    check_is(open_or_problem(p, grouped("gptq", G)), "a.weight", {F, D}, "groups of 64",
             [&](index_t f, index_t d) {
               const auto code = at(q, (d / 8 * F + f) * 4 + d % 8 / 2) >> (4 * (d % 2)) & 15U;
               return (static_cast<double>(code) - 8) * num(s, d / G * F + f);
             });
  }
}

TEST_CASE("GPTQ: the zeros of symmetric ones, whatever the config says of their version") {
  constexpr index_t F = 8, D = 32;
  struct given {
    const char* format;
    unsigned stored;
    json symmetric;
    double zero;
  };
  for (const auto& [format, stored, symmetric, zero] :
       {given{"gptq", 7, true, 8}, given{"gptq_v2", 7, true, 8}, given{"gptq_v2", 7, nullptr, 8},
        given{"gptq", 8, true, 8}, given{"gptq_v2", 8, true, 8}, given{"gptq_v2", 7, false, 7},
        given{"gptq", 8, false, 9}, given{"gptq", 15, false, 16}, given{"gptq_p", 5, false, 5}}) {
    for (const bool beside : {false, true}) {  // in a file of its own, as AutoGPTQ writes it
      parts p;
      const auto q = p.add("a.qweight", dtype::i32, {D / 8, F}, p.codes(D * F / 2));
      p.add("a.qzeros", dtype::i32, {1, F / 8},
            bytes(static_cast<std::size_t>(F / 2), static_cast<std::byte>(17 * stored)));
      const auto s = p.scales("a.scales", {1, F}, F);
      json said{{"bits", 4}, {"sym", symmetric}, {"checkpoint_format", format}};
      if (beside) {
        write_bytes(p.folder / "quantize_config.json", said.dump());
      } else {
        said["quant_method"] = "gptq";
      }
      const json config = beside ? json{{"hidden_size", D}} : json{{"quantization_config", said}};
      check_is(p.open(config), "a.weight", {F, D}, "GPTQ", [&](index_t f, index_t d) {
        const auto code = at(q, (d / 8 * F + f) * 4 + d % 8 / 2) >> (4 * (d % 2)) & 15U;
        return (static_cast<double>(code) - zero) * num(s, f);
      });
    }
  }
}

TEST_CASE("GPTQ: asymmetric zeros need a config that says what they are, symmetric ones none") {
  constexpr index_t F = 8, D = 32;
  for (const unsigned stored : {5U, 7U, 8U}) {
    parts p;
    const auto q = p.add("a.qweight", dtype::i32, {D / 8, F}, p.codes(D * F / 2));
    p.add("a.qzeros", dtype::i32, {1, F / 8},
          bytes(static_cast<std::size_t>(F / 2), static_cast<std::byte>(17 * stored)));
    const auto s = p.scales("a.scales", {1, F}, F);
    const auto check = [&](const json& config, double zero) {
      check_is(p.open(config), "a.weight", {F, D}, "GPTQ", [&](index_t f, index_t d) {
        const auto code = at(q, (d / 8 * F + f) * 4 + d % 8 / 2) >> (4 * (d % 2)) & 15U;
        return (static_cast<double>(code) - zero) * num(s, f);
      });
    };
    if (stored == 5) {
      const std::string problem = problem_of(p.open(json{{"hidden_size", D}}), "a.weight");
      CHECK(contains(problem, "a.qzeros"));
      CHECK(contains(problem, "gptq_v2"));
      check(grouped("gptq", D), 6);  // a config of the time before there was a second version
    } else {
      check(json{{"hidden_size", D}}, 8);
    }
  }
}

TEST_CASE("GPTQ of three bits: 32 codes in three words, the zeros of symmetric ones too") {
  constexpr index_t F = 32, D = 64, G = 32;
  // Code i of the stream that begins at `first`, whose words lie `stride` apart.
  const auto code_at = [](const bytes& words, index_t first, index_t stride, index_t i) {
    unsigned code = 0;
    for (index_t bit = 3 * i; bit < 3 * i + 3; ++bit) {
      const index_t byte = (first + bit / 32 * stride) * 4 + bit % 32 / 8;
      code |= (static_cast<unsigned>(at(words, byte)) >> (bit % 8) & 1U) << (bit - 3 * i);
    }
    return static_cast<double>(code);
  };
  for (const int stored : {-1, 3, 4}) {  // of any size; three, one less than half; four, which is half
    parts p;
    const auto q = p.add("a.qweight", dtype::i32, {D * 3 / 32, F}, p.codes(D * F * 3 / 8));
    bytes zeros = p.codes(D / G * F * 3 / 8);
    for (std::size_t bit = 0; stored >= 0 && bit < zeros.size() * 8; ++bit) {
      const auto mask = static_cast<std::byte>(1U << (bit % 8));
      const bool one = (static_cast<unsigned>(stored) >> (bit % 3) & 1U) != 0;
      zeros[bit / 8] = one ? zeros[bit / 8] | mask : zeros[bit / 8] & ~mask;
    }
    const auto z = p.add("a.qzeros", dtype::i32, {D / G, F * 3 / 32}, zeros);
    const auto s = p.scales("a.scales", {D / G, F}, D / G * F);
    for (const char* format : {"gptq", "gptq_v2"}) {
      json config = grouped("gptq", G);
      config["quantization_config"]["bits"] = 3;
      config["quantization_config"]["checkpoint_format"] = format;
      const bool minus_one = stored == 3 || (stored < 0 && format == std::string_view("gptq"));
      check_is(p.open(config), "a.weight", {F, D}, "GPTQ int3", [&](index_t f, index_t d) {
        const index_t g = d / G;
        const double zero = code_at(z, g * (F * 3 / 32), 1, f) + (minus_one ? 1 : 0);
        return (code_at(q, f, F, d) - zero) * num(s, g * F + f);
      });
    }
  }
  parts p;  // four words of inputs
  p.add("a.qweight", dtype::i32, {4, F}, p.codes(4 * F * 4));
  p.add("a.qzeros", dtype::i32, {2, 3}, p.codes(24));
  p.scales("a.scales", {2, F}, 2 * F);
  json config = grouped("gptq", G);
  config["quantization_config"]["bits"] = 3;
  CHECK(contains(problem_of(p.open(config), "a.weight"), "[4, 32]"));
}

TEST_CASE("GPTQ: modules of other widths than the config's, which its rules name: the zeros tell") {
  constexpr index_t F = 8, D = 32;
  parts p;
  const auto q = p.add("a.qweight", dtype::i32, {D / 4, F}, p.codes(D * F));
  p.add("a.qzeros", dtype::i32, {1, F / 4}, bytes(static_cast<std::size_t>(F), std::byte{127}));
  const auto s = p.scales("a.scales", {1, F}, F);
  json config = grouped("gptq", D);
  config["quantization_config"]["dynamic"] = {{"+:a", {{"bits", 8}}}};
  check_is(p.open(config), "a.weight", {F, D}, "GPTQ int8", [&](index_t f, index_t d) {
    return (static_cast<double>(at(q, (d / 4 * F + f) * 4 + d % 4)) - 128) * num(s, f);
  });
}

TEST_CASE("AutoRound packs as GPTQ or AWQ, as its packing_format says, or is refused by that name") {
  constexpr index_t F = 16, D = 32;
  const auto config = [](const char* method, const char* format) {
    json out = grouped(method, D);
    out["quantization_config"]["packing_format"] = format;
    return out;
  };
  for (const char* method : {"auto-round", "intel/auto-round"}) {
    parts gptq;
    const auto q = gptq.add("a.qweight", dtype::i32, {D / 8, F}, gptq.codes(D * F / 2));
    gptq.add("a.qzeros", dtype::i32, {1, F / 8}, bytes(F / 2, std::byte{0x55}));
    const auto s = gptq.scales("a.scales", {1, F}, F);
    check_is(gptq.open(config(method, "auto_round:auto_gptq")), "a.weight", {F, D}, "GPTQ",
             [&](index_t f, index_t d) {
               const auto code = at(q, (d / 8 * F + f) * 4 + d % 8 / 2) >> (4 * (d % 2)) & 15U;
               return (static_cast<double>(code) - 6) * num(s, f);  // zeros are stored less one
             });
    CHECK(contains(problem_of(gptq.open(config(method, "auto_round:other")), "a.weight"),
                   "packed by packing_format 'auto_round:other' of AutoRound of config.json"));
    parts awq;
    awq.add("a.qweight", dtype::i32, {D, F / 8}, awq.codes(D * F / 2));
    awq.add("a.qzeros", dtype::i32, {1, F / 8}, awq.codes(F / 2));
    awq.scales("a.scales", {1, F}, F);
    const auto model = awq.open(config(method, "auto_round:auto_awq"));
    CHECK(problem_of(model, "a.weight") == "");
    CHECK(contains(model.find_weight("a.weight")->stored_as(), "AWQ"));
  }
}

TEST_CASE("AutoRound without a packing_format packs as shapes tell; its own format keeps zeros as they are") {
  constexpr index_t F = 16, D = 32;
  const auto config = [](const char* format, std::optional<bool> symmetric) {
    json out = grouped("auto_round", D);
    if (*format != '\0') {
      out["quantization_config"]["packing_format"] = format;
    }
    if (symmetric) {
      out["quantization_config"]["sym"] = *symmetric;
    }
    return out;
  };
  parts awq;
  awq.add("a.qweight", dtype::i32, {D, F / 8}, awq.codes(D * F / 2));
  awq.add("a.qzeros", dtype::i32, {1, F / 8}, awq.codes(F / 2));
  awq.scales("a.scales", {1, F}, F);
  for (const char* format : {"", "auto", "auto_round:awq"}) {
    const auto model = awq.open(config(format, {}));
    CHECK(problem_of(model, "a.weight") == "");
    CHECK(contains(model.find_weight("a.weight")->stored_as(), "AWQ"));
  }
  CHECK(contains(problem_of(awq.open(config("auto_round:gptq", {})), "a.weight"), "no packing known here"));
  const auto zero_of = [&](const char* format, std::optional<bool> symmetric, unsigned stored) {
    parts p;
    p.add("a.qweight", dtype::i32, {D / 8, F}, bytes(D * F / 2, std::byte{0x99}));
    p.add("a.qzeros", dtype::i32, {1, F / 8}, bytes(F / 2, static_cast<std::byte>(stored * 0x11U)));
    p.builder.add<float>("a.scales", {1, F}, std::vector<float>(F, 1.0F));
    const auto model = p.open(config(format, symmetric));
    const auto* w = model.find_weight("a.weight");
    if (w == nullptr || !w->is_packed()) {
      return std::string(w == nullptr ? "nothing" : w->problem());
    }
    std::vector<float> row(D);
    w->decode(0, 1, row.data());
    return std::to_string(9 - static_cast<int>(row[0]));
  };
  for (const char* format : {"", "auto", "auto_round:auto_gptq", "auto_round:gptq"}) {
    CHECK(zero_of(format, false, 5) == "6");  // stored less one
    CHECK(zero_of(format, true, 8) == "8");   // symmetric: half of the range, whatever is stored
    CHECK(zero_of(format, true, 7) == "8");
  }
  CHECK(zero_of("auto_round", false, 5) == "5");
  CHECK(zero_of("auto_round", true, 7) == "8");
  CHECK(zero_of("auto_round:gptqmodel", true, 7) == "8");
  CHECK(zero_of("auto_round:gptqmodel", true, 8) == "8");
  CHECK(zero_of("auto_round:gptqmodel", false, 5) == "5");
  CHECK(contains(zero_of("auto_round:other", false, 5), "packing_format 'auto_round:other'"));
  for (const char* format : {"auto_round:fp8", "auto_round:fp8_static"}) {
    parts fp8;
    const auto code = fp8.add("a.weight", dtype::f8_e4m3, {F, D}, fp8.codes(F * D));
    const auto s = fp8.scales("a.weight_scale", {F, 1}, F);
    check_is(fp8.open(config(format, true)), "a.weight", {F, D}, "each row",
             [&](index_t f, index_t d) { return e4m3(at(code, f * D + d)) * num(s, f); });
  }
}

TEST_CASE("AWQ and GPTQ: versions that pack otherwise are refused by name") {
  const auto problem_with = [](const parts& p, json config, const char* key, const char* value) {
    CHECK(problem_of(p.open(config), "a.weight") == "");
    config["quantization_config"][key] = value;
    return problem_of(p.open(config), "a.weight");
  };
  parts awq;
  awq.add("a.qweight", dtype::i32, {32, 2}, awq.codes(256));
  awq.add("a.qzeros", dtype::i32, {2, 2}, awq.codes(16));
  awq.scales("a.scales", {2, 16}, 32);
  CHECK(problem_with(awq, grouped("awq", 16), "version", "GEMM") == "");
  for (const char* version : {"gemv", "GEMV_fast", "marlin"}) {
    CHECK(contains(problem_with(awq, grouped("awq", 16), "version", version), "packed by version '"));
  }
  parts gptq;
  gptq.add("a.qweight", dtype::i32, {4, 8}, gptq.codes(128));
  gptq.add("a.qzeros", dtype::i32, {2, 1}, gptq.codes(8));
  gptq.scales("a.scales", {2, 8}, 16);
  CHECK(contains(problem_with(gptq, grouped("gptq", 16), "checkpoint_format", "marlin"),
                 "packed by checkpoint_format 'marlin' of GPTQ"));
}

TEST_CASE("MLX: its own entry of the config counts, and a module without a mode is affine") {
  constexpr index_t F = 4, D = 64;
  const auto affine = [&](parts& p, const json& config) {
    const auto code = p.add("a.weight", dtype::u32, {F, D / 8}, p.codes(F * D / 2));
    const auto s = p.scales("a.scales", {F, 2}, F * 2);
    const auto b = p.scales("a.biases", {F, 2}, F * 2);
    check_is(p.open(config), "a.weight", {F, D}, "MLX affine, 4 bits", [&](index_t f, index_t d) {
      const index_t g = f * 2 + d / 32;
      return static_cast<double>(nibble(code, f * D + d)) * num(s, g) + num(b, g);
    });
  };
  const json own{{"bits", 4}, {"group_size", 32}};
  {
    parts p;  // the model was converted from one in FP8, whose entry is still there
    affine(p, {{"quantization", own},
               {"quantization_config", {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}}}});
  }
  {
    parts p;  // an entry of MLX that is left over says nothing of others' codes
    p.add("a.weight", dtype::f8_e4m3, {4, 8}, p.codes(32));
    p.scales("a.weight_scale", {4}, 4);
    const auto model =
        p.open({{"quantization", own}, {"quantization_config", {{"quant_method", "nobody's"}}}});
    CHECK(contains(problem_of(model, "a.weight"), "packed by quant_method 'nobody's'"));
  }
  {
    parts p;
    affine(p, {{"quantization", {{"bits", 4}, {"group_size", 32}, {"mode", "mxfp4"}, {"a", own}}}});
  }
  parts p;
  const auto code = p.add("a.weight", dtype::u32, {F, D / 8}, p.codes(F * D / 2));
  const auto scale = p.add("a.scales", dtype::u8, {F, 2}, p.codes(F * 2, 110, 140));
  check_is(p.open({{"quantization", {{"bits", 4}, {"group_size", 32}, {"mode", "mxfp4"}, {"a", own}}}}),
           "a.weight", {F, D}, "MXFP4", [&](index_t f, index_t d) {
             return e2m1[nibble(code, f * D + d)] *
                    std::ldexp(1.0, static_cast<int>(at(scale, (f * D + d) / 32)) - 127);
           });
}

TEST_CASE("AWQ and GPTQ: stored by inputs, read by outputs") {
  constexpr index_t F = 16, D = 32, G = 16;
  const auto code_at = [](const bytes& words, index_t word, index_t shift) {
    return at(words, word * 4 + shift / 8) >> (shift % 8) & 15U;
  };
  {
    parts p;
    constexpr index_t shifts[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    const auto q = p.add("a.qweight", dtype::i32, {D, F / 8}, p.codes(D * F / 2));
    const auto z = p.add("a.qzeros", dtype::i32, {D / G, F / 8}, p.codes(D / G * F / 2));
    const auto s = p.scales("a.scales", {D / G, F}, D / G * F);
    check_is(p.open(), "a.weight", {F, D}, "AWQ", [&](index_t f, index_t d) {
      const auto shift = shifts[f % 8];
      return (static_cast<double>(code_at(q, d * (F / 8) + f / 8, shift)) -
              static_cast<double>(code_at(z, d / G * (F / 8) + f / 8, shift))) *
             num(s, d / G * F + f);
    });
  }
  for (const bool symmetric : {false, true}) {  // zeros of 8 throughout are zeros, whatever the config says
    parts p;
    const auto q = p.add("a.qweight", dtype::i32, {D / 8, F}, p.codes(D * F / 2));
    const auto z = p.add(
        "a.qzeros", dtype::i32, {D / G, F / 8},
        symmetric ? bytes(static_cast<std::size_t>(D / G * F / 2), std::byte{0x88}) : p.codes(D / G * F / 2));
    const auto s = p.scales("a.scales", {D / G, F}, D / G * F);
    const json config{
        {"quantization_config", {{"quant_method", "gptq"}, {"bits", 4}, {"checkpoint_format", "gptq"}}}};
    check_is(p.open(config), "a.weight", {F, D}, "GPTQ", [&](index_t f, index_t d) {
      const double zero = code_at(z, d / G * (F / 8) + f / 8, 4 * (f % 8)) + (symmetric ? 0.0 : 1.0);
      return (static_cast<double>(code_at(q, d / 8 * F + f, 4 * (d % 8))) - zero) * num(s, d / G * F + f);
    });
  }
}

TEST_CASE("bitsandbytes: flat blocks, the high half first") {
  constexpr index_t F = 6, D = 40, block = 64;
  parts p;
  const auto code = p.add("a.weight", dtype::u8, {F * D / 2, 1}, p.codes(F * D / 2));
  std::vector<float> map;
  for (int i = 0; i < 16; ++i) {
    map.push_back(static_cast<float>(i - 7) / 8);
  }
  p.builder.add<float>("a.weight.quant_map", {16}, map);
  const std::vector<float> absmax{1, 2, 0.5F, 3};
  p.builder.add<float>("a.weight.absmax", {4}, absmax);
  const std::string state =
      R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [6, 40]})";
  bytes text(state.size());
  std::memcpy(text.data(), state.data(), state.size());
  p.add("a.weight.quant_state.bitsandbytes__nf4", dtype::u8, {static_cast<index_t>(state.size())}, text);
  check_is(p.open(), "a.weight", {F, D}, "bitsandbytes", [&](index_t f, index_t d) {
    const index_t i = f * D + d;
    return num(map, at(code, i / 2) >> (i % 2 == 0 ? 4 : 0) & 15U) * num(absmax, i / block);
  });
}

TEST_CASE("bitsandbytes: a stack of experts, whose blocks go on from one to the next") {
  constexpr index_t N = 3, F = 2, D = 20, block = 32;
  parts p;
  const auto code = p.add("e.gate_up_proj", dtype::u8, {N * F * D / 2, 1}, p.codes(N * F * D / 2));
  std::vector<float> map;
  for (int i = 0; i < 16; ++i) {
    map.push_back(static_cast<float>(i - 7) / 8);
  }
  p.builder.add<float>("e.gate_up_proj.quant_map", {16}, map);
  const std::vector<float> absmax{1, 2, 0.5F, 3};
  p.builder.add<float>("e.gate_up_proj.absmax", {4}, absmax);
  for (const char* shape : {"[3, 2, 20]", "[120]", "[1, 3, 2, 20]", "[3, 0, 40]", "[3, 2, -20]",
                            "[4294967296, 4294967296, 4294967296]"}) {
    const std::string state =
        core::concatenate(R"({"quant_type": "nf4", "blocksize": 32, "shape": )", shape, "}");
    bytes text(state.size());
    std::memcpy(text.data(), state.data(), state.size());
    auto with = p.builder;
    with.add_bytes("e.gate_up_proj.quant_state.bitsandbytes__nf4", dtype::u8,
                   {static_cast<index_t>(state.size())}, text);
    with.write(p.folder / "model.safetensors");
    const checkpoint model(p.folder / "model.safetensors");
    if (std::string_view(shape) != "[3, 2, 20]") {
      CHECK(contains(problem_of(model, "e.gate_up_proj"), "does not say how 'e.gate_up_proj' is packed"));
      continue;
    }
    check_is(model, "e.gate_up_proj", {N, F, D}, "bitsandbytes", [&](index_t r, index_t d) {
      const index_t i = r * D + d;
      return num(map, at(code, i / 2) >> (i % 2 == 0 ? 4 : 0) & 15U) * num(absmax, i / block);
    });
  }
}

TEST_CASE("bitsandbytes: eight bits, 127 times the scale of each row") {
  constexpr index_t F = 5, D = 12;
  for (const int format : {-1, 0, 2}) {  // -1: none is there
    parts p;
    const auto code = p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
    const std::vector<float> largest{1, 2, 0.5F, 3, 7};
    p.builder.add<float>("a.SCB", {F}, largest);
    if (format >= 0) {
      p.add("a.weight_format", dtype::u8, {}, {static_cast<std::byte>(format)});
    }
    const auto model = p.open();
    if (format > 0) {
      CHECK(contains(problem_of(model, "a.weight"), "is not stored row after row"));
      continue;
    }
    check_is(model, "a.weight", {F, D}, "int8", [&](index_t f, index_t d) {
      return static_cast<double>(static_cast<std::int8_t>(at(code, f * D + d))) * num(largest, f) / 127;
    });
  }
  parts p;
  p.add("a.weight", dtype::i8, {F, D}, p.codes(F * D));
  p.builder.add<float>("a.SCB", {F - 1}, {1, 2, 3, 4});
  CHECK(contains(problem_of(p.open(), "a.weight"), "its scales 'a.SCB' are F32 [4]"));
}

TEST_CASE("gpt-oss: its blocks of MXFP4 say that gate and up lie in turn, other packings do not") {
  constexpr index_t N = 2, F = 4, D = 32;
  const std::string block = "layers.0.mlp.", name = block + "experts.gate_up_proj";
  for (const bool mxfp4 : {true, false}) {
    parts p;
    p.scales(block + "router.weight", {N, D}, N * D);
    if (mxfp4) {
      p.add(name + "_blocks", dtype::u8, {N, 2 * F, 1, 16}, p.codes(N * F * D));
      p.add(name + "_scales", dtype::u8, {N, 2 * F, 1}, p.codes(N * F * 2, 110, 140));
    } else {
      p.add(name, dtype::f8_e4m3, {N, 2 * F, D}, p.codes(N * F * 2 * D));
      p.scales(name + "_scale_inv", {N, 2 * F, 1}, N * F * 2);
    }
    const auto model = p.open();
    const auto found = find_moe_layers(model);
    if (mxfp4) {
      REQUIRE(found.size() == 1);
      CHECK(found[0].layout == gate_layout::n2fd_interleaved);
      CHECK(found[0].layout_known_by == "its packing");
    } else {
      CHECK(found.empty());
      REQUIRE(found.omissions.size() == 1);
      CHECK(contains(found.omissions[0].reason, "say which"));
    }
    if (mxfp4) {  // a model of another name is not taken for gpt-oss
      const auto phi = p.open({{"model_type", "phimoe"}});
      REQUIRE(find_moe_layers(phi).size() == 1);
      CHECK(find_moe_layers(phi)[0].layout == gate_layout::n2fd_concatenated);
      const auto unknown = p.open({{"model_type", "my_moe"}});
      const auto other = find_moe_layers(unknown);
      CHECK(other.empty());
      REQUIRE(other.omissions.size() == 1);
      CHECK(contains(other.omissions[0].reason, "say which"));
    }
  }
  parts p;  // groups of 32 too, but not of MXFP4
  p.scales(block + "router.weight", {N, D}, N * D);
  p.add(name, dtype::u8, {N, 2 * F, D / 2}, p.codes(N * F * D));
  p.add(name + "_scale", dtype::f8_e4m3, {N, 2 * F, 1}, p.codes(N * F * 2));
  p.builder.add<float>(name + "_scale_2", {1}, {1});
  const auto model = p.open();
  const auto found = find_moe_layers(model);
  CHECK(found.empty());
  REQUIRE(found.omissions.size() == 1);
  CHECK(contains(found.omissions[0].reason, "say which"));
}

TEST_CASE("bitsandbytes: blocks that know no axes do not say which of two of one length is D") {
  constexpr index_t N = 2, D = 32, block = 64;
  const std::string layer = "layers.0.feed_forward.", name = layer + "experts.gate_up_proj";
  parts p;
  p.scales(layer + "router.weight", {N, D}, N * D);
  p.add(name, dtype::u8, {N * D * D / 2, 1}, p.codes(N * D * D / 2));
  p.builder.add<float>(name + ".quant_map", {16}, std::vector<float>(16, 1));
  p.builder.add<float>(name + ".absmax", {N * D * D / block},
                       std::vector<float>(static_cast<std::size_t>(N * D * D / block), 1));
  const std::string state = R"({"quant_type": "nf4", "blocksize": 64, "shape": [2, 32, 32]})";
  bytes text(state.size());
  std::memcpy(text.data(), state.data(), state.size());
  p.builder.add_bytes(name + ".quant_state.bitsandbytes__nf4", dtype::u8,
                      {static_cast<index_t>(state.size())}, text);
  const auto model = p.open();
  CHECK(problem_of(model, name) == "");
  const auto found = find_moe_layers(model);
  CHECK(found.empty());
  REQUIRE(found.omissions.size() == 1);
  CHECK(contains(found.omissions[0].reason, "say which"));
}

TEST_CASE("what is refused: formats nobody knows, parts that are missing or do not fit") {
  const auto packed_by = [](const json& config) {
    parts p;
    p.add("a.weight_packed", dtype::u8, {4, 16}, p.codes(64));
    p.add("a.weight_scale", dtype::u8, {4, 1}, p.codes(4, 110, 140));
    return problem_of(p.open(config), "a.weight");
  };
  CHECK(packed_by({{"quantization_config",
                    {{"quant_method", "compressed-tensors"}, {"format", "mxfp4-pack-quantized"}}}}) == "");
  CHECK(contains(packed_by({{"quantization_config", {{"quant_method", "exl3"}}}}),
                 "packed by quant_method 'exl3' of config.json, which is not known here"));
  CHECK(contains(packed_by({{"text_config",
                             {{"quantization_config",
                               {{"quant_method", "compressed-tensors"},
                                {"config_groups", {{"group_0", {{"format", "marlin-24"}}}}}}}}}}),
                 "format 'marlin-24'"));
  {
    parts p;
    p.add("a.weight_packed", dtype::i32, {4, 4}, p.codes(64));
    p.scales("a.weight_scale", {4, 1}, 4);
    CHECK(contains(problem_of(p.open(), "a.weight"), "has no weight_shape beside it"));
  }
  {
    parts p;
    p.add("a.weight", dtype::u32, {4, 4}, p.codes(64));
    p.scales("a.scales", {4, 1}, 4);
    p.scales("a.biases", {4, 1}, 4);
    CHECK(contains(problem_of(p.open(), "a.weight"),
                   "bits and group_size are in a config.json that is not here"));
  }
  {
    parts p;
    p.add("a.weight", dtype::f8_e4m3, {4, 16}, p.codes(64));
    p.scales("a.weight_scale_inv", {3}, 3);
    CHECK(contains(problem_of(p.open(), "a.weight"),
                   "'a.weight' is F8_E4M3 [4, 16], but its scales "
                   "'a.weight_scale_inv' are BF16 [3]"));
  }
  {
    parts p;  // asymmetric: what is not understood is not left out
    p.add("a.weight", dtype::f8_e4m3, {4, 16}, p.codes(64));
    p.scales("a.weight_scale", {4, 1}, 4);
    p.add("a.weight_zero_point", dtype::i8, {4, 1}, p.codes(4));
    p.scales("a.input_scale", {1}, 1);
    CHECK(contains(problem_of(p.open(), "a.weight"),
                   "has 'a.weight_zero_point' beside it, which no packing known here uses"));
  }
  for (const auto& [type, count] : {std::pair(dtype::i8, index_t{3}), std::pair(dtype::u8, index_t{4})}) {
    parts p;
    p.add("a.weight", dtype::i8, {4, 16}, p.codes(64));
    p.scales("a.weight_scale", {4, 1}, 4);
    p.add("a.weight_zero_point", type, {count}, p.codes(count));
    CHECK(contains(problem_of(p.open(), "a.weight"), "but its zero points 'a.weight_zero_point' are"));
  }
  {
    parts p;  // as many zero points as scales, but otherwise
    p.add("a.weight", dtype::i8, {4, 16}, p.codes(64));
    p.scales("a.weight_scale", {4, 2}, 8);
    p.add("a.weight_zero_point", dtype::i8, {2, 4}, p.codes(8));
    CHECK(contains(problem_of(p.open(), "a.weight"), "but its zero points 'a.weight_zero_point' are"));
  }
  {
    parts p;  // none at all, of a huge extent
    p.add("a.qweight", dtype::i32, {2, 16}, p.codes(128));
    p.add("a.qzeros", dtype::i32, {0, index_t{1} << 60}, {});
    p.scales("a.scales", {1, 16}, 16);
    CHECK(contains(problem_of(p.open(), "a.weight"), "qzeros"));
  }
  {
    parts p;  // [D, F] of a GPU's order, square
    p.add("a.weight", dtype::i8, {16, 16}, p.codes(256));
    p.scales("a.weight_scales", {16}, 16);
    CHECK(contains(problem_of(p.open(), "a.weight"), "with 'a.weight_scales', as EETQ has them"));
  }
  {
    parts p;  // under names that are not known either
    p.add("a.W_q", dtype::u8, {4, 16}, p.codes(64));
    CHECK(contains(problem_of(p.open({{"quantization_config", {{"quant_method", "hqq"}}}}), "a.W_q"),
                   "'a.W_q' is stored as U8, packed by quant_method 'hqq' of config.json"));
  }
  for (const char* scale : {"a.weight_scale_inv", "a.scales", "a.weight.absmax", "a.weight_block_scales"}) {
    parts p;
    p.builder.add<bf16>("a.weight", {2, 2}, {1, 2, 3, 4});
    p.scales(scale, {1}, 1);
    CHECK(contains(problem_of(p.open(), "a.weight"), "it was cast without its scales"));
  }
  {
    parts p;  // weights that pruning or weight_norm left beside what changes them
    p.builder.add<bf16>("masked.weight", {2, 2}, {1, 2, 3, 4});
    p.builder.add<float>("masked.weight_mask", {2, 2}, {1, 1, 0, 1});
    p.builder.add<bf16>("pruned.weight", {2, 2}, {1, 2, -0.0F, 4});
    p.add("pruned.mask", dtype::boolean, {2, 2}, {std::byte{1}, std::byte{1}, std::byte{0}, std::byte{1}});
    p.builder.add<bf16>("other.weight", {2, 2}, {0, 0, 0, 0});
    p.builder.add<float>("other.mask", {2}, {0, 0});
    p.builder.add<bf16>("normed.weight", {2, 2}, {1, 2, 3, 4});
    p.builder.add<bf16>("normed.weight_g", {2}, {1, 2});
    const auto model = p.open();
    CHECK(contains(problem_of(model, "masked.weight"), "has the mask 'masked.weight_mask' beside it"));
    CHECK(problem_of(model, "pruned.weight").empty());
    CHECK(contains(problem_of(model, "other.weight"), "has the mask 'other.mask' beside it"));
    CHECK(contains(problem_of(model, "normed.weight"), "has 'normed.weight_g' beside it"));
  }
  {
    parts p;  // the same name twice, as it is and packed
    p.add("a.weight_packed", dtype::u8, {4, 16}, p.codes(64));
    p.add("a.weight_scale", dtype::u8, {4, 1}, p.codes(4, 110, 140));
    p.builder.add<bf16>("a.weight", {1}, {1});
    CHECK(contains(problem_of(p.open(), "a.weight"), "is here twice"));
  }
  {
    parts p;  // in one file, so that they are no pieces of several processes
    p.builder.add<float>("a.weight", {1}, {1});
    p.builder.add<float>("a-weight", {1}, {1});
    const auto model = p.open();
    CHECK(contains(problem_of(model, "a.weight"), "F32 in 'a-weight'"));
    CHECK_FALSE(contains(problem_of(model, "a.weight"), "pieces"));
  }
}

TEST_CASE("as many scales as groups in another order are not taken for groups") {
  parts p;
  p.add("a.weight", dtype::i8, {8, 64}, p.codes(8 * 64));
  p.scales("a.weight_scale", {4, 8}, 32);  // groups along the rows
  CHECK(contains(problem_of(p.open(), "a.weight"), "its scales 'a.weight_scale' are BF16 [4, 8]"));
}

TEST_CASE("what a format refuses is the problem of that weight alone") {
  parts p;
  p.add("a.weight_packed", dtype::i32, {4, 8}, p.codes(128));
  p.scales("a.weight_scale", {4, 2}, 8);
  p.integers("a.weight_shape", {4, 64});
  std::vector<std::int32_t> order(64, 1);
  order.back() = 7;
  p.integers("a.weight_g_idx", order);
  p.builder.add<bf16>("b.weight", {2, 2}, {1, 2, 3, 4});
  const auto model = p.open();
  CHECK(contains(problem_of(model, "a.weight_packed"), "g_idx[63] is 7, of 2 groups"));
  CHECK(problem_of(model, "b.weight") == "");
}

TEST_CASE("weights without numbers, and codes that are no matrix, say so whatever lies beside them") {
  const json mlx{{"quantization", {{"bits", 4}, {"group_size", 32}}}};
#if defined(MPIROUTER_TEST_SHORT)
  constexpr dtype types[] = {dtype::u8};
#else
  constexpr dtype types[] = {dtype::u8, dtype::i8, dtype::u32, dtype::i32, dtype::f8_e4m3};
#endif
  for (const dtype type : types) {
    for (const std::vector<index_t>& shape : {std::vector<index_t>{0},
                                              {0, 0},
                                              {4, 0},
                                              {0, 4},
                                              {0, 4, 4},
                                              {2, 0, 4},
                                              {0, index_t{1} << 61, 8},
                                              {},
                                              {8}}) {
      for (const char* name : {"a.weight", "a.weight_packed", "a.qweight", "a_blocks"}) {
        for (const char* other :
             {"a.weight_scale", "a.weight_scale_inv", "a.scales", "a_scales", "a.weight.absmax"}) {
          CAPTURE(name);
          CAPTURE(other);
          CAPTURE(to_string(shape));
          const auto size = detail::byte_size(type, shape);
          REQUIRE(size.has_value());
          parts p;
          p.add(name, type, shape, p.codes(static_cast<index_t>(*size)));
          p.scales(other, {2}, 2);
          const checkpoint model = p.open(mlx);
          index_t told = 0;
          for (const auto& w : model.weights()) {
            CHECK(!w.is_packed());
            told += w.problem().empty() ? 0 : 1;
          }
          CHECK(told == 1);
        }
      }
    }
  }
}

TEST_CASE("GGUF: the inputs of a layer lie along the rows, so that a square expert is no question") {
  const auto layer = [](std::vector<std::uint64_t> extents, const std::string& gate) {
    const temporary_folder folder;
    gguf_bytes g;
    g.tensors = {tensor_entry("blk.0.ffn_gate_inp.weight", {8, 3}, 0, 0),
                 tensor_entry("blk.0." + gate, extents, 0, 96),
                 tensor_entry("blk.0.ffn_down_exps.weight", {gate == "ffn_gate_exps.weight" ? 8U : 4U, 8, 3},
                              0, 96 + 768)};
    g.data = std::string(96 + 2 * 768, '\0');
    write_bytes(folder / "m.gguf", g.bytes());
    const checkpoint model(folder / "m.gguf");
    moe_search search;
    search.of = {1, 0, 1};
    const auto found = find_moe_layers(model, search);
    REQUIRE(found.size() == 1);
    CHECK(found[0].layout_known_by == "GGUF");
    REQUIRE(found[0].measured.size() == 2);
    CHECK(found[0].measured[1].layout == gate_layout::ndf);
    return found[0].layout;
  };
  CHECK(layer({8, 8, 3}, "ffn_gate_exps.weight") == gate_layout::nfd);
  CHECK(layer({8, 8, 3}, "ffn_gate_up_exps.weight") == gate_layout::n2fd_concatenated);
}

namespace {

/// A model of one layer in GGUF: router [2, 32], gates [2, 1, 32], of zeros and ones, and what is beside
/// them.
gguf_bytes gguf_layer(std::uint32_t gate_type, const std::string& gate_data) {
  gguf_bytes g;
  g.tensors = {tensor_entry("blk.0.ffn_gate_inp.weight", {32, 2}, 0, 0),
               tensor_entry("blk.0.ffn_gate_exps.weight", {32, 1, 2}, gate_type, 256)};
  for (int i = 0; i < 64; ++i) {
    g.data += raw(static_cast<float>(i % 2));
  }
  g.data += gate_data;
  return g;
}

/// One Q8_0 block of 32 codes of 3, twice; or 64 floats of 3.
std::string threes(std::uint32_t type) {
  std::string out;
  for (int e = 0; e < 2; ++e) {
    for (int i = 0; type == 0 && i < 32; ++i) {
      out += raw(3.0F);
    }
    if (type != 0) {
      out += raw(std::bit_cast<std::uint16_t>(f16(1.0F))) + std::string(32, '\3');
    }
  }
  out.resize((out.size() + 31) / 32 * 32);
  return out;
}

/// The first weight of each expert of the one layer; or why there is none.
std::string first_of_each(const checkpoint& model) {
  const auto found = find_moe_layers(model);
  if (found.size() != 1) {
    return found.omissions.empty() ? "nothing" : found.omissions[0].reason;
  }
  std::string out;
  for (const auto& gate : found[0].gates) {
    visit_gate<double>(gate, [&](const auto& a) { out += std::to_string(widen<double>(a(0, 0))) + " "; });
  }
  return out;
}

}  // namespace

TEST_CASE("GGUF: a .scale multiplies weights of whatever type, in whichever file of a series it is") {
  const temporary_folder folder;
  for (const std::uint32_t type : {0U, 8U}) {  // F32 and Q8_0
    CAPTURE(type);
    const auto with = [&](const std::vector<float>& scales) {
      auto g = gguf_layer(type, threes(type));
      g.tensors.push_back(tensor_entry("blk.0.ffn_gate_exps.scale", {scales.size()}, 0, g.data.size()));
      for (const float s : scales) {
        g.data += raw(s);
      }
      write_bytes(folder / "m.gguf", g.bytes());
      return first_of_each(checkpoint(folder / "m.gguf"));
    };
    CHECK(with({2}) == "6.000000 6.000000 ");
    CHECK(with({2, 0.5F}) == "6.000000 1.500000 ");
    CHECK(contains(with({1, 1, 1}), ".scale fits neither it nor its experts"));
    gguf_bytes flat;  // of 32 columns, and 32 scales: only a router's are of what it sees
    flat.tensors = {tensor_entry("blk.0.ffn_gate.0.weight", {32, 2}, type, 0),
                    tensor_entry("blk.0.ffn_gate.0.scale", {32}, 0, threes(type).size())};
    flat.data = threes(type) + std::string(128, '\0');
    write_bytes(folder / "m.gguf", flat.bytes());
    CHECK(contains(problem_of(checkpoint(folder / "m.gguf"), "blk.0.ffn_gate.0.weight"),
                   ".scale fits neither it nor its experts"));

    const auto part = [](gguf_bytes g, std::uint16_t number) {
      g.metadata = {entry("split.no", 2, raw(number)), entry("split.count", 2, raw(std::uint16_t{2}))};
      return g;
    };
    gguf_bytes second;
    second.tensors = {tensor_entry("blk.0.ffn_gate_exps.scale", {2}, 0, 0)};
    second.data = raw(2.0F) + raw(0.5F);
    write_bytes(folder / "s-00001-of-00002.gguf", part(gguf_layer(type, threes(type)), 0).bytes());
    write_bytes(folder / "s-00002-of-00002.gguf", part(second, 1).bytes());
    CHECK(first_of_each(checkpoint(folder / "s-00001-of-00002.gguf")) == "6.000000 1.500000 ");
  }
}

TEST_CASE("GGUF: a scale of what the router sees, one for each of its columns, is said and not applied") {
  const temporary_folder folder;
  auto g = gguf_layer(0, threes(0));
  g.tensors.push_back(tensor_entry("blk.0.ffn_gate_inp.scale", {32}, 0, g.data.size()));
  g.data += std::string(128, '\0');
  write_bytes(folder / "m.gguf", g.bytes());
  const checkpoint model(folder / "m.gguf");
  const auto found = find_moe_layers(model);
  REQUIRE(found.size() == 1);
  CHECK_FALSE(found[0].router->is_packed());
  REQUIRE(found.omissions.size() == 1);
  CHECK(found.omissions[0].name == "blk.0.ffn_gate_inp.scale");
  CHECK(found.omissions[0].kind == omission_kind::set_aside);
  visit_router_row(found[0], 0, [](const auto& row) { CHECK(widen<double>(row[1]) == 1); });
}

TEST_CASE("GGUF: a layer that lost its gates is no layer of up projections") {
  const temporary_folder folder;
  const auto reasons = [&](bool first_has_gates, const char* architecture) {
    gguf_bytes g;
    if (*architecture != '\0') {
      g.metadata = {entry("general.architecture", 8, raw_text(architecture))};
    }
    const auto add = [&](const std::string& name, std::vector<std::uint64_t> extents) {
      g.tensors.push_back(tensor_entry(name, extents, 0, g.data.size()));
      g.data += std::string(4 * 64 * (extents.size() == 3 ? 3 : 1), '\0');
    };
    for (const std::string layer : {"blk.0.", "blk.1."}) {
      add(layer + "ffn_gate_inp.weight", {32, 2});
      add(layer + "ffn_up_exps.weight", {32, 3, 2});
      add(layer + "ffn_down_exps.weight", {3, 32, 2});
      if (first_has_gates && layer == "blk.0.") {
        add(layer + "ffn_gate_exps.weight", {32, 3, 2});
      }
    }
    write_bytes(folder / "m.gguf", g.bytes());
    const checkpoint model(folder / "m.gguf");
    const auto found = find_moe_layers(model);
    std::string out = std::to_string(found.size());
    for (const auto& each : found.omissions) {
      out += "; " + each.name + ": " + each.reason;
    }
    return out;
  };
  CHECK(
      reasons(true, "") ==
      "1; blk.1.ffn_gate_inp.weight: its experts have no gates, as 'blk.0.ffn_gate_exps.weight' is one; is a "
      "file missing?");
  for (const std::string name : {"qwen3moe", "llama", "arctic", "mimo2", "llada-moe"}) {
    CHECK(reasons(false, name.c_str())
              .starts_with("0; blk.*.ffn_gate_inp.weight: its experts have no gates, and those of " +
                           (name == "llada-moe" ? "lladamoe" : name) +
                           " are not known to be without; is a file missing?"));
  }
  CHECK(reasons(false, "nemotron_h_moe") == "2");
  CHECK(reasons(false, "") == "2");
}

TEST_CASE("GGUF: a folder with one model, beside which its projector of images may lie") {
  const temporary_folder folder;
  gguf_bytes g;
  g.tensors = {tensor_entry("x", {8}, 0, 0)};
  g.data = std::string(32, '\0');
  const auto opened = [&] { return checkpoint(folder.path()).gguf().front().path().filename(); };
  write_bytes(folder / "model2-mp4.gguf", g.bytes());  // a name that is no series in GGUF
  CHECK(opened() == "model2-mp4.gguf");
  std::filesystem::remove(folder / "model2-mp4.gguf");
  write_bytes(folder / "mmproj-F16.gguf", g.bytes());
  CHECK(opened() == "mmproj-F16.gguf");
  write_bytes(folder / "a.gguf", g.bytes());
  write_bytes(folder / "a.mmproj-Q8_0.gguf", g.bytes());
  CHECK(opened() == "a.gguf");
  const checkpoint model(folder.path());
  const auto found = find_moe_layers(model);
  CHECK(std::ranges::any_of(found.omissions, [](const auto& each) {
    return contains(each.name, "mmproj-Q8_0.gguf") && contains(each.reason, "a projector of images");
  }));
  write_bytes(folder / "b.gguf", g.bytes());
  CHECK(contains(io_test::message_of(opened), "holds 2 models in GGUF"));
}

TEST_CASE("GGUF: what the metadata say of layers and experts") {
  const temporary_folder folder;
  const auto config_with = [&](std::vector<std::pair<std::string, std::uint32_t>> counts) {
    gguf_bytes g;
    g.metadata = {entry("general.architecture", 8, raw_text("deepseek2")),
                  entry("deepseek2.block_count", 4, raw(std::uint32_t{6}))};
    for (const auto& [key, count] : counts) g.metadata.push_back(entry("deepseek2." + key, 4, raw(count)));
    write_bytes(folder / "m.gguf", g.bytes());
    return config_of(gguf_file(folder / "m.gguf"));
  };
  using list = std::vector<index_t>;
  const auto plain = config_with({{"expert_count", 8}, {"expert_used_count", 2}});
  CHECK(plain.num_experts == 8);
  CHECK(plain.experts_per_token == 2);
  CHECK(plain.moe_layers == list{0, 1, 2, 3, 4, 5});
  const auto dense =
      config_with({{"expert_count", 8}, {"leading_dense_block_count", 2}, {"nextn_predict_layers", 1}});
  CHECK(dense.moe_layers == list{2, 3, 4});
  CHECK(config_with({{"expert_count", 8}, {"nextn_predict_layers", 9}}).moe_layers == list{});
  CHECK(!config_with({{"expert_count", 8}, {"interleave_moe_layer_step", 2}}).moe_layers);
  for (const std::uint32_t count : {0U, 1U, 1'000'001U}) {
    CHECK(!config_with({{"expert_count", count}}).num_experts);
    CHECK(!config_with({{"expert_count", count}}).moe_layers);
  }
  CHECK(config_with({{"expert_count", 1'000'000}}).num_experts == 1'000'000);
  CHECK(!config_with({{"expert_used_count", 0}}).experts_per_token);
}

TEST_CASE("GGUF: a layer, its blocks decoded, its config from the metadata; codebook types by name") {
  constexpr index_t N = 3, F = 2, D = 32;
  const temporary_folder folder;
  const auto file = [&](std::uint32_t type, std::size_t block_bytes) {
    gguf_bytes g;
    g.metadata = {entry("general.architecture", 8, raw_text("qwen3moe")),
                  entry("qwen3moe.expert_count", 4, raw(std::uint32_t{N})),
                  entry("qwen3moe.block_count", 4, raw(std::uint32_t{1})),
                  entry("qwen3moe.embedding_length", 4, raw(std::uint32_t{D}))};
    const std::uint64_t elements = type == 8 ? 32 : 256;
    const auto cols = static_cast<std::uint64_t>(type == 8 ? D : 256);
    g.tensors = {tensor_entry("blk.0.ffn_gate_inp.weight", {cols, N}, 0, 0),
                 tensor_entry("blk.0.ffn_gate_exps.weight", {cols, F, N}, type, cols * N * 4)};
    for (std::uint64_t i = 0; i < cols * N; ++i) {
      g.data += raw(static_cast<float>(i % 7) - 3);
    }
    for (std::uint64_t b = 0; b < cols / elements * F * N; ++b) {
      std::string block = raw(std::bit_cast<std::uint16_t>(f16(0.5F)));
      while (block.size() < block_bytes) {
        block += static_cast<char>(static_cast<int>(b) - 20 + static_cast<int>(block.size()));
      }
      g.data += block;
    }
    const auto path = folder / (std::to_string(type) + ".gguf");
    write_bytes(path, g.bytes());
    return checkpoint(path);
  };
  const auto model = file(8, 34);  // Q8_0
  const auto found = find_moe_layers(model);
  REQUIRE(found.size() == 1);
  CHECK(found.omissions.empty());
  CHECK(found[0].family == "GGUF");
  CHECK(found[0].name == "blk.0");
  CHECK(found[0].shape() == expert_shape{N, F, D});
  visit_gate(found[0].gates[2], [](const auto& a) {
    for (index_t f = 0; f < F; ++f) {
      for (index_t d = 0; d < D; ++d) {
        CHECK(widen<double>(a(f, d)) == 0.5 * (static_cast<double>(4 + f) - 20 + 2 + static_cast<double>(d)));
      }
    }
  });
  const auto codebook = file(16, 66);  // IQ2_XXS
  const auto refused = find_moe_layers(codebook);
  CHECK(refused.empty());
  REQUIRE(refused.omissions.size() == 1);
  CHECK(contains(refused.omissions[0].reason, "IQ2_XXS: codebook types are not decoded"));
}

}  // namespace test_weights
