// FP8 E4M3 in registers: the scale of a block is multiplied with what its columns sum up to.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

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

template <class Arch>
struct packed_codes<fp8_view, Arch> {
  using batch = xsimd::batch<float, Arch>;
  using bytes = xsimd::batch<std::uint8_t, Arch>;
  using order = natural_order<batch, 4>;
  static constexpr auto chunk = static_cast<index_t>(bytes::size);
  static constexpr bool scales_sums = true;
  static constexpr float divisor = e4m3_divisor;
  static constexpr bool is_kept = is_avx2<batch>;
  struct row {
    const std::byte* codes;
    const std::byte* scales;
    fp8_scale type;
  };
  struct block {
    const std::byte* codes;
    batch scale;
  };

  static void check(const fp8_view& a) {
    const char* const what = "gram(fp8_view)";
    core::expect(a.rows >= 0 && a.cols >= 0 && a.block_rows > 0 && a.block_cols > 0, what, ": [F = ", a.rows,
                 ", D = ", a.cols, "] in blocks of [", a.block_rows, ", ", a.block_cols, "]");
    expect_rows("gram(fp8_view), codes", a.codes, a.rows, a.cols, a.row_bytes);
    expect_rows("gram(fp8_view), scales", a.scales, a.cols == 0 ? 0 : packed::parts_of(a.rows, a.block_rows),
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
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(const row& r, index_t b, index_t d) noexcept {
    return {r.codes + d, batch(scale_at(r.scales, r.type, b))};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of,
                                                                         index_t k) noexcept {
    return of.codes + k * chunk;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load(const block& of, index_t k) noexcept {
    return decode(codes_of(of, k));
  }
  /// Of the first `size` columns, the others zero.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load_part(const block& of, index_t k,
                                                                       index_t size) noexcept {
    std::byte padded[bytes::size] = {};
    std::memcpy(padded, codes_of(of, k), static_cast<std::size_t>(size));
    return decode(padded);
  }
  /// load, or load_part, by way of f16 in memory: that converts faster than registers, whose halves have to
  /// be parted.
  template <class Size>
    requires is_avx2<batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> keep(const block& of, index_t k, Size size,
                                                                  std::byte* to) noexcept {
    std::byte padded[bytes::size] = {};
    const std::byte* codes = codes_of(of, k);
    if constexpr (std::is_same_v<Size, index_t>) {
      std::memcpy(padded, codes, static_cast<std::size_t>(size));
      codes = padded;
    }
    store_e4m3_halves<batch>(codes, to);
    store_e4m3_halves<batch>(codes + 2 * batch::size, to + 4 * batch::size);
    return load_kept(to);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load_kept(const std::byte* from) noexcept
    requires is_avx2<batch>
  {
    few<batch, 4> out;
    unroll<4>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      out[i] = load_halves<batch>(from + 2 * i * batch::size);
    });
    return out;
  }

  /// Whether a code of row f is NaN, which `load` does not tell.
  [[nodiscard]] static bool has_nan(const fp8_view& a, index_t f) noexcept {
    const std::byte* const codes = row_of(a, f).codes;
    bytes largest(std::uint8_t{0});
    index_t d = 0;
    for (; d + chunk <= a.cols; d += chunk) {
      largest = xsimd::max(largest, load_unaligned<bytes>(codes + d) | bytes(std::uint8_t{0x80}));
    }
    bool found = xsimd::any(largest == bytes(std::uint8_t{0xff}));
    for (; d < a.cols; ++d) {
      found = found || is_nan(codes[d]);
    }
    return found;
  }
  /// Writes NaN to u where row f has it.
  static void spread_nan(const fp8_view& a, index_t f, float* u) noexcept {
    for (index_t d = 0; d < a.cols; ++d) {
      if (is_nan(row_of(a, f).codes[d])) u[d] = std::numeric_limits<float>::quiet_NaN();
    }
  }

 private:
  [[nodiscard]] static bool is_nan(std::byte code) noexcept {
    return (code & std::byte{0x7f}) == std::byte{0x7f};
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> decode(const std::byte* codes) noexcept {
    const auto a = e4m3_shrunk<batch>(codes);
    const auto b = e4m3_shrunk<batch>(codes + 2 * batch::size);
    return {{a[0], a[1], b[0], b[1]}};
  }
};

}  // namespace detail::kernels

MPIROUTER_END
