// What a packed format is, whatever the instruction set: where its bytes may be, and what they mean one by
// one.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/packed_views.hpp>
#include <mpi_router/core/small_numbers.hpp>

#include <limits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Of the view of a format:
///
///   block_cols         columns that share a scale, where the format fixes them
///   row, row_of(a, f)  one row
///   check(a, what)     throws usage_error where the view cannot be; `what`: the call
///   at(a, f, d)        one element, exact
template <class View>
struct packed_format;

[[nodiscard]] MPIROUTER_ALWAYS_INLINE const std::byte* bytes_at(const void* base, index_t offset) noexcept {
  return static_cast<const std::byte*>(base) + offset;
}

/// Throws usage_error where there cannot be `rows` × `row_bytes` bytes at `data`, `stride` bytes from row to
/// row.
inline void expect_rows(const char* what, const char* part, const void* data, index_t rows, index_t row_bytes,
                        index_t stride) {
  core::expect(data != nullptr || rows == 0 || row_bytes == 0, what, part, ": null data for ", rows,
               " rows of ", row_bytes, " bytes");
  core::expect(rows <= 1 || stride >= row_bytes, what, part, ": rows of ", row_bytes, " bytes, ", stride,
               " bytes apart");
  core::expect(rows == 0 || stride == 0 || stride <= std::numeric_limits<index_t>::max() / rows, what, part,
               ": ", rows, " rows, ", stride, " bytes apart, cannot be");
}

/// Throws usage_error where [rows, cols] are not whole blocks, or their bytes cannot be at `data`.
inline void expect_blocks(const char* what, const char* part, const void* data, index_t rows, index_t cols,
                          index_t stride, index_t block_cols, index_t block_bytes) {
  core::expect(rows >= 0 && cols >= 0 && cols % block_cols == 0, what, part, ": [F = ", rows, ", D = ", cols,
               "] in blocks of ", block_cols, " columns");
  expect_rows(what, part, data, rows, cols / block_cols * block_bytes, stride);
}

[[nodiscard]] inline index_t size_of(fp8_scale type) {
  switch (type) {
    case fp8_scale::f32: return 4;
    case fp8_scale::bf16:
    case fp8_scale::f16: return 2;
    case fp8_scale::e8m0: return 1;
  }
  core::unknown_value("fp8_scale", type);
}
/// Scale c of those at `row`.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float scale_at(const std::byte* row, fp8_scale type,
                                                     index_t c) noexcept {
  switch (type) {
    case fp8_scale::f32: return packed::read<float>(row, c);
    case fp8_scale::bf16: return packed::read_bf16(row, c);
    case fp8_scale::f16: return packed::read_f16(row, c);
    case fp8_scale::e8m0: break;
  }
  return packed::e8m0(packed::read<std::uint8_t>(row, c));
}

template <>
struct packed_format<fp8_view> {
  struct row {
    const std::byte* codes;
    const std::byte* scales;
    fp8_scale type;
  };

  static void check(const fp8_view& a, const char* what = "gram(fp8_view)") {
    core::expect(a.rows >= 0 && a.cols >= 0 && a.block_rows > 0 && a.block_cols > 0, what, ": [F = ", a.rows,
                 ", D = ", a.cols, "] in blocks of [", a.block_rows, ", ", a.block_cols, "]");
    expect_rows(what, ", codes", a.codes, a.rows, a.cols, a.row_bytes);
    expect_rows(what, ", scales", a.scales, a.cols == 0 ? 0 : packed::parts_of(a.rows, a.block_rows),
                packed::parts_of(a.cols, a.block_cols) * size_of(a.scale_type), a.scale_row_bytes);
  }
  [[nodiscard]] static double at(const fp8_view& a, index_t f, index_t d) noexcept {
    const row r = row_of(a, f);
    return double{packed::e4m3fn(static_cast<std::uint8_t>(r.codes[d]))} *
           double{scale_at(r.scales, r.type, d / a.block_cols)};
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static row row_of(const fp8_view& a, index_t f) noexcept {
    return {bytes_at(a.codes, f * a.row_bytes), bytes_at(a.scales, f / a.block_rows * a.scale_row_bytes),
            a.scale_type};
  }
};

template <>
struct packed_format<mxfp4_view> {
  static constexpr index_t block_cols = 32;
  struct row {
    const std::byte* codes;
    const std::byte* scales;
  };

  static void check(const mxfp4_view& a, const char* what = "gram(mxfp4_view)") {
    expect_blocks(what, ", codes", a.codes, a.rows, a.cols, a.row_bytes, block_cols, 16);
    expect_blocks(what, ", scales", a.scales, a.rows, a.cols, a.scale_row_bytes, block_cols, 1);
  }
  [[nodiscard]] static double at(const mxfp4_view& a, index_t f, index_t d) noexcept {
    const row r = row_of(a, f);
    const auto pair = static_cast<unsigned>(r.codes[d / 2]);
    return double{packed::e2m1(static_cast<std::uint8_t>(d % 2 == 0 ? pair : pair >> 4))} *
           double{packed::e8m0(packed::read<std::uint8_t>(r.scales, d / block_cols))};
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static row row_of(const mxfp4_view& a, index_t f) noexcept {
    return {bytes_at(a.codes, f * a.row_bytes), bytes_at(a.scales, f * a.scale_row_bytes)};
  }
};

template <>
struct packed_format<mxfp4_blocks_view> {
  static constexpr index_t block_cols = 32;
  static constexpr index_t block_bytes = 17;
  using row = const std::byte*;

  static void check(const mxfp4_blocks_view& a, const char* what = "gram(mxfp4_blocks_view)") {
    expect_blocks(what, "", a.blocks, a.rows, a.cols, a.row_bytes, block_cols, block_bytes);
  }
  [[nodiscard]] static double at(const mxfp4_blocks_view& a, index_t f, index_t d) noexcept {
    const std::byte* const in = row_of(a, f) + d / block_cols * block_bytes;
    const index_t column = d % block_cols;
    const auto pair = static_cast<unsigned>(in[1 + column % 16]);
    return double{packed::e2m1(static_cast<std::uint8_t>(column < 16 ? pair : pair >> 4))} *
           double{packed::e8m0(packed::read<std::uint8_t>(in))};
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static row row_of(const mxfp4_blocks_view& a, index_t f) noexcept {
    return bytes_at(a.blocks, f * a.row_bytes);
  }
};

template <>
struct packed_format<q8_0_view> {
  static constexpr index_t block_cols = 32;
  static constexpr index_t block_bytes = 34;
  using row = const std::byte*;

  static void check(const q8_0_view& a, const char* what = "gram(q8_0_view)") {
    expect_blocks(what, "", a.blocks, a.rows, a.cols, a.row_bytes, block_cols, block_bytes);
  }
  [[nodiscard]] static double at(const q8_0_view& a, index_t f, index_t d) noexcept {
    const std::byte* const in = row_of(a, f) + d / block_cols * block_bytes;
    return double{packed::read_f16(in)} * static_cast<std::int8_t>(in[2 + d % block_cols]);
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static row row_of(const q8_0_view& a, index_t f) noexcept {
    return bytes_at(a.blocks, f * a.row_bytes);
  }
};

template <>
struct packed_format<q4_k_view> {
  static constexpr index_t block_cols = 256;
  static constexpr index_t block_bytes = 144;
  using row = const std::byte*;

  static void check(const q4_k_view& a, const char* what = "gram(q4_k_view)") {
    expect_blocks(what, "", a.blocks, a.rows, a.cols, a.row_bytes, block_cols, block_bytes);
  }
  [[nodiscard]] static double at(const q4_k_view& a, index_t f, index_t d) noexcept {
    const std::byte* const in = row_of(a, f) + d / block_cols * block_bytes;
    const index_t part = d % block_cols / 32;
    const packed::k_scales parts(in + 4);
    const auto pair = static_cast<unsigned>(in[16 + part / 2 * 32 + d % 32]);
    const double q{static_cast<float>(part % 2 == 0 ? pair & 15U : pair >> 4)};
    return double{packed::read_f16(in)} * parts.scale(part) * q -
           double{packed::read_f16(in + 2)} * parts.minimum(part);
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static row row_of(const q4_k_view& a, index_t f) noexcept {
    return bytes_at(a.blocks, f * a.row_bytes);
  }
};

}  // namespace detail::kernels

MPIROUTER_END
