// libFuzzer: tensors with the names, types and shapes of packed and plain MoE checkpoints, well and badly put
// together, and a config.json beside them: either a file_error, or weights and layers whose every number can
// be read.
#include "fuzzing.hpp"

#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/io/moe_layers.hpp>

#include <fuzzer/FuzzedDataProvider.h>

#include <array>
#include <cstdlib>
#include <fstream>

namespace {

using namespace mpi_router;

constexpr const char* stems[] = {"model.layers.0.mlp.",
                                 "model.layers.1.block_sparse_moe.",
                                 "blk.0.",
                                 "transformer.blocks.0.ffn.",
                                 "params-decoder-layers_0-moe_block-",
                                 "params-decoder-layers-moe_block-",
                                 "x.",
                                 ""};
constexpr const char* modules[] = {"gate",
                                   "router",
                                   "experts.0.gate_proj",
                                   "experts.1.gate_proj",
                                   "experts.0.w1",
                                   "experts.1.w1",
                                   "experts.gate_up_proj",
                                   "experts.up_proj",
                                   "experts.w13_weight",
                                   "experts.w_gate",
                                   "experts.w_up",
                                   "gate.router_mlp.0",
                                   "gate.down_proj",
                                   "experts.0.up_proj",
                                   "expert0.gate_proj",
                                   "chunk_experts.0.gate_proj",
                                   "gate-kernel",
                                   "wi_0",
                                   "gate_proj",
                                   "switch_mlp.gate_proj",
                                   "experts",
                                   "fc1_latent_proj"};
constexpr const char* parts[] = {".weight",
                                 ".weight_packed",
                                 ".weight_scale",
                                 ".weight_scale_inv",
                                 ".weight_shape",
                                 ".weight_zero_point",
                                 ".weight_g_idx",
                                 ".weight_global_scale",
                                 ".scales",
                                 ".biases",
                                 ".weight_scale_2",
                                 ".qweight",
                                 ".qzeros",
                                 ".g_idx",
                                 "_blocks",
                                 "_scales",
                                 ".weight_scales",
                                 ".SCB",
                                 ".weight_format",
                                 ".input_scale",
                                 ".lora_A.weight",
                                 ".ia3_l",
                                 ".global_scale",
                                 "_scale",
                                 "_scale_inv",
                                 "_zero_point",
                                 ".weight.absmax",
                                 ".weight.quant_map",
                                 ".weight.nested_absmax",
                                 ".weight.nested_quant_map",
                                 ".weight.quant_state.bitsandbytes__nf4",
                                 ".bias",
                                 ""};
constexpr const char* methods[] = {"fp8",        "mxfp4",      "compressed-tensors", "modelopt",
                                   "awq",        "gptq",       "bitsandbytes",       "mlx",
                                   "fbgemm_fp8", "mxfp8",      "blockwise_int8",     "w8a8_int8",
                                   "w8a8_fp8",   "auto-round", "intel/auto-round",   "quark",
                                   "",           "other"};
constexpr const char* packings[] = {"auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel",
                                    "auto_round:auto_awq", "other"};
constexpr const char* quark_types[] = {"fp8_e4m3", "fp4", "int4"};
constexpr const char* formats[] = {"pack-quantized",  "mxfp4-pack-quantized", "nvfp4-pack-quantized",
                                   "float-quantized", "int-quantized",        "other"};
constexpr const char* models[] = {"qwen3_moe", "mixtral",    "gpt_oss", "deepseek_v3",
                                  "dbrx",      "nemotron_h", "other"};

std::string config_of(FuzzedDataProvider& input) {
  if (input.ConsumeProbability<float>() < 0.2F) {
    return input.ConsumeRandomLengthString();
  }
  const auto number = [&] { return std::to_string(input.ConsumeIntegralInRange(-2, 260)); };
  return core::concatenate(
      R"({"model_type":")", input.PickValueInArray(models), R"(","hidden_size":)", number(),
      R"(,"num_experts":)", number(), R"(,"num_hidden_layers":)", number(), R"(,"quantization)",
      input.ConsumeBool() ? "_config" : "", R"(":{"quant_method":")", input.PickValueInArray(methods),
      R"(","format":")", input.PickValueInArray(formats), R"(","bits":)", number(), R"(,"group_size":)",
      number(), R"(,"packing_format":")", input.PickValueInArray(packings), R"(","sym":)",
      input.ConsumeBool() ? "true" : "false", R"(,"global_quant_config":{"weight":{"dtype":")",
      input.PickValueInArray(quark_types),
      R"(","scale_format":"e8m0","group_size":32}},"weight_block_size":[)", number(), ",", number(), "]}}");
}

struct made_tensor {
  std::string name;
  dtype type;
  std::vector<index_t> shape;
};

made_tensor some_tensor(FuzzedDataProvider& input) {
  made_tensor t;
  t.name = core::concatenate(input.PickValueInArray(stems), input.PickValueInArray(modules),
                             input.PickValueInArray(parts));
  t.type =
      static_cast<dtype>(input.ConsumeIntegralInRange<int>(0, static_cast<int>(io::dtype_table.size()) - 1));
  for (auto rank = input.ConsumeIntegralInRange(0, 4); rank > 0; --rank) {
    constexpr index_t usual[] = {0, 1, 2, 4, 8, 16, 32, 64, 128, index_t{1} << 31, index_t{1} << 61};
    t.shape.push_back(input.ConsumeBool() ? input.PickValueInArray(usual)
                                          : input.ConsumeIntegralInRange<index_t>(0, 130));
  }
  return t;
}

/// A router and experts of several layers, along an axis that they mostly agree on.
std::vector<made_tensor> some_scan(FuzzedDataProvider& input) {
  const auto extent = [&] { return input.ConsumeIntegralInRange<index_t>(0, 6); };
  const auto [layers, experts, dim] = std::array{extent(), extent(), extent()};
  const bool first = input.ConsumeBool();
  const std::string stem = "params-decoder-layers-moe_block-";
  return {
      {stem + "gate-kernel", dtype::f32,
       first ? std::vector{layers, dim, experts} : std::vector{dim, layers, experts}},
      {stem + "wi_0", dtype::bf16,
       first ? std::vector{layers, experts, dim, extent()} : std::vector{experts, layers, dim, extent()}}};
}

/// A safetensors file of these; those too large to be worth a run are left out.
std::string file_of(FuzzedDataProvider& input) {
  constexpr std::uint64_t most = 1U << 14U;
  std::string header = "{";
  std::string bytes;
  auto tensors = input.ConsumeBool() ? some_scan(input) : std::vector<made_tensor>();
  for (auto left = input.ConsumeIntegralInRange(1, 8); left > 0; --left) {
    tensors.push_back(some_tensor(input));
  }
  for (const auto& t : tensors) {
    const auto size = detail::byte_size(t.type, t.shape);
    if (!size || *size > most || header.find("\"" + t.name + "\"") != header.npos) {
      continue;
    }
    header += core::concatenate(header.size() > 1 ? "," : "", "\"", t.name, R"(":{"dtype":")",
                                to_string(t.type), R"(","shape":)", to_string(t.shape),
                                R"(,"data_offsets":[)", bytes.size(), ",", bytes.size() + *size, "]}");
    const auto pattern = input.ConsumeBytesAsString(input.ConsumeIntegralInRange<std::size_t>(0, 16));
    for (std::uint64_t i = 0; i < *size; ++i) {
      bytes += pattern.empty() ? '\1' : pattern[i % pattern.size()];
    }
  }
  header += "}";
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header + bytes;
}

/// A folder of this process.
const std::filesystem::path& folder() {
  static const std::filesystem::path path = [] {
    auto name = (std::filesystem::temp_directory_path() / "fuzz_checkpoint.XXXXXX").string();
    fuzzing::require(::mkdtemp(name.data()) != nullptr);
    std::atexit([] { std::filesystem::remove_all(folder()); });
    return std::filesystem::path(name);
  }();
  return path;
}

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

/// Codes of two to eight bits, except for what fills up the last word of a row.
void check_density(const checkpoint& model, const weight& w) {
  if (!w.is_packed() || !w.problem().empty()) {
    return;
  }
  fuzzing::require(w.rows() > 0 && w.cols() > 0);
  const auto numbers = static_cast<std::size_t>(w.rows()) * static_cast<std::size_t>(w.cols());
  std::size_t all = 0;
  for (const auto* t : model.tensors()) {
    all += t->bytes().size();
  }
  fuzzing::require(numbers <= 4 * all);
}

void visit(const moe_layer& layer) {
  fuzzing::require(layer.num_experts == static_cast<index_t>(layer.gates.size()) &&
                   layer.router_rows >= layer.num_experts);
  double sum = 0;
  const auto add = [&](const auto& a) {
    for (index_t i = 0; i < a.rows(); ++i) {
      for (index_t j = 0; j < a.cols(); ++j) {
        sum += widen<double>(a(i, j));
      }
    }
  };
  for (index_t i = 0; i < layer.num_experts; ++i) {
    visit_router_row<double>(layer, i, [&](const auto& row) {
      fuzzing::require(row.size() == layer.hidden_dim);
      for (index_t d = 0; d < row.size(); ++d) {
        sum += widen<double>(row[d]);
      }
    });
    visit_gate<double>(layer.gates[static_cast<std::size_t>(i)], [&](const auto& a) {
      fuzzing::require(a.cols() == layer.gate_dim());
      add(a);
    });
  }
  if (layer.latent != nullptr) {
    visit_latent<double>(layer, add);
  }
  [[maybe_unused]] volatile double sink = sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  FuzzedDataProvider input(data, size);
  const auto path = folder() / "model.safetensors";
  write(path, file_of(input));
  write(folder() / "config.json", config_of(input));
  try {
    const checkpoint model(path);
    for (const auto& w : model.weights()) {
      check_density(model, w);
      fuzzing::decode_all(w);
    }
    for (const auto& layer : find_moe_layers(model)) {
      visit(layer);
    }
  } catch (const file_error&) {
  }
  return 0;
}
