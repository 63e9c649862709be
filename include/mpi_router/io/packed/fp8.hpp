// FP8 weights, one byte each, with a scale for each block: DeepSeek-V3, Qwen3, GLM and Llama-4 in FP8.
#pragma once

#include <mpi_router/io/packed/numbers.hpp>

#include <algorithm>

MPIROUTER_BEGIN
namespace packed {

/// W[f, d] = code[f, d] · scale[f / block_rows, d / block_cols] of codes [rows, cols], E4M3 (fn) or E5M2;
/// blocks at the end may be partial. One scale for each row is a block of [1, cols], one for each column
/// [rows, 1], one for all [rows, cols]. The product is rounded to S once. A model of MatrixRows.
class fp8_matrix {
 public:
  /// Throws usage_error where codes or scales are not as many as the shape and the blocks ask for.
  fp8_matrix(std::span<const std::byte> codes, index_t rows, index_t cols, const packed::scales& scales,
             index_t block_rows, index_t block_cols, bool e5m2 = false)
      : codes_(codes.data()),
        rows_(rows),
        cols_(cols),
        scales_(scales),
        block_rows_(block_rows),
        block_cols_(block_cols),
        e5m2_(e5m2) {
    expect_bytes("fp8_matrix", codes, rows, cols, cols);
    core::expect(block_rows > 0 && block_cols > 0, "fp8_matrix: blocks of [", block_rows, ", ", block_cols,
                 "]");
    scales_.expect_grid("fp8_matrix", parts_of(rows, block_rows), parts_of(cols, block_cols));
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }
  [[nodiscard]] bool is_e5m2() const noexcept { return e5m2_; }
  [[nodiscard]] index_t block_rows() const noexcept { return block_rows_; }
  [[nodiscard]] index_t block_cols() const noexcept { return block_cols_; }
  [[nodiscard]] const std::byte* codes() const noexcept { return codes_; }
  [[nodiscard]] const packed::scales& scales() const noexcept { return scales_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    if (e5m2_) {
      load(f, out, [](std::uint8_t code) { return e5m2(code); });
    } else {
      load(f, out, [](std::uint8_t code) { return e4m3fn(code); });
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
  bool e5m2_;
};

}  // namespace packed
MPIROUTER_END
