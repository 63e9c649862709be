// MLX's affine quantisation: a scale and a bias for each group of columns.
#pragma once

#include <mpi_router/io/packed/bits.hpp>

MPIROUTER_BEGIN
namespace packed {

/// W[f, d] = scale[f, g] · code[f, d] + bias[f, g], g = d / group: a row is a dense stream of codes of 2, 3,
/// 4, 5, 6 or 8 bits in U32 words. Scales may be negative. A model of MatrixRows.
class mlx_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where words, scales or biases are not as many as they must be, or for other widths.
  mlx_matrix(std::span<const std::byte> words, index_t rows, index_t cols, index_t bits,
             const packed::scales& scales, const packed::scales& biases, index_t group)
      : detail::grouped_matrix(rows, cols, bits, group, scales), words_(words.data()), biases_(biases) {
    core::expect((bits >= 2 && bits <= 6) || bits == 8, "mlx_matrix: codes of ", bits,
                 " bits, not 2, 3, 4, 5, 6 or 8");
    core::expect(group > 0, "mlx_matrix: groups of ", group, " columns");
    row_bytes_ = bytes_of_row("mlx_matrix", cols, bits, 32);
    expect_bytes("mlx_matrix", words, rows, cols, row_bytes_);
    scales_.expect_grid("mlx_matrix", rows, parts_of(cols, group));
    biases_.expect_grid("mlx_matrix: biases", rows, parts_of(cols, group));
  }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    load_codes(words_ + f * row_bytes_, row_bytes_, cols_, bits_, out,
               [](std::uint8_t code) { return static_cast<S>(code); });
    for_each_group(cols_, group_, [&](index_t first, index_t count, index_t g) {
      const S scale = scales_.at(f, g);
      const S bias = biases_.at(f, g);
      change_each(out + first, count, [scale, bias](S code) { return scale * code + bias; });
    });
  }

 private:
  const std::byte* words_;
  packed::scales biases_;
  index_t row_bytes_ = 0;
};

}  // namespace packed
MPIROUTER_END
