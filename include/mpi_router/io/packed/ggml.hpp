// ggml's block types, as GGUF files hold them.
#pragma once

#include <mpi_router/io/packed/ggml_k_blocks.hpp>

MPIROUTER_BEGIN
namespace packed {

namespace detail {

/// Decodes `blocks` blocks, one after the other.
template <ggml_type Type, Accumulator S>
void decode_blocks(const std::byte* in, index_t blocks, S* out) noexcept {
  using layout = block<Type>;
  for (index_t b = 0; b < blocks; ++b) {
    layout::decode(in + b * layout::bytes, out + b * layout::elements);
  }
}
template <Accumulator S>
using block_decoder = void (*)(const std::byte* in, index_t blocks, S* out) noexcept;

/// Null for a type that is not decoded.
template <Accumulator S>
[[nodiscard]] block_decoder<S> decoder_of(ggml_type type) noexcept {
  switch (type) {
    case ggml_type::f32: return decode_blocks<ggml_type::f32, S>;
    case ggml_type::f16: return decode_blocks<ggml_type::f16, S>;
    case ggml_type::bf16: return decode_blocks<ggml_type::bf16, S>;
    case ggml_type::q8_0: return decode_blocks<ggml_type::q8_0, S>;
    case ggml_type::q4_0: return decode_blocks<ggml_type::q4_0, S>;
    case ggml_type::q4_1: return decode_blocks<ggml_type::q4_1, S>;
    case ggml_type::q5_0: return decode_blocks<ggml_type::q5_0, S>;
    case ggml_type::q5_1: return decode_blocks<ggml_type::q5_1, S>;
    case ggml_type::q2_k: return decode_blocks<ggml_type::q2_k, S>;
    case ggml_type::q3_k: return decode_blocks<ggml_type::q3_k, S>;
    case ggml_type::q4_k: return decode_blocks<ggml_type::q4_k, S>;
    case ggml_type::q5_k: return decode_blocks<ggml_type::q5_k, S>;
    case ggml_type::q6_k: return decode_blocks<ggml_type::q6_k, S>;
    case ggml_type::iq4_nl: return decode_blocks<ggml_type::iq4_nl, S>;
    case ggml_type::iq4_xs: return decode_blocks<ggml_type::iq4_xs, S>;
    case ggml_type::mxfp4: return decode_blocks<ggml_type::mxfp4, S>;
    case ggml_type::nvfp4: return decode_blocks<ggml_type::nvfp4, S>;
    default: return nullptr;
  }
}

}  // namespace detail

/// A matrix [rows, cols] of ggml blocks, row-major, times `scale` (NVFP4 keeps one beside the tensor). As
/// floats its values are those of ggml's own dequantisation, except for MXFP4's scale of 255, which is NaN
/// here, as the format has it, and a number there. A model of MatrixRows.
class ggml_matrix {
 public:
  /// Rows without gaps. Throws usage_error for a type that is not decoded, by its name; where cols is no
  /// multiple of its block; and where the bytes are not as many as the shape asks for.
  ggml_matrix(ggml_type type, std::span<const std::byte> bytes, index_t rows, index_t cols, float scale = 1)
      : ggml_matrix(type, bytes.data(), rows, cols, row_size(type, cols)) {
    scale_ = scale;
    expect_bytes(name_of(type), bytes, rows, cols, row_bytes_);
  }
  /// Rows that begin `row_bytes` bytes apart, as those of a tensor that others were cut from. Throws
  /// usage_error as above, and where rows overlap.
  ggml_matrix(ggml_type type, const std::byte* bytes, index_t rows, index_t cols, index_t row_bytes)
      : bytes_(bytes), rows_(rows), cols_(cols), type_(type), row_bytes_(row_bytes), blocks_(0) {
    const index_t size = row_size(type, cols);
    blocks_ = cols / ggml_block_of(type).elements;
    core::expect(rows >= 0 && cols >= 0, name_of(type), ": negative extent in [", rows, ", ", cols, "]");
    core::expect(rows <= 1 || row_bytes >= size, name_of(type), ": rows of ", size, " bytes, ", row_bytes,
                 " bytes apart");
  }

  [[nodiscard]] ggml_type type() const noexcept { return type_; }
  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }
  [[nodiscard]] float scale() const noexcept { return scale_; }
  [[nodiscard]] const std::byte* bytes() const noexcept { return bytes_; }
  /// From one row to the next.
  [[nodiscard]] index_t row_bytes() const noexcept { return row_bytes_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    detail::decoder_of<S>(type_)(bytes_ + f * row_bytes_, blocks_, out);
    if (scale_ != 1.0F) {
      for (index_t d = 0; d < cols_; ++d) {
        out[d] *= scale_;
      }
    }
  }

 private:
  /// The bytes of a row of so many columns.
  [[nodiscard]] static index_t row_size(ggml_type type, index_t cols) {
    core::expect(is_decoded(type), refusal_of(type));
    const ggml_block block = ggml_block_of(type);
    core::expect(cols % block.elements == 0, name_of(type), ": ", cols, " columns, in blocks of ",
                 block.elements);
    const index_t blocks = cols / block.elements;
    core::expect(blocks <= std::numeric_limits<index_t>::max() / block.bytes, name_of(type), ": ", cols,
                 " columns cannot be");
    return blocks * block.bytes;
  }

  const std::byte* bytes_;
  index_t rows_;
  index_t cols_;
  ggml_type type_;
  float scale_ = 1;
  index_t row_bytes_;
  index_t blocks_;
};

}  // namespace packed
MPIROUTER_END
