// FP8 weights, one byte each, with a scale for each block: DeepSeek-V3, Qwen3, GLM and Llama-4 in FP8.
#pragma once

#include <mpi_router/io/packed/numbers.hpp>

#include <algorithm>

MPIROUTER_BEGIN
namespace packed {

/// The floats of eight bits that weights are stored as. "fnuz": finite, with one NaN and one zero, unsigned.
enum class fp8_type : unsigned char { e4m3, e5m2, e4m3fnuz, e5m2fnuz };

/// "FP8 E4M3".
[[nodiscard]] constexpr std::string_view name_of(fp8_type type) {
  switch (type) {
    case fp8_type::e4m3: return "FP8 E4M3";
    case fp8_type::e5m2: return "FP8 E5M2";
    case fp8_type::e4m3fnuz: return "FP8 E4M3FNUZ";
    case fp8_type::e5m2fnuz: return "FP8 E5M2FNUZ";
  }
  core::unknown_value("fp8_type", type);
}

/// W[f, d] = code[f, d] · scale[f / block_rows, d / block_cols] of codes [rows, cols]; blocks at the end may
/// be partial. One scale for each row is a block of [1, cols], one for each column [rows, 1], one for all
/// [rows, cols]. The product is rounded to S once. A model of MatrixRows.
class fp8_matrix {
 public:
  /// Throws usage_error where codes or scales are not as many as the shape and the blocks ask for.
  fp8_matrix(std::span<const std::byte> codes, index_t rows, index_t cols, const packed::scales& scales,
             index_t block_rows, index_t block_cols, fp8_type type = fp8_type::e4m3)
      : codes_(codes.data()),
        rows_(rows),
        cols_(cols),
        scales_(scales),
        block_rows_(block_rows),
        block_cols_(block_cols),
        type_(type) {
    expect_bytes("fp8_matrix", codes, rows, cols, cols);
    core::expect(block_rows > 0 && block_cols > 0, "fp8_matrix: blocks of [", block_rows, ", ", block_cols,
                 "]");
    scales_.expect_grid("fp8_matrix", parts_of(rows, block_rows), parts_of(cols, block_cols));
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }
  [[nodiscard]] fp8_type type() const noexcept { return type_; }
  [[nodiscard]] index_t block_rows() const noexcept { return block_rows_; }
  [[nodiscard]] index_t block_cols() const noexcept { return block_cols_; }
  [[nodiscard]] const std::byte* codes() const noexcept { return codes_; }
  [[nodiscard]] const packed::scales& scales() const noexcept { return scales_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    switch (type_) {
      case fp8_type::e4m3: return load(f, out, [](std::uint8_t code) { return e4m3fn(code); });
      case fp8_type::e5m2: return load(f, out, [](std::uint8_t code) { return e5m2(code); });
      case fp8_type::e4m3fnuz: return load(f, out, [](std::uint8_t code) { return e4m3fnuz(code); });
      case fp8_type::e5m2fnuz: return load(f, out, [](std::uint8_t code) { return e5m2fnuz(code); });
    }
  }

 private:
  template <Accumulator S, class Decode>
  void load(index_t f, S* out, Decode decode) const noexcept {
    const std::byte* const codes = codes_ + f * cols_;
    const index_t r = f / block_rows_;
    for (index_t first = 0, c = 0; first < cols_; first += block_cols_, ++c) {
      const S scale = scales_.at(r, c);
      decode_each(codes + first, std::min(block_cols_, cols_ - first), out + first,
                  [&](std::uint8_t code) { return decode(code) * scale; });
    }
  }

  const std::byte* codes_;
  index_t rows_;
  index_t cols_;
  packed::scales scales_;
  index_t block_rows_;
  index_t block_cols_;
  fp8_type type_;
};

}  // namespace packed
MPIROUTER_END
