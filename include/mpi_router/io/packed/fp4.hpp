// Four-bit floats in groups: MXFP4 (DeepSeek-V4, gpt-oss, Kimi-K3) and NVFP4 (ModelOpt, compressed-tensors).
#pragma once

#include <mpi_router/io/packed/bits.hpp>

MPIROUTER_BEGIN
namespace packed {

/// W[f, d] = E2M1(code[f, d]) · (scale[f, d / group] · global), the two scales multiplied first, as ModelOpt
/// does. An even column is the low half of its byte. Groups have 16 or 32 columns, the last one perhaps
/// fewer. `global` is a double for the sake of compressed-tensors, which stores its reciprocal; rows of
/// floats take it rounded. A model of MatrixRows.
class fp4_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where codes [rows, cols / 2] or scales [rows, cols / group] are not as many as they
  /// must be, where cols is odd, or for another group.
  fp4_matrix(std::span<const std::byte> codes, index_t rows, index_t cols, const packed::scales& scales,
             index_t group, double global = 1)
      : detail::grouped_matrix(rows, cols, 4, group, scales), codes_(codes.data()), global_(global) {
    core::expect(cols % 2 == 0, "fp4_matrix: ", cols, " columns, two in each byte");
    expect_bytes("fp4_matrix", codes, rows, cols, cols / 2);
    core::expect(group == 16 || group == 32, "fp4_matrix: groups of ", group, " columns, not 16 or 32");
    scales_.expect_grid("fp4_matrix", rows, parts_of(cols, group));
  }

  [[nodiscard]] const std::byte* codes() const noexcept { return codes_; }
  [[nodiscard]] double global() const noexcept { return global_; }

  template <Accumulator S>
  void load_row(index_t f, S* out) const noexcept {
    load_codes(codes_ + f * (cols_ / 2), cols_ / 2, cols_, 4, out,
               [](std::uint8_t code) { return static_cast<S>(twice_e2m1(code)) * S{0.5}; });
    const auto global = static_cast<S>(global_);
    for_each_group(cols_, group_, [&](index_t first, index_t count, index_t g) {
      change_each(out + first, count, [scale = scales_.at(f, g) * global](S x) { return x * scale; });
    });
  }

 private:
  const std::byte* codes_;
  double global_;
};

/// The same, packed along the rows: W[d, f] = E2M1(code[d, f]) · (scale[d / group, f] · global), an even row
/// in the low halves of its bytes. So ModelOpt writes stacks [N, D, 2F] (Llama-4, gpt-oss), turned after they
/// were packed along D. A model of MatrixRows.
class turned_fp4_matrix : public detail::grouped_matrix {
 public:
  /// Throws usage_error where codes [rows / 2, cols] or scales [rows / group, cols] are not as many as they
  /// must be, where rows is odd, or for another group.
  turned_fp4_matrix(std::span<const std::byte> codes, index_t rows, index_t cols,
                    const packed::scales& scales, index_t group, double global = 1)
      : detail::grouped_matrix(rows, cols, 4, group, scales), codes_(codes.data()), global_(global) {
    core::expect(rows % 2 == 0, "turned_fp4_matrix: ", rows, " rows, two in each byte");
    expect_bytes("turned_fp4_matrix", codes, rows / 2, cols, cols);
    core::expect(group == 16 || group == 32, "turned_fp4_matrix: groups of ", group, " rows, not 16 or 32");
    scales_.expect_grid("turned_fp4_matrix", parts_of(rows, group), cols);
  }

  template <Accumulator S>
  void load_row(index_t d, S* out) const noexcept {
    const std::byte* pairs = codes_ + d / 2 * cols_;
    const auto global = static_cast<S>(global_);
    for (index_t f = 0; f < cols_; ++f) {
      const auto code = static_cast<std::uint8_t>(pairs[f] >> (d % 2 * 4) & std::byte{15});
      out[f] = static_cast<S>(twice_e2m1(code)) * S{0.5} * (scales_.at(d / group_, f) * global);
    }
  }

 private:
  const std::byte* codes_;
  double global_;
};

}  // namespace packed
MPIROUTER_END
