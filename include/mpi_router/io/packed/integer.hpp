// Integer weights of compressed-tensors: int8 (W8A8) and two to eight bits packed in words (int4 of Kimi-K2).
#pragma once

#include <mpi_router/io/packed/bits.hpp>

MPIROUTER_BEGIN
namespace packed {

/// W[f, d] = (code[f, d] − zero) · (scale / of) of signed bytes [rows, cols]. Scales are [rows / block_rows,
/// cols / group], or [1, …] for all rows alike; without a group, one serves the row; blocks and groups at the
/// end may be partial. Zero points are signed bytes, one for each scale, and 0 where there are none. `of` is
/// 127 where the scale is that of the largest code (bitsandbytes). A model of MatrixRows.
class int8_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where codes, scales or zero points are not as many as they must be. `group` 0 is the
  /// whole row.
  int8_matrix(std::span<const std::byte> codes, index_t rows, index_t cols, const packed::scales& scales,
              index_t group = 0, int of = 1, std::span<const std::byte> zero_points = {},
              index_t block_rows = 1)
      : detail::grouped_matrix(rows, cols, 8, group == 0 ? std::max<index_t>(cols, 1) : group, scales),
        codes_(codes.data()),
        zero_points_(zero_points.empty() ? nullptr : zero_points.data()),
        of_(of),
        given_block_rows_(block_rows),
        block_rows_(scales.rows() == 1 ? std::max<index_t>(rows, 1) : block_rows) {
    expect_bytes("int8_matrix", codes, rows, cols, cols);
    core::expect(group >= 0 && block_rows > 0, "int8_matrix: groups of ", group, " columns, of ", block_rows,
                 " rows");
    core::expect(of > 0, "int8_matrix: scales of ", of, " codes");
    scales_.expect_grid("int8_matrix", scales.rows() == 1 ? 1 : parts_of(rows, block_rows_),
                        parts_of(cols, group_));
    if (zero_points_ != nullptr) {
      expect_bytes("int8_matrix: zero points", zero_points, scales.rows(), scales.cols(), scales.cols());
    }
  }

  /// Of a block as the constructor was told; with scales [1, …] all rows share them.
  [[nodiscard]] index_t block_rows() const noexcept { return given_block_rows_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    const std::byte* const codes = codes_ + f * cols_;
    const index_t r = f / block_rows_;
    for_each_group(cols_, group_, [&](index_t first, index_t count, index_t g) {
      const S scale = scales_.at(r, g) / static_cast<S>(of_);
      const int zero = zero_points_ == nullptr ? 0 : read<std::int8_t>(zero_points_, r * scales_.cols() + g);
      decode_each(codes + first, count, out + first, [scale, zero](std::uint8_t code) {
        return static_cast<S>(static_cast<std::int8_t>(code) - zero) * scale;
      });
    });
  }

 private:
  const std::byte* codes_;
  const std::byte* zero_points_;
  int of_;
  index_t given_block_rows_;
  index_t block_rows_;  ///< that share a scale
};

/// The group of each input column, I32 [count], as activation order ("g_idx") stores it.
class group_index {
 public:
  group_index() = default;
  /// Throws usage_error unless there are `count` of them, each in [0, groups). No bytes: no such index.
  group_index(std::string_view what, std::span<const std::byte> bytes, index_t count, index_t groups)
      : bytes_(bytes.empty() ? nullptr : bytes.data()) {
    core::expect(bytes.empty() || static_cast<index_t>(bytes.size()) == 4 * count, what, ": g_idx of ", count,
                 " columns takes ", 4 * count, " bytes, but there are ", bytes.size());
    for (index_t d = 0; bytes_ != nullptr && d < count; ++d) {
      const index_t g = (*this)[d];
      core::expect(g >= 0 && g < groups, what, ": g_idx[", d, "] is ", g, ", of ", groups, " groups");
    }
  }
  [[nodiscard]] explicit operator bool() const noexcept { return bytes_ != nullptr; }
  [[nodiscard]] index_t operator[](index_t d) const noexcept { return read<std::int32_t>(bytes_, d); }

 private:
  const std::byte* bytes_ = nullptr;
};

/// W[f, d] = (code − zero) · scale[f, g] of compressed-tensors' "pack-quantized": a row is a dense stream of
/// codes of 2 to 8 bits in I32 words, zero is 2^(bits − 1) or, where there are zero points, that of [f, g]; g
/// is d / group or g_idx[d]. Scales are [rows, groups], or [1, groups] for all rows alike. Zero points are
/// packed likewise, but down the rows: words [⌈rows · bits / 32⌉, groups]. A model of MatrixRows.
class pack_quantized_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where words, scales, zero points or g_idx are not as many as they must be, for other
  /// widths, and where an entry of g_idx is no group. An index with −1 in it is not in use, and none.
  pack_quantized_matrix(std::span<const std::byte> words, index_t rows, index_t cols, index_t bits,
                        const packed::scales& scales, index_t group,
                        std::span<const std::byte> zero_points = {}, std::span<const std::byte> g_idx = {})
      : detail::grouped_matrix(rows, cols, bits, group, scales),
        words_(words.data()),
        zero_points_(zero_points.empty() ? nullptr : zero_points.data()) {
    core::expect(bits >= 2 && bits <= 8, "pack_quantized_matrix: codes of ", bits, " bits, not 2 to 8");
    core::expect(group > 0, "pack_quantized_matrix: groups of ", group, " columns");
    row_bytes_ = bytes_of_row("pack_quantized_matrix", cols, bits, 32);
    expect_bytes("pack_quantized_matrix", words, rows, cols, row_bytes_);
    const index_t groups = parts_of(cols, group);
    scales_.expect_grid("pack_quantized_matrix", scales.rows() == 1 ? 1 : rows, groups);
    if (zero_points_ != nullptr) {
      expect_bytes("pack_quantized_matrix: zero points", zero_points,
                   bytes_of_row("pack_quantized_matrix", rows, bits, 32) / 4, groups, 4 * groups);
    }
    if (!is_unused(g_idx)) {
      g_idx_ = group_index("pack_quantized_matrix", g_idx, cols, groups);
    }
  }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    load_codes(words_ + f * row_bytes_, row_bytes_, cols_, bits_, out,
               [](std::uint8_t code) { return static_cast<S>(code); });
    if (g_idx_) {
      for (index_t d = 0; d < cols_; ++d) {
        scale_group(f, g_idx_[d], out + d, 1);
      }
    } else {
      for_each_group(cols_, group_,
                     [&](index_t first, index_t count, index_t g) { scale_group(f, g, out + first, count); });
    }
  }

 private:
  template <Accumulator S>
  void scale_group(index_t f, index_t g, S* out, index_t count) const noexcept {
    const auto zero = static_cast<S>(zero_point(f, g));
    const S scale = scales_.at(scales_.rows() == 1 ? 0 : f, g);
    change_each(out, count, [zero, scale](S code) { return (code - zero) * scale; });
  }
  [[nodiscard]] int zero_point(index_t f, index_t g) const noexcept {
    if (zero_points_ == nullptr) {
      return 1 << (bits_ - 1);
    }
    const index_t word = f * bits_ / 32;
    const index_t shift = f * bits_ % 32;
    std::uint64_t pair = read<std::uint32_t>(zero_points_, word * scales_.cols() + g);
    if (shift + bits_ > 32) {  // the code goes on in the next word
      pair |= std::uint64_t{read<std::uint32_t>(zero_points_, (word + 1) * scales_.cols() + g)} << 32;
    }
    return static_cast<int>(pair >> shift & ((1U << bits_) - 1U));
  }
  /// Whether it holds a −1, which compressed-tensors writes before activation order is known.
  [[nodiscard]] static bool is_unused(std::span<const std::byte> g_idx) noexcept {
    for (index_t d = 0; d < static_cast<index_t>(g_idx.size() / 4); ++d) {
      if (read<std::int32_t>(g_idx.data(), d) == -1) {
        return true;
      }
    }
    return g_idx.empty();
  }

  const std::byte* words_;
  const std::byte* zero_points_;
  group_index g_idx_;
  index_t row_bytes_ = 0;
};

}  // namespace packed
MPIROUTER_END
