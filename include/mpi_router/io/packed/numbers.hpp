// Codes in the bytes of a file, decoded many at a time, and the grids of scales beside them.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/small_numbers.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

MPIROUTER_BEGIN
namespace packed {

/// out[i] = value(codes[i]) for i < count, most of them in runs of a constant length, which compilers
/// vectorise without knowing count.
template <class Code, Accumulator S, class Value>
MPIROUTER_ALWAYS_INLINE void decode_each(const Code* __restrict codes, index_t count, S* __restrict out,
                                         const Value& value) noexcept {
  constexpr index_t run = 64;  // bytes: the widest register
  const index_t whole = count - count % run;
  for (index_t first = 0; first < whole; first += run) {
    for (index_t i = 0; i < run; ++i) {
      out[first + i] = value(static_cast<std::uint8_t>(codes[first + i]));
    }
  }
  for (index_t i = whole; i < count; ++i) {
    out[i] = value(static_cast<std::uint8_t>(codes[i]));
  }
}

/// value(x) in the place of each of count numbers, most of them in runs of a constant length, as above.
template <Accumulator S, class Value>
MPIROUTER_ALWAYS_INLINE void change_each(S* values, index_t count, const Value& value) noexcept {
  constexpr index_t run = 16;  // floats: the widest register
  const index_t whole = count - count % run;
  for (index_t first = 0; first < whole; first += run) {
    for (index_t i = 0; i < run; ++i) {
      values[first + i] = value(values[first + i]);
    }
  }
  for (index_t i = whole; i < count; ++i) {
    values[i] = value(values[i]);
  }
}

/// Throws usage_error unless `bytes` is rows × row_bytes; `what` is whose, [rows, cols] what they hold.
inline void expect_bytes(std::string_view what, std::span<const std::byte> bytes, index_t rows, index_t cols,
                         index_t row_bytes) {
  core::expect(rows >= 0 && cols >= 0, what, ": negative extent in [", rows, ", ", cols, "]");
  const bool fits = row_bytes == 0 || rows <= std::numeric_limits<index_t>::max() / row_bytes;
  core::expect(fits && static_cast<index_t>(bytes.size()) == rows * row_bytes, what, ": [", rows, ", ", cols,
               "] takes ", rows, " x ", row_bytes, " bytes, but there are ", bytes.size());
}

/// Bytes of a row of `cols` codes, each of `bits`, that fills whole units of `unit_bits`. Throws usage_error
/// where index_t cannot count its bits.
[[nodiscard]] inline index_t bytes_of_row(std::string_view what, index_t cols, index_t bits,
                                          index_t unit_bits = 8) {
  core::expect(cols >= 0 && cols <= std::numeric_limits<index_t>::max() / 64, what, ": ", cols,
               " columns cannot be");
  return parts_of(cols * bits, unit_bits) * (unit_bits / 8);
}

/// What scales are stored as; `one` is the scale of weights that have none.
enum class scale_type : unsigned char { f32, bf16, f16, e4m3, e8m0, one };

/// Bytes of one scale. Throws usage_error for what is none of the types.
[[nodiscard]] constexpr index_t size_of(scale_type type) {
  switch (type) {
    case scale_type::f32: return 4;
    case scale_type::bf16:
    case scale_type::f16: return 2;
    case scale_type::e4m3:
    case scale_type::e8m0: return 1;
    case scale_type::one: return 0;
  }
  core::unknown_value("scale_type", type);
}

/// A grid [rows, cols] of scales, row-major, in the bytes of a file.
class scales {
 public:
  scales() = default;
  /// Throws usage_error unless `bytes` is as long as the grid; there are none for `one`.
  scales(scale_type type, std::span<const std::byte> bytes, index_t rows, index_t cols)
      : bytes_(bytes.data()), rows_(rows), cols_(cols), type_(type) {
    expect_bytes("scales", bytes, rows, cols, bytes_of_row("scales", cols, 8 * size_of(type)));
  }

  [[nodiscard]] scale_type type() const noexcept { return type_; }
  [[nodiscard]] const std::byte* bytes() const noexcept { return bytes_; }
  [[nodiscard]] index_t rows() const noexcept { return rows_; }
  [[nodiscard]] index_t cols() const noexcept { return cols_; }

  /// The scale at 0 <= r < rows(), 0 <= c < cols(), exactly.
  [[nodiscard]] float at(index_t r, index_t c) const noexcept {
    const index_t i = r * cols_ + c;
    switch (type_) {
      case scale_type::f32: return read<float>(bytes_, i);
      case scale_type::bf16: return read_bf16(bytes_, i);
      case scale_type::f16: return read_f16(bytes_, i);
      case scale_type::e4m3: return e4m3fn(read<std::uint8_t>(bytes_, i));
      case scale_type::e8m0: return e8m0(read<std::uint8_t>(bytes_, i));
      case scale_type::one: break;
    }
    return 1.0F;
  }

  /// Throws usage_error unless the grid is [rows, cols].
  void expect_grid(std::string_view what, index_t rows, index_t cols) const {
    core::expect(rows_ == rows && cols_ == cols, what, ": needs scales [", rows, ", ", cols,
                 "], but they are [", rows_, ", ", cols_, "]");
  }

 private:
  const std::byte* bytes_ = nullptr;
  index_t rows_ = 0;
  index_t cols_ = 0;
  scale_type type_ = scale_type::one;
};

}  // namespace packed
MPIROUTER_END
