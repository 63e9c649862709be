// Weights whose packing shows in the names of their parts: compressed-tensors, gpt-oss, MLX, AWQ, GPTQ,
// bitsandbytes.
#pragma once

#include <mpi_router/io/packed/scaled.hpp>

#include <algorithm>
#include <array>
#include <iterator>

MPIROUTER_BEGIN

namespace detail::packing {

/// Bits of a code, where `words` of 32 bits hold `cols` of them: the only number that fits.
[[nodiscard]] inline std::optional<index_t> bits_of_codes(index_t cols, index_t words) {
  std::optional<index_t> found;
  for (index_t bits = 2; bits <= 8; ++bits) {
    if ((cols * bits + 31) / 32 == words) {
      if (found) {
        return std::nullopt;
      }
      found = bits;
    }
  }
  return found;
}

/// Zero points of pack-quantized codes, if there are any: packed down the rows.
[[nodiscard]] inline bool zeros_fit(const stored_tensor* zeros, index_t rows, index_t groups,
                                    std::optional<index_t> bits) {
  return zeros == nullptr || (bits && zeros->type() == dtype::i32 && zeros->rank() == 2 &&
                              zeros->shape()[0] == (rows * *bits + 31) / 32 && zeros->shape()[1] == groups);
}

[[nodiscard]] inline std::span<const std::byte> bytes_of(const stored_tensor* t) {
  return t == nullptr ? std::span<const std::byte>() : t->bytes();
}

/// int2 to int8 of compressed-tensors, a dense stream of bits.
inline void read_pack_quantized(const parts_list& parts, const stored_tensor& codes,
                                const stored_tensor& scale, const std::string& weight_name, recognised& out) {
  const auto* extents = parts.find(weight_name + "_shape");
  const auto* zeros = parts.find(weight_name + "_zero_point");
  const auto* order = parts.find(weight_name + "_g_idx");
  std::ranges::copy_if(std::array{extents, zeros, order}, std::back_inserter(out.parts),
                       [](const auto* part) { return part != nullptr; });
  const auto refuse = [&](const stored_tensor& other, std::string_view what) {
    out.refuse(misfit(codes, other, what));
  };
  if (extents == nullptr) {
    out.refuse(lacks(codes, "weight_shape"));
    return;
  }
  const auto shape = named_shape(*extents);
  if (!shape || codes.rank() != 2 || codes.shape()[0] != (*shape)[0]) {
    return refuse(*extents, "extents");
  }
  const index_t rows = (*shape)[0];
  const index_t cols = (*shape)[1];
  const auto type = scale_type_of(scale.type());
  // For the whole tensor, if config.json does not say groups.
  const bool is_one =
      element_count(scale.shape()) == 1 &&
      std::ranges::all_of(parts.said.groups, [&](index_t group) { return group <= 0 || group >= cols; });
  if (!type || (!is_one && (scale.rank() != 2 || scale.shape()[0] != rows))) {
    return refuse(scale, "scales");
  }
  const index_t groups = is_one ? 1 : scale.shape()[1];
  const auto bits = bits_of_codes(cols, codes.shape()[1]);
  if (!zeros_fit(zeros, rows, groups, bits)) {
    return refuse(*zeros, "zero points");
  }
  if (order != nullptr && (order->type() != dtype::i32 || element_count(order->shape()) != cols)) {
    return refuse(*order, "order of groups");
  }
  auto group = columns_of_group(parts.said, cols, groups);
  if (!group && groups > 0 && order != nullptr && number_at<std::int32_t>(*order, 0) >= 0) {
    group = packed::parts_of(cols, groups);  // the order says of which group each column is
  }
  if (!bits || !group) {
    return refuse(scale, "scales");
  }
  out.shape = *shape;
  out.matrices.emplace_back(packed::pack_quantized_matrix(codes.bytes(), rows, cols, *bits,
                                                          grid(scale, *type, 0, 1, is_one ? 1 : rows, groups),
                                                          *group, bytes_of(zeros), bytes_of(order)));
}

/// X.weight_packed of compressed-tensors: int, MXFP4, NVFP4.
[[nodiscard]] inline std::optional<recognised> as_compressed(const parts_list& parts,
                                                             const stored_tensor& codes) {
  constexpr std::string_view end = "_packed";
  if (!codes.name().ends_with("weight_packed")) {
    return std::nullopt;
  }
  const std::string name = without(codes.name(), end);
  recognised out{name, {}, {}, {&codes}, ""};
  const auto* scale = parts.find(name + "_scale");
  if (scale == nullptr) {
    return out.refuse(lacks(codes, "weight_scale"));
  }
  out.parts.push_back(scale);
  const auto* global = parts.find(name + "_global_scale");
  const auto type = scale_type_of(scale->type());
  const stack_shape bytes(codes.shape());
  if (codes.type() == dtype::i32) {
    read_pack_quantized(parts, codes, *scale, name, out);
  } else if (codes.type() == dtype::u8 && type == packed::scale_type::e4m3 && is_fp4(bytes, *scale, 16)) {
    if (global == nullptr) {
      return out.refuse(lacks(codes, "weight_global_scale"));
    }
    out.parts.push_back(global);
    read_fp4(codes, *scale, *type, 16, global, true, out);  // stored as the reciprocal of ModelOpt's
  } else if (codes.type() == dtype::u8 && global == nullptr && type == packed::scale_type::e8m0 &&
             is_fp4(bytes, *scale, 32)) {
    read_fp4(codes, *scale, *type, 32, nullptr, false, out);
  } else {
    out.refuse(misfit(codes, *scale));
  }
  return out;
}

/// X_blocks and X_scales of gpt-oss, MXFP4: [..., D / 32, 16] and [..., D / 32].
[[nodiscard]] inline std::optional<recognised> as_blocks(const parts_list& parts,
                                                         const stored_tensor& codes) {
  constexpr std::string_view end = "blocks";
  if (codes.type() != dtype::u8 || !codes.name().ends_with(end)) {
    return std::nullopt;
  }
  const std::string stem = without(codes.name(), end);
  const auto* scale = parts.find(stem + "scales");
  if (scale == nullptr || !(stem.ends_with('_') || stem.ends_with('.'))) {
    return std::nullopt;
  }
  recognised out{stem.substr(0, stem.size() - 1), {}, {}, {&codes, scale}, ""};
  const auto shape = codes.shape();
  const bool fits = shape.size() >= 3 && shape.back() == 16 && scale->type() == dtype::u8 &&
                    std::ranges::equal(shape.first(shape.size() - 1), scale->shape());
  const stack_shape w(shape.size() >= 3 ? shape.first(shape.size() - 1) : shape);
  if (!fits || !w.is_matrix()) {
    return out.refuse(misfit(codes, *scale));
  }
  out.shape = w.with(w.rows, 32 * w.cols);
  for (index_t i = 0; i < w.count; ++i) {
    out.matrices.emplace_back(
        packed::fp4_matrix(piece(codes, i, w.count), w.rows, 32 * w.cols,
                           grid(*scale, packed::scale_type::e8m0, i, w.count, w.rows, w.cols), 32));
  }
  return out;
}

/// Older configs omit the mode, and so do modules of their own: MLX's default is affine.
[[nodiscard]] inline bool is_affine(const module_packing& own) {
  return own.mode.empty() || own.mode == "affine";
}

/// Whether MLX has such a mode, and codes, scales and biases (null for none) are as it has them.
[[nodiscard]] inline bool is_mlx(const stored_tensor& codes, const stored_tensor& scale,
                                 const stored_tensor* bias, const module_packing& own) {
  const stack_shape w(codes.shape());
  const index_t bits = *own.bits;
  const index_t cols = w.cols * 32 / bits;
  const bool affine = is_affine(own);
  const bool fits = w.is_matrix() && w.cols * 32 % bits == 0 && cols % *own.group == 0 &&
                    scale_type_of(scale.type()) && each_of(scale, w.count) == w.rows * (cols / *own.group) &&
                    (affine ? bias != nullptr && bias->type() == scale.type() &&
                                  std::ranges::equal(bias->shape(), scale.shape())
                            : bias == nullptr);
  return fits && (affine                ? bits >= 2 && bits <= 8 && bits != 7
                  : own.mode == "mxfp8" ? bits == 8 && *own.group == 32
                  : own.mode == "mxfp4" ? bits == 4 && *own.group == 32
                                        : own.mode == "nvfp4" && bits == 4 && *own.group == 16);
}

inline void read_mlx(const stored_tensor& codes, const stored_tensor& scale, const stored_tensor* bias,
                     const module_packing& own, recognised& out) {
  const stack_shape w(codes.shape());
  const index_t cols = w.cols * 32 / *own.bits;
  const index_t groups = cols / *own.group;
  const auto stored = *scale_type_of(scale.type());
  const auto type = own.mode == "nvfp4" ? packed::scale_type::e4m3 : stored;
  out.shape = w.with(w.rows, cols);
  for (index_t i = 0; i < w.count; ++i) {
    const auto words = piece(codes, i, w.count);
    const auto s = grid(scale, type, i, w.count, w.rows, groups);
    if (is_affine(own)) {
      const auto b = grid(*bias, stored, i, w.count, w.rows, groups);
      out.matrices.emplace_back(packed::mlx_matrix(words, w.rows, cols, *own.bits, s, b, *own.group));
    } else if (own.mode == "mxfp8") {
      out.matrices.emplace_back(packed::fp8_matrix(words, w.rows, cols, s, 1, 32));
    } else {
      out.matrices.emplace_back(packed::fp4_matrix(words, w.rows, cols, s, *own.group));
    }
  }
}

/// MLX: X.weight U32 [..., rows, cols · bits / 32], X.scales and X.biases [..., rows, cols / group]. Bits and
/// group are in config.json alone: no shape tells 4 bits in groups of 64 from 8 bits in groups of 32.
[[nodiscard]] inline std::optional<recognised> as_mlx(const parts_list& parts, const stored_tensor& codes) {
  if (codes.type() != dtype::u32 || !codes.name().ends_with(".weight")) {
    return std::nullopt;
  }
  const auto* scale = parts.find(without(codes.name(), "weight") + "scales");
  const auto* bias = parts.find(without(codes.name(), "weight") + "biases");
  if (scale == nullptr) {
    return std::nullopt;
  }
  recognised out{codes.name(), {}, {}, {&codes, scale}, ""};
  if (bias != nullptr) {
    out.parts.push_back(bias);
  }
  const auto& said = parts.said.of_mlx();
  auto own = said.of_weight(codes.name());
  if (bias == nullptr && own.mode.empty()) {  // affine has biases
    own.mode = said.all.mode;
  }
  if (!own.bits || !own.group) {
    return out.refuse(core::concatenate("'", codes.name(),
                                        "' is packed by MLX, whose bits and group_size are in a config.json "
                                        "that is not here or does not say them"));
  }
  if (!is_mlx(codes, *scale, bias, own)) {
    return out.refuse(
        core::concatenate(misfit(codes, *scale), " with ", *own.bits, " bits in groups of ", *own.group));
  }
  read_mlx(codes, *scale, bias, own, out);
  return out;
}

}  // namespace detail::packing

MPIROUTER_END
