// Weights packed along the inputs of a layer: AWQ and GPTQ; and those of bitsandbytes.
#pragma once

#include <mpi_router/io/packed/parts.hpp>

MPIROUTER_BEGIN

namespace detail::packing {

/// What AWQ and GPTQ have in common: qweight, qzeros and scales of a matrix [outputs, inputs].
struct quantised_parts {
  const stored_tensor* codes;
  const stored_tensor* zeros;
  const stored_tensor* scale;
  const stored_tensor* order;  ///< g_idx, or null

  [[nodiscard]] index_t outputs() const { return scale->shape()[1]; }
  [[nodiscard]] index_t groups() const { return scale->shape()[0]; }
};

[[nodiscard]] inline std::optional<quantised_parts> quantised_parts_of(const parts_list& parts,
                                                                       const stored_tensor& codes) {
  const std::string stem = without(codes.name(), "qweight");
  const quantised_parts found{&codes, parts.find(stem + "qzeros"), parts.find(stem + "scales"),
                              parts.find(stem + "g_idx")};
  const bool whole = found.zeros != nullptr && found.scale != nullptr && codes.rank() == 2 &&
                     found.zeros->rank() == 2 && found.scale->rank() == 2 && found.groups() > 0 &&
                     found.outputs() > 0 && !found.zeros->bytes().empty() && codes.type() == dtype::i32 &&
                     found.zeros->type() == dtype::i32;
  return whole ? std::optional(found) : std::nullopt;
}

/// Whether all codes of a dense stream are this one: eight of them fill `bits` bytes.
[[nodiscard]] inline bool all_are(std::span<const std::byte> stream, std::uint64_t code, index_t bits) {
  std::uint64_t eight = 0;
  for (index_t k = 0; k < 8; ++k) {
    eight |= code << static_cast<unsigned>(k * bits);
  }
  const auto width = static_cast<std::size_t>(bits);
  for (std::size_t i = 0; i < stream.size(); ++i) {
    if (stream[i] != static_cast<std::byte>(eight >> (8 * (i % width)) & 255U)) {
      return false;
    }
  }
  return true;
}

/// GPTQ's stored zero is one less than the zero ("gptq") or the zero itself ("gptq_v2", "gptq_p");
/// checkpoints are known whose config says the one and whose zeros are the other. Symmetric ones have but one
/// zero, half of the range, which settles it. A config that does not say it means "gptq", which was there
/// first; without one nothing tells the zeros of asymmetric ones.
[[nodiscard]] inline std::optional<bool> stores_zero_minus_one(const quantised_parts& p, index_t bits,
                                                               const quantization& said) {
  const std::uint64_t half = std::uint64_t{1} << static_cast<unsigned>(bits - 1);
  if (said.symmetric.value_or(true)) {
    if (all_are(p.zeros->bytes(), half, bits)) {
      return false;
    }
    if (all_are(p.zeros->bytes(), half - 1, bits)) {
      return true;
    }
  }
  const bool has_config = !said.method.empty() || said.symmetric || said.all.bits || !said.groups.empty();
  if (!has_config) {
    return std::nullopt;
  }
  return said.checkpoint_format != "gptq_v2" && said.checkpoint_format != "gptq_p";
}

inline void read_awq(const quantised_parts& p, const quantization& said, recognised& out) {
  const index_t inputs = p.codes->shape()[0];
  const auto type = scale_type_of(p.scale->type());
  const auto group = columns_of_group(said, inputs, p.groups());
  const bool fits =
      type && group && p.zeros->shape()[0] == p.groups() && p.zeros->shape()[1] == p.codes->shape()[1];
  if (!fits) {
    out.refuse(misfit(*p.codes, *p.zeros, "zero points"));
    return;
  }
  out.shape = {p.outputs(), inputs};
  out.matrices.emplace_back(packed::awq_matrix(p.codes->bytes(), p.zeros->bytes(),
                                               grid(*p.scale, *type, 0, 1, p.groups(), p.outputs()),
                                               p.outputs(), inputs, *group));
}

inline void read_gptq(const quantised_parts& p, index_t bits, const quantization& said, recognised& out) {
  const index_t inputs = p.codes->shape()[0] * 32 / bits;
  const auto type = scale_type_of(p.scale->type());
  const bool order_fits =
      p.order == nullptr || (p.order->type() == dtype::i32 && element_count(p.order->shape()) == inputs);
  auto group = columns_of_group(said, inputs, p.groups());
  if (!group && p.order != nullptr) {  // which says of which group each column is: the size does not matter
    group = packed::parts_of(inputs, p.groups());
  }
  const bool fits = type && group && p.zeros->shape()[0] == p.groups() &&
                    p.codes->shape()[0] * 32 % (bits * packed::gptq_matrix::pack_factor(bits)) == 0 &&
                    p.zeros->shape()[1] * 32 == p.outputs() * bits && order_fits;
  if (!fits) {
    out.refuse(order_fits ? misfit(*p.codes, *p.zeros, "zero points")
                          : misfit(*p.codes, *p.order, "order of groups"));
    return;
  }
  const auto minus_one = stores_zero_minus_one(p, bits, said);
  if (!minus_one) {
    out.refuse(
        "asymmetric zero points of GPTQ in " + p.zeros->name() +
        ", and no config.json or quantize_config.json says whether they are stored less one (gptq) or as "
        "they are (gptq_v2)");
    return;
  }
  out.shape = {p.outputs(), inputs};
  out.matrices.emplace_back(packed::gptq_matrix(
      p.codes->bytes(), p.zeros->bytes(), grid(*p.scale, *type, 0, 1, p.groups(), p.outputs()),
      p.order == nullptr ? std::span<const std::byte>() : p.order->bytes(), p.outputs(), inputs, bits, *group,
      *minus_one));
}

/// X.qweight: AWQ packs the outputs, [D, F / 8]; GPTQ the inputs, [D · bits / 32, F].
[[nodiscard]] inline std::optional<recognised> as_quantised(const parts_list& parts,
                                                            const stored_tensor& codes) {
  if (!codes.name().ends_with(".qweight")) {
    return std::nullopt;
  }
  recognised out{without(codes.name(), "qweight") + "weight", {}, {}, {&codes}, ""};
  const auto p = quantised_parts_of(parts, codes);
  if (!p) {
    return out.refuse(lacks(codes, "qzeros and scales as AWQ and GPTQ have them"));
  }
  out.parts.insert(out.parts.end(), {p->zeros, p->scale});
  if (p->order != nullptr) {
    out.parts.push_back(p->order);
  }
  const index_t packed_outputs = codes.shape()[1];
  const auto own = parts.said.of_weight(codes.name());
  const bool awq = packed_outputs * 8 == p->outputs() && p->order == nullptr;
  const bool gptq = packed_outputs == p->outputs();
  if (awq && parts.said.method != "gptq" && own.bits.value_or(4) == 4) {
    read_awq(*p, parts.said, out);
  } else if (gptq && parts.said.method != "awq") {
    const index_t bits = p->zeros->shape()[1] * 32 / p->outputs();  // config.json has one for all modules
    if (!packed::gptq_matrix::has_bits(bits) && own.bits.value_or(bits) != bits) {
      return out.refuse(misfit(codes, *p->zeros, "zero points"));
    }
    if (!packed::gptq_matrix::has_bits(bits)) {
      return out.refuse(core::concatenate("'", codes.name(), "' has codes of ", bits,
                                          " bits, which GPTQ packs in a way that is not decoded here"));
    }
    read_gptq(*p, bits, parts.said, out);
  } else {
    out.refuse(misfit(codes, *p->scale));
  }
  return out;
}

/// The JSON in a tensor of bytes, as bitsandbytes keeps the state of its quantiser.
[[nodiscard]] inline nlohmann::json json_in(const stored_tensor& t) {
  const auto bytes = t.bytes();
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  return nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
}

/// Absmax of the blocks: stored, or itself quantised.
[[nodiscard]] inline std::optional<packed::block_maxima> maxima_of(const parts_list& parts,
                                                                   const std::string& name,
                                                                   const nlohmann::json& state,
                                                                   recognised& out) {
  const auto* absmax = parts.find(name + ".absmax");
  const auto* nested = parts.find(name + ".nested_absmax");
  const auto* map = parts.find(name + ".nested_quant_map");
  for (const auto* part : {absmax, nested, map}) {
    if (part != nullptr) {
      out.parts.push_back(part);
    }
  }
  if (absmax != nullptr && absmax->type() == dtype::f32) {
    return packed::block_maxima(absmax->bytes());
  }
  const auto size = count_of(state, "nested_blocksize");
  const auto offset = state.find("nested_offset");
  const bool whole = absmax != nullptr && absmax->type() == dtype::u8 && nested != nullptr &&
                     nested->type() == dtype::f32 && map != nullptr && map->type() == dtype::f32 &&
                     element_count(map->shape()) == 256 && size && offset != state.end() &&
                     offset->is_number() &&
                     static_cast<index_t>(nested->bytes().size() / 4) >=
                         (static_cast<index_t>(absmax->bytes().size()) + *size - 1) / *size;
  if (!whole) {
    return std::nullopt;
  }
  return packed::block_maxima(absmax->bytes(), nested->bytes(), map->bytes(), *size, offset->get<float>());
}

/// Two or three extents, as the state of a quantiser names them; nothing where their product is too large.
[[nodiscard]] inline std::optional<std::vector<index_t>> extents_in(const nlohmann::json& list) {
  if (!list.is_array() || list.size() < 2 || list.size() > 3) {
    return std::nullopt;
  }
  constexpr std::uint64_t most = std::uint64_t{1} << 48U;
  std::vector<index_t> out;
  std::uint64_t size = 1;
  for (const auto& extent : list) {
    const auto value = extent.is_number_unsigned() ? extent.get<std::uint64_t>() : 0;
    if (value == 0 || value > most / size) {
      return std::nullopt;
    }
    size *= value;
    out.push_back(static_cast<index_t>(value));
  }
  return out;
}

/// X.weight U8 [n / 2, 1] of bitsandbytes, four bits a code: X.weight.absmax, .quant_map, .quant_state.….
[[nodiscard]] inline std::optional<recognised> as_four_bit(const parts_list& parts,
                                                           const stored_tensor& codes) {
  const std::string& name = codes.name();
  const auto* kept = parts.find_first(name + ".quant_state.bitsandbytes__");
  if (codes.type() != dtype::u8 || kept == nullptr) {
    return std::nullopt;
  }
  recognised out{name, {}, {}, {&codes, kept}, ""};
  const auto state = json_in(*kept);
  const auto* map = parts.find(name + ".quant_map");
  if (map != nullptr) {
    out.parts.push_back(map);
  }
  const auto extents = state.is_object() ? state.find("shape") : state.end();
  const auto block = state.is_object() ? count_of(state, "blocksize") : std::nullopt;
  const bool whole = state.is_object() && block && map != nullptr && map->type() == dtype::f32 &&
                     element_count(map->shape()) == 16 && extents != state.end();
  const auto shape = whole ? extents_in(*extents) : std::nullopt;
  if (!shape) {
    return out.refuse(core::concatenate("'", kept->name(), "' does not say how '", name, "' is packed"));
  }
  const auto maxima = maxima_of(parts, name, state, out);
  const index_t size = element_count(*shape);
  if (!maxima || packed::parts_of(size, 2) != static_cast<index_t>(codes.bytes().size()) ||
      maxima->size() != packed::parts_of(size, *block)) {
    return out.refuse(core::concatenate("'", name, "' has ", codes.bytes().size(),
                                        " bytes of codes and absmax for ", maxima ? maxima->size() : 0,
                                        " blocks, where '", kept->name(), "' says ", to_string(*shape),
                                        " in blocks of ", *block));
  }
  out.shape = *shape;  // blocks go on from one matrix to the next, so that all are one
  out.matrices.emplace_back(
      packed::nf4_matrix(codes.bytes(), size / shape->back(), shape->back(), map->bytes(), *maxima, *block));
  return out;
}

/// X.weight I8 [F, D] of bitsandbytes, eight bits a code, and X.SCB F32 [F], 127 times the scale of each row;
/// X.weight_format, where it is there, is 0 for rows one after the other.
[[nodiscard]] inline std::optional<recognised> as_eight_bit(const parts_list& parts,
                                                            const stored_tensor& codes) {
  const std::string& name = codes.name();
  const auto* largest = name.ends_with(".weight") ? parts.find(without(name, "weight") + "SCB") : nullptr;
  if (codes.type() != dtype::i8 || largest == nullptr) {
    return std::nullopt;
  }
  recognised out{name, {}, {}, {&codes, largest}, ""};
  const auto* format = parts.find(name + "_format");
  if (format != nullptr) {
    out.parts.push_back(format);
    if (format->bytes().size() != 1 || format->bytes()[0] != std::byte{0}) {
      return out.refuse(core::concatenate("'", format->name(), "' says that '", name,
                                          "' is not stored row after row, but in an order of one GPU"));
    }
  }
  const stack_shape w(codes.shape());
  if (codes.rank() != 2 || !w.is_matrix() || largest->type() != dtype::f32 ||
      element_count(largest->shape()) != w.rows) {
    return out.refuse(misfit(codes, *largest));
  }
  out.shape = {w.rows, w.cols};
  out.matrices.emplace_back(packed::int8_matrix(
      codes.bytes(), w.rows, w.cols, grid(*largest, packed::scale_type::f32, 0, 1, w.rows, 1), 0, 127));
  return out;
}

}  // namespace detail::packing

MPIROUTER_END
