// What the config.json beside a checkpoint says of how its weights are packed.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/io/config_file.hpp>
#include <mpi_router/io/packed/turned_inputs.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

MPIROUTER_BEGIN

/// Bits and group size of one module; absent where they were not said.
struct module_packing {
  std::optional<index_t> bits;
  std::optional<index_t> group;
  std::string mode;  ///< MLX: "affine", "mxfp4", …; empty: affine
};

/// How weights are packed, as far as config.json says.
struct quantization {
  std::string method;                ///< quant_method: "fp8", "compressed-tensors", …; "mlx"; empty: not said
  std::vector<std::string> formats;  ///< compressed-tensors: "pack-quantized", …
  std::optional<index_t> block_rows;
  std::optional<index_t> block_cols;
  std::vector<index_t> groups;  ///< columns of a group: of all modules, or of some (compressed-tensors)
  module_packing all;
  std::map<std::string, module_packing, std::less<>> modules;  ///< MLX: modules of their own
  std::string checkpoint_format;                               ///< GPTQ: "gptq", "gptq_v2" or "gptq_p"
  std::optional<bool> symmetric;  ///< GPTQ: whether all zeros are half of the range
  std::string unknown;            ///< a method or format that is not known here; empty if all are
  bool has_mxfp4 = false;         ///< Quark: of all modules, or of some
  bool turned_inputs = false;  ///< compressed-tensors: gates, packed or not, are for inputs that are turned
  std::vector<quantization> mlx;  ///< MLX's own entry, where another's stands beside it: of the model that
                                  ///< was converted, or left over

  [[nodiscard]] const quantization& of_mlx() const { return mlx.empty() ? *this : mlx.front(); }
  [[nodiscard]] bool has_format(std::string_view name) const {
    return std::ranges::find(formats, name) != formats.end();
  }
  /// Of the module whose weight is named so.
  [[nodiscard]] module_packing of_weight(std::string_view name) const {
    if (name.ends_with(".weight")) {
      name.remove_suffix(std::string_view(".weight").size());
    }
    const auto own = modules.find(name);
    return own == modules.end() ? all : own->second;
  }
};

namespace detail::packing {

[[nodiscard]] inline std::string text_of(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

[[nodiscard]] inline std::optional<index_t> count_in(const nlohmann::json& number) {
  const auto value = number.is_number_integer() ? number.get<std::int64_t>() : 0;
  return value >= 1 && value <= 1'000'000 ? std::optional(static_cast<index_t>(value)) : std::nullopt;
}

[[nodiscard]] inline std::optional<index_t> count_of(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() ? std::nullopt : count_in(*it);
}

[[nodiscard]] inline module_packing module_of(const nlohmann::json& object) {
  return {count_of(object, "bits"), count_of(object, "group_size"), text_of(object, "mode")};
}

/// "weight_block_size" or "block_structure": [128, 128], or "128x128".
inline void read_block(const nlohmann::json& object, const char* key, quantization& out) {
  const auto block = object.find(key);
  if (block == object.end()) {
    return;
  }
  nlohmann::json written;
  const nlohmann::json* pair = &*block;  // not copied, which recurses: a file may nest it as deep as it likes
  if (const auto* text = block->get_ptr<const std::string*>()) {
    const auto cross = text->find('x');
    written =
        nlohmann::json::parse(core::concatenate("[", text->substr(0, cross), ",",
                                                cross == text->npos ? "" : text->substr(cross + 1), "]"),
                              nullptr, false);
    pair = &written;
  }
  if (pair->is_array() && pair->size() == 2) {
    out.block_rows = count_in((*pair)[0]);
    out.block_cols = count_in((*pair)[1]);
  }
}

/// Adds a value that is new. No model has more than a few: a file that names many is refused, for each is
/// looked at for each weight.
template <class T>
void add_new(std::vector<T>& list, const T& value, quantization& out) {
  constexpr std::size_t most = 64;
  if (std::ranges::find(list, value) != list.end()) {
    return;
  }
  if (list.size() == most) {
    out.unknown = core::concatenate("more than ", most, " formats or sizes of groups");
    return;
  }
  list.push_back(value);
}

/// What compressed-tensors says at the top, of each of its groups of modules, or both: formats, blocks, sizes
/// of groups of columns.
inline void read_formats(const nlohmann::json& object, quantization& out) {
  const auto add = [&](const nlohmann::json& of) {
    if (const auto format = text_of(of, "format"); !format.empty()) {
      add_new(out.formats, format, out);
    }
    const auto weights = of.find("weights");
    if (weights != of.end() && weights->is_object()) {
      read_block(*weights, "block_structure", out);
      if (const auto group = count_of(*weights, "group_size")) {
        add_new(out.groups, *group, out);
      }
    }
  };
  add(object);
  const auto groups = object.find("config_groups");
  if (groups != object.end() && groups->is_object()) {
    for (const auto& [name, group] : groups->items()) {
      if (group.is_object()) {
        add(group);
      }
    }
  }
}

inline void read_modules(const nlohmann::json& object, quantization& out) {
  for (const auto& [name, value] : object.items()) {
    if (value.is_object() && (value.contains("bits") || value.contains("group_size"))) {
      auto own = module_of(value);
      own.bits = own.bits ? own.bits : out.all.bits;
      own.group = own.group ? own.group : out.all.group;
      out.modules.emplace(name, own);
    }
  }
}

/// What GPTQ and AWQ say of zero points, and how they pack: AutoAWQ's "gemm", or others.
inline void read_input_major(const nlohmann::json& object, quantization& out) {
  out.checkpoint_format = text_of(object, "checkpoint_format");
  if (const auto symmetric = object.find("sym"); symmetric != object.end() && symmetric->is_boolean()) {
    out.symmetric = symmetric->get<bool>();
  }
  auto version = text_of(object, "version");
  std::ranges::transform(version, version.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (out.method == "awq" && !version.empty() && version != "gemm") {
    out.unknown = core::concatenate("version '", version, "' of AWQ");
  }
  constexpr std::array<std::string_view, 4> formats{"", "gptq", "gptq_v2", "gptq_p"};
  if (out.method == "gptq" && std::ranges::find(formats, out.checkpoint_format) == formats.end()) {
    out.unknown = core::concatenate("checkpoint_format '", out.checkpoint_format, "' of GPTQ");
  }
}

/// AutoRound packs as GPTQ or AWQ do and says as which; where it does not, shapes tell. Its own format and
/// GPTQModel's are GPTQ's with zeros as they are. Its FP8 is told by its types.
inline void read_auto_round(const nlohmann::json& object, quantization& out) {
  constexpr std::array<std::string_view, 3> methods{"auto-round", "auto_round", "intel/auto-round"};
  if (std::ranges::find(methods, out.method) == methods.end()) {
    return;
  }
  const auto format = text_of(object, "packing_format");
  const auto is = [&](auto... words) { return ((format == words) || ...); };
  if (is("", "auto")) {
    out.method.clear();
  } else if (is("auto_round:auto_gptq", "auto_round:gptq")) {
    out.method = "gptq";
  } else if (is("auto_round:auto_awq", "auto_round:awq")) {
    out.method = "awq";
  } else if (is("auto_round", "auto_round:gptqmodel")) {
    out.method = "gptq";
    out.checkpoint_format = "gptq_v2";
  } else if (is("auto_round:fp8", "auto_round:fp8_static")) {
    out.method = "fp8";
  } else {
    out.unknown = core::concatenate("packing_format '", format, "' of AutoRound");
  }
}

/// Quark writes FP8 and MXFP4 as others do; its integers lie in an order of their own.
inline void read_quark(const nlohmann::json& object, quantization& out) {
  if (out.method != "quark") {
    return;
  }
  const auto check = [&](const nlohmann::json& of) {
    const auto weight = of.is_object() ? of.find("weight") : of.end();
    if (!of.is_object() || weight == of.end() || weight->is_null()) {
      return;
    }
    const auto type = weight->is_object() ? text_of(*weight, "dtype") : "several steps";
    const bool mxfp4 =
        type == "fp4" && text_of(*weight, "scale_format") == "e8m0" && count_of(*weight, "group_size") == 32;
    out.has_mxfp4 = out.has_mxfp4 || mxfp4;
    if (type != "fp8_e4m3" && type != "fp8_e5m2" && !mxfp4) {
      out.unknown = core::concatenate("weights of '", type, "' of Quark");
    }
  };
  for (const char* key : {"global_quant_config", "layer_quant_config", "layer_type_quant_config"}) {
    if (const auto of = object.find(key); of != object.end() && of->is_object()) {
      check(*of);
      for (const auto& [name, module] : of->items()) {
        check(module);
      }
    }
  }
}

/// Values of quant_method that are known here; none is one.
inline constexpr std::array<std::string_view, 15> known_methods{
    "",    "fp8",        "mxfp4", "compressed-tensors", "modelopt",  "awq",      "gptq", "bitsandbytes",
    "mlx", "fbgemm_fp8", "mxfp8", "blockwise_int8",     "w8a8_int8", "w8a8_fp8", "quark"};

/// A method or format that no reader here knows: what it packs is refused, never guessed.
[[nodiscard]] inline std::string unknown_in(const quantization& said) {
  constexpr std::array<std::string_view, 10> formats{
      "dense",           "pack-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized", "float-quantized",
      "naive-quantized", "int-quantized",  "mxfp8-quantized",      "mixed-precision",      "int8-quantized"};
  constexpr std::array<std::string_view, 5> modes{"", "affine", "mxfp4", "mxfp8", "nvfp4"};
  if (!said.unknown.empty()) {
    return said.unknown;
  }
  if (std::ranges::find(known_methods, said.method) == known_methods.end()) {
    return core::concatenate("quant_method '", said.method, "'");
  }
  for (const auto& format : said.formats) {
    if (said.method == "compressed-tensors" && std::ranges::find(formats, format) == formats.end()) {
      return core::concatenate("format '", format, "'");
    }
  }
  return std::ranges::find(modes, said.all.mode) == modes.end()
             ? core::concatenate("mode '", said.all.mode, "'")
             : "";
}

/// MLX's "quantization".
[[nodiscard]] inline const nlohmann::json* find_mlx(const nlohmann::json& config) {
  const auto* found = find_object(config, {"quantization"});
  const auto own = found == nullptr ? module_packing{} : module_of(*found);
  return own.bits && own.group && text_of(*found, "quant_method").empty() ? found : nullptr;
}

/// The JSON of a file of that name beside a checkpoint; null where there is none.
[[nodiscard]] inline nlohmann::json json_beside(const std::filesystem::path& checkpoint, const char* name) {
  const auto file = read_beside(checkpoint, name);
  return file && file->problem.empty() ? parse_python_json(file->text) : nlohmann::json();
}

/// What an entry says. `method`: where it names none.
[[nodiscard]] inline quantization parse_entry(const nlohmann::json& entry, const char* method = "") {
  quantization out;
  out.method = text_of(entry, "quant_method");
  out.all = module_of(entry);
  if (out.method.empty()) {
    out.method = *method == '\0' && out.all.bits && out.all.group ? "mlx" : method;
  }
  if (out.method == "mxfp8" && !out.all.group) {
    out.all.group = 32;  // as OCP's MX formats have it
  }
  if (out.all.group) {
    out.groups.push_back(*out.all.group);
  }
  read_input_major(entry, out);
  read_auto_round(entry, out);
  read_quark(entry, out);
  out.turned_inputs = turns_inputs(entry);
  if (out.turned_inputs) {
    out.unknown = "a transform_config (weights for inputs that Hadamard matrices turn)";
  }
  read_block(entry, "weight_block_size", out);
  read_formats(entry, out);
  read_modules(entry, out);
  out.unknown = unknown_in(out);
  return out;
}

}  // namespace detail::packing

/// Reads what a config.json says of packing: quantization_config at the top or in a part of a composite
/// config, and MLX's quantization. Never throws for what the text says.
[[nodiscard]] inline quantization parse_quantization(const nlohmann::json& config) {
  using namespace detail::packing;
  const auto* found = find_object(config, {"quantization_config", "compression_config", "quantization"});
  auto out = found == nullptr ? quantization() : parse_entry(*found);
  if (const auto* mlx = find_mlx(config); mlx != nullptr && mlx != found) {
    out.mlx.push_back(parse_entry(*mlx));
  }
  return out;
}

/// What the config.json in a folder or beside a file says of packing or, where that says nothing, the
/// quantize_config.json that writers of GPTQ put there.
[[nodiscard]] inline quantization read_quantization(const std::filesystem::path& checkpoint) {
  using detail::packing::json_beside;
  auto out = parse_quantization(json_beside(checkpoint, "config.json"));
  const bool said = !out.method.empty() || !out.formats.empty() || out.block_rows || out.all.bits;
  if (const auto other = said ? nlohmann::json() : json_beside(checkpoint, "quantize_config.json");
      other.is_object()) {
    out = detail::packing::parse_entry(other, "gptq");
  }
  return out;
}

MPIROUTER_END
