// Weights of one byte or less that keep their name, with scales beside them: FP8, int8, NVFP4, MXFP4.
#pragma once

#include <mpi_router/io/packed/parts.hpp>

#include <iterator>

MPIROUTER_BEGIN

namespace detail::packing {

/// The scales of a weight, by the names that its writers give them.
[[nodiscard]] inline const stored_tensor* scales_beside(const parts_list& parts, const std::string& name) {
  std::vector<std::string> names{name + "_scale_inv", name + "_scales_inv",       name + "_scale",
                                 name + "_scales",    name + "_weight_scale_inv", name + "_weight_scale"};
  if (name.ends_with(".weight")) {
    names.push_back(without(name, "weight") + "scale");
    names.push_back(without(name, "weight") + "qscale_weight");  // Mistral's own
  } else {
    names.push_back(name + ".weight_scale_inv");
    names.push_back(name + ".weight_scale");
  }
  return parts.find_any(names);
}

/// Height and width of the blocks that share a scale.
struct block_shape {
  index_t rows = 0;
  index_t cols = 0;
  std::string_view doubt = {};  ///< where two readings fit: both
};

/// The extents that are not 1: writers leave such axes out, [2] for [1, 2], or put them in, [2, 1, 3, 1].
[[nodiscard]] inline std::vector<index_t> extents_but_one(std::span<const index_t> shape) {
  std::vector<index_t> out;
  std::ranges::copy_if(shape, std::back_inserter(out), [](index_t extent) { return extent != 1; });
  return out;
}

/// Whether the scales of a matrix may be one for each row, or one for each column.
struct line_scales {
  bool of_rows = false;
  bool as_column = false;  ///< those of rows, written as [rows, 1] or [rows], which nothing else is
  bool of_columns = false;
};

[[nodiscard]] inline line_scales lines_of(const stack_shape& w, std::span<const index_t> shape, index_t n) {
  const bool one_row = shape.size() >= 2 && shape[shape.size() - 2] == 1 && shape.back() == w.cols;
  const bool one_col = shape.size() < 2 || shape.size() == w.lead.size() + 1 ||
                       (shape.back() == 1 && shape.size() <= w.lead.size() + 2);
  const bool along_rows = shape.size() <= w.lead.size() + 2 &&  // [1, rows]
                          extents_but_one(shape) == extents_but_one(w.with(w.rows, 1));
  return {n == w.rows && (one_col || along_rows), n == w.rows && one_col, n == w.cols && one_row};
}

/// Groups of a row's columns, as MXFP8 has them: 32 with a power of two.
[[nodiscard]] inline block_shape groups_of_rows(const stack_shape& w, const stored_tensor& scale, index_t n,
                                                const quantization& said) {
  const index_t groups = scale.shape().back();
  const bool is_mx =
      scale_type_of(scale.type()) == packed::scale_type::e8m0 && packed::parts_of(w.cols, 32) == groups;
  const auto group = is_mx ? std::optional<index_t>(32) : columns_of_group(said, w.cols, groups);
  return scale.shape().size() >= 2 && group && n == w.rows * groups ? block_shape{1, *group} : block_shape{};
}

/// The blocks that `n` scales of a matrix [rows, cols] stand for; of size 0 × 0 where there is no telling.
/// The block that config.json names comes first: ⌈rows / scale rows⌉ is wrong where the last block is
/// partial.
[[nodiscard]] inline block_shape blocks_of(const stack_shape& w, const stored_tensor& scale, index_t n,
                                           const quantization& said) {
  const auto is_grid = [&](block_shape b) {
    const index_t rows = packed::parts_of(w.rows, b.rows);
    const index_t cols = packed::parts_of(w.cols, b.cols);
    const auto written = extents_but_one(scale.shape());
    return rows * cols == n && (written == extents_but_one(w.with(rows, cols)) ||
                                written == extents_but_one(w.with(1, n)));  // one after the other
  };
  if (n == 1) {
    return {w.rows, w.cols};
  }
  if (said.block_rows && said.block_cols && is_grid({*said.block_rows, *said.block_cols})) {
    return {*said.block_rows, *said.block_cols};
  }
  const auto lines = lines_of(w, scale.shape(), n);
  if (lines.of_rows && (said.method == "w8a8_int8" || said.method == "w8a8_fp8")) {  // which have no others
    return {1, w.cols};
  }
  if (lines.of_columns) {
    const bool doubtful = lines.of_rows && said.method != "fbgemm_fp8";  // Llama-4's experts are [D, 2F]
    return doubtful ? block_shape{0, 0, "one for each row, or one for each column"} : block_shape{w.rows, 1};
  }
  constexpr index_t usual = 128;
  const bool usual_blocks = !lines.as_column && !said.block_rows &&
                            scale.shape().size() >= w.lead.size() + 2 && is_grid({usual, usual});
  if (usual_blocks && lines.of_rows) {
    return {0, 0, "one for each row, or one for each block of 128×128"};
  }
  return usual_blocks    ? block_shape{usual, usual}
         : lines.of_rows ? block_shape{1, w.cols}
                         : groups_of_rows(w, scale, n, said);
}

/// Why codes and scales are no blocks.
[[nodiscard]] inline std::string why_no_blocks(const stored_tensor& codes, const stored_tensor& scale,
                                               const block_shape& block) {
  return block.doubt.empty()
             ? misfit(codes, scale)
             : core::concatenate("'", codes.name(), "' is ", to_string(codes.type()), " ",
                                 to_string(codes.shape()), " and its scales '", scale.name(), "' are ",
                                 to_string(scale.shape()), ": they may be ", block.doubt,
                                 ", and config.json names no method or blocks that would tell");
}

/// The kind of FP8 that a type is.
[[nodiscard]] inline std::optional<packed::fp8_type> fp8_type_of(dtype type) {
  switch (type) {
    case dtype::f8_e4m3: return packed::fp8_type::e4m3;
    case dtype::f8_e5m2: return packed::fp8_type::e5m2;
    case dtype::f8_e4m3fnuz: return packed::fp8_type::e4m3fnuz;
    case dtype::f8_e5m2fnuz: return packed::fp8_type::e5m2fnuz;
    default: return std::nullopt;
  }
}

inline void read_fp8(const stored_tensor& codes, const stored_tensor& scale, const quantization& said,
                     recognised& out) {
  const stack_shape w(codes.shape());
  const auto type = scale_type_of(scale.type());
  const index_t n = element_count(scale.shape()) == 1 ? 1 : w.is_matrix() ? each_of(scale, w.count) : 0;
  const auto block = type && n > 0 ? blocks_of(w, scale, n, said) : block_shape{};
  if (!w.is_matrix() || block.rows == 0) {
    out.refuse(why_no_blocks(codes, scale, block));
    return;
  }
  const bool shared = element_count(scale.shape()) == 1;  // one scale for all matrices
  out.shape.assign(codes.shape().begin(), codes.shape().end());
  for (index_t i = 0; i < w.count; ++i) {
    const auto s = grid(scale, *type, shared ? 0 : i, shared ? 1 : w.count,
                        packed::parts_of(w.rows, block.rows), packed::parts_of(w.cols, block.cols));
    out.matrices.emplace_back(packed::fp8_matrix(piece(codes, i, w.count), w.rows, w.cols, s, block.rows,
                                                 block.cols, *fp8_type_of(codes.type())));
  }
}

/// Codes of four bits, two a byte: their scales must be one for each `group` of a row, and lie so. (Those of
/// a weight that was packed along D and then transposed are as many, see is_turned_fp4.)
[[nodiscard]] inline bool is_fp4(const stack_shape& bytes, const stored_tensor& scale, index_t group) {
  return bytes.is_matrix() && 2 * bytes.cols % group == 0 &&
         extents_but_one(scale.shape()) == extents_but_one(bytes.with(bytes.rows, 2 * bytes.cols / group));
}

/// The same of codes that are packed along the rows, one scale for each `group` of a column.
[[nodiscard]] inline bool is_turned_fp4(const stack_shape& bytes, const stored_tensor& scale, index_t group) {
  return bytes.is_matrix() && 2 * bytes.rows % group == 0 &&
         extents_but_one(scale.shape()) == extents_but_one(bytes.with(2 * bytes.rows / group, bytes.cols));
}

/// Columns of a group of four-bit codes with scales of E4M3: 16 as NVFP4 has them, 32 in ModelOpt's W4A8. 0
/// for neither.
[[nodiscard]] inline index_t columns_of_nvfp4(const stack_shape& bytes, const stored_tensor& scale) {
  const bool e4m3 = scale.type() == dtype::f8_e4m3;
  return e4m3 && is_fp4(bytes, scale, 16) ? 16 : e4m3 && is_fp4(bytes, scale, 32) ? 32 : 0;
}

/// Whether codes and scales of NVFP4 were turned after they were packed.
[[nodiscard]] inline bool is_turned_nvfp4(const stack_shape& bytes, const stored_tensor& scale) {
  return scale.type() == dtype::f8_e4m3 && is_turned_fp4(bytes, scale, 16);
}

/// globals: one number for all matrices, or one for each; null for none.
template <class Matrix = packed::fp4_matrix>
void read_fp4(const stored_tensor& codes, const stored_tensor& scale, packed::scale_type type, index_t group,
              const stored_tensor* globals, bool reciprocal, recognised& out) {
  constexpr bool turned = std::same_as<Matrix, packed::turned_fp4_matrix>;
  const stack_shape bytes(codes.shape());
  const index_t rows = (turned ? 2 : 1) * bytes.rows;
  const index_t cols = (turned ? 1 : 2) * bytes.cols;
  out.shape = bytes.with(rows, cols);
  const index_t each = globals != nullptr ? element_count(globals->shape()) : 1;
  if (globals != nullptr && (globals->type() != dtype::f32 || (each != 1 && each != bytes.count))) {
    out.refuse(misfit(codes, *globals, "global scales"));
    return;
  }
  for (index_t i = 0; i < bytes.count; ++i) {
    const double global =
        globals == nullptr ? 1 : number_at<float>(*globals, each == 1 ? 0 : static_cast<std::size_t>(i));
    const auto scales =
        grid(scale, type, i, bytes.count, turned ? rows / group : rows, turned ? cols : cols / group);
    out.matrices.emplace_back(
        Matrix(piece(codes, i, bytes.count), rows, cols, scales, group, reciprocal ? 1 / global : global));
  }
}

/// Signed bytes with a scale for each block, row, group of a row, or all, and perhaps zero points like them.
inline void read_int8(const parts_list& parts, const stored_tensor& codes, const stored_tensor& scale,
                      recognised& out) {
  const stack_shape w(codes.shape());
  const auto type = scale_type_of(scale.type());
  const bool shared = element_count(scale.shape()) == 1;
  const index_t n = shared ? 1 : w.is_matrix() ? each_of(scale, w.count) : 0;
  const bool has_type = type && *type != packed::scale_type::e8m0;
  const auto block = has_type && n > 0 ? blocks_of(w, scale, n, parts.said) : block_shape{};
  if (!w.is_matrix() || block.rows == 0) {
    out.refuse(why_no_blocks(codes, scale, block));
    return;
  }
  const auto* zeros = parts.find(codes.name() + "_zero_point");
  if (zeros != nullptr) {
    out.parts.push_back(zeros);
    if (zeros->type() != dtype::i8 || extents_but_one(zeros->shape()) != extents_but_one(scale.shape())) {
      out.refuse(misfit(codes, *zeros, "zero points"));
      return;
    }
  }
  out.shape.assign(codes.shape().begin(), codes.shape().end());
  for (index_t i = 0; i < w.count; ++i) {
    const index_t k = shared ? 0 : i;
    const index_t pieces = shared ? 1 : w.count;
    const auto s = grid(scale, *type, k, pieces, packed::parts_of(w.rows, block.rows),
                        packed::parts_of(w.cols, block.cols));
    out.matrices.emplace_back(packed::int8_matrix(
        piece(codes, i, w.count), w.rows, w.cols, s, block.cols, 1,
        zeros == nullptr ? std::span<const std::byte>() : piece(*zeros, k, pieces), block.rows));
  }
}

/// A byte of U8 or I8 with scales: which of the packings it is, their types and extents tell.
inline void read_bytes(const parts_list& parts, const stored_tensor& codes, const stored_tensor& scale,
                       recognised& out) {
  const stack_shape bytes(codes.shape());
  const auto type = scale_type_of(scale.type());
  if (type == packed::scale_type::e8m0 && is_fp4(bytes, scale, 32)) {
    read_fp4(codes, scale, *type, 32, nullptr, false, out);
  } else if (const index_t group = columns_of_nvfp4(bytes, scale);
             codes.type() == dtype::u8 && (group > 0 || is_turned_nvfp4(bytes, scale))) {
    const auto* global = parts.find(scale.name() + "_2");
    if (global == nullptr) {
      out.refuse(lacks(codes, "weight_scale_2"));
      return;
    }
    out.parts.push_back(global);
    if (group > 0) {
      read_fp4(codes, scale, *type, group, global, false, out);
    } else {
      read_fp4<packed::turned_fp4_matrix>(codes, scale, *type, 16, global, false, out);
    }
  } else if (codes.type() == dtype::i8 && scale.name().ends_with(".weight_scales")) {
    out.refuse(core::concatenate("'", codes.name(), "' is I8 with '", scale.name(),
                                 "', as EETQ has them, whose order is one of a GPU and is not decoded here"));
  } else if (codes.type() == dtype::i8) {
    read_int8(parts, codes, scale, out);
  } else {
    out.refuse(misfit(codes, scale));
  }
}

/// FP8, int8, NVFP4 (ModelOpt) and MXFP4 (DeepSeek-V4) under the weight's own name.
[[nodiscard]] inline std::optional<recognised> as_scaled(const parts_list& parts,
                                                         const stored_tensor& codes) {
  const bool fp8 = fp8_type_of(codes.type()).has_value();
  if (!fp8 && codes.type() != dtype::i8 && codes.type() != dtype::u8) {
    return std::nullopt;
  }
  const auto* scale = scales_beside(parts, codes.name());
  if (scale == nullptr) {
    return std::nullopt;
  }
  recognised out{codes.name(), {}, {}, {&codes, scale}, ""};
  if (fp8) {
    read_fp8(codes, *scale, parts.said, out);
  } else {
    read_bytes(parts, codes, *scale, out);
  }
  return out;
}

}  // namespace detail::packing

MPIROUTER_END
