// bitsandbytes' four-bit weights: NF4 and FP4 by the table in the file, scaled in blocks.
#pragma once

#include <mpi_router/io/packed/numbers.hpp>

#include <algorithm>
#include <array>

MPIROUTER_BEGIN
namespace packed {

/// The largest magnitude ("absmax") of each block: floats, or, where they are quantised themselves,
/// nested_quant_map[code] · nested_absmax[block / nested_blocksize] + nested_offset.
class block_maxima {
 public:
  /// From floats. Throws usage_error unless the bytes are a multiple of 4.
  explicit block_maxima(std::span<const std::byte> absmax)
      : values_(absmax.data()), size_(static_cast<index_t>(absmax.size() / 4)) {
    core::expect(absmax.size() % 4 == 0, "block_maxima: ", absmax.size(), " bytes of floats");
  }
  /// From codes. Throws usage_error where nested_absmax or the map of 256 floats is not as large as it must
  /// be.
  block_maxima(std::span<const std::byte> codes, std::span<const std::byte> nested_absmax,
               std::span<const std::byte> nested_quant_map, index_t nested_blocksize, float nested_offset)
      : values_(nested_absmax.data()),
        codes_(codes.data()),
        quant_map_(nested_quant_map.data()),
        size_(static_cast<index_t>(codes.size())),
        blocksize_(nested_blocksize),
        offset_(nested_offset),
        nested_(true) {
    core::expect(nested_blocksize > 0, "block_maxima: nested blocks of ", nested_blocksize);
    core::expect(nested_quant_map.size() == std::size_t{4} * 256,
                 "block_maxima: the nested map takes 1024 bytes, but there are ", nested_quant_map.size());
    expect_bytes("block_maxima: nested_absmax", nested_absmax, parts_of(size_, nested_blocksize), 1, 4);
  }

  [[nodiscard]] index_t size() const noexcept { return size_; }
  template <Accumulator S>
  [[nodiscard]] S at(index_t block) const noexcept {
    if (!nested_) {
      return read<float>(values_, block);
    }
    const S code = read<float>(quant_map_, read<std::uint8_t>(codes_, block));
    return code * read<float>(values_, block / blocksize_) + offset_;
  }

 private:
  const std::byte* values_ = nullptr;
  const std::byte* codes_ = nullptr;
  const std::byte* quant_map_ = nullptr;
  index_t size_ = 0;
  index_t blocksize_ = 1;
  float offset_ = 0;
  bool nested_ = false;
};

/// W = quant_map[code] · absmax[block] of bitsandbytes: the elements of [rows, cols], one after the other,
/// are packed two in a byte, the first in the high half, and cut into blocks, without regard to rows. A model
/// of MatrixRows.
class nf4_matrix {
 public:
  /// Throws usage_error where codes, the table of 16 floats or the blocks are not as many as they must be.
  nf4_matrix(std::span<const std::byte> codes, index_t rows, index_t cols,
             std::span<const std::byte> quant_map, const block_maxima& absmax, index_t blocksize)
      : codes_(codes.data()), rows_(rows), cols_(cols), absmax_(absmax), blocksize_(blocksize) {
    core::expect(rows >= 0 && cols >= 0 && (cols == 0 || rows <= std::numeric_limits<index_t>::max() / cols),
                 "nf4_matrix: the shape [", rows, ", ", cols, "]");
    core::expect(blocksize > 0, "nf4_matrix: blocks of ", blocksize);
    core::expect(quant_map.size() == std::size_t{4} * table_.size(),
                 "nf4_matrix: the table takes 64 bytes, but there are ", quant_map.size());
    expect_bytes("nf4_matrix", codes, parts_of(rows * cols, 2), 1, 1);
    core::expect(absmax.size() == parts_of(rows * cols, blocksize), "nf4_matrix: [", rows, ", ", cols,
                 "] has ", parts_of(rows * cols, blocksize), " blocks, but there are ", absmax.size(),
                 " maxima");
    std::memcpy(table_.data(), quant_map.data(), quant_map.size());
  }

  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }
  [[nodiscard]] index_t blocksize() const noexcept { return blocksize_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    const index_t begin = f * cols_;
    const index_t end = begin + cols_;
    for (index_t i = begin; i < end;) {
      const index_t block = i / blocksize_;
      const auto scale = absmax_.at<S>(block);
      const index_t last = std::min(end - block * blocksize_, blocksize_) + block * blocksize_;
      for (; i < last; ++i) {
        const auto byte = static_cast<std::uint8_t>(codes_[i / 2]);
        out[i - begin] = table_[i % 2 == 0 ? byte >> 4 : byte & 15U] * scale;
      }
    }
  }

 private:
  const std::byte* codes_;
  index_t rows_;
  index_t cols_;
  block_maxima absmax_;
  index_t blocksize_;
  std::array<float, 16> table_{};
};

}  // namespace packed
MPIROUTER_END
