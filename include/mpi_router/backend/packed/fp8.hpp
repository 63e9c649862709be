// FP8 E4M3 in registers: the scale of a block is multiplied with what its columns sum up to.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

template <class Arch>
struct packed_codes<fp8_view, Arch> : packed_format<fp8_view> {
  using batch = xsimd::batch<float, Arch>;
  using bytes = xsimd::batch<std::uint8_t, Arch>;
  using words = words_of<batch>;
  using order = std::conditional_t<is_avx512<batch>, paired_order<batch, 4>, natural_order<batch, 4>>;
  static constexpr auto chunk = static_cast<index_t>(bytes::size);
  static constexpr bool scales_sums = true;
  static constexpr float divisor = e4m3_divisor;
  static constexpr bool is_kept = is_avx2<batch> || is_avx512<batch>;
  static constexpr index_t kept_bytes = is_kept ? 2 : 4;
  struct block {
    const std::byte* codes;
    batch scale;
  };

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(const row& r, index_t b, index_t d) noexcept {
    return {r.codes + d, batch(scale_at(r.scales, r.type, b))};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open_beside(const block& of, const row& r,
                                                                 index_t d) noexcept {
    return {r.codes + d, of.scale};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of,
                                                                         index_t k) noexcept {
    return of.codes + k * chunk;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load(const block& of, index_t k) noexcept {
    const std::byte* const codes = codes_of(of, k);
    if constexpr (is_avx512<batch>) {
      return of_words(e4m3_words<batch>(codes), e4m3_words<batch>(codes + 2 * batch::size));
    } else {
      return decode(codes);
    }
  }
  /// Of the first `size` columns, the others zero, in the order of memory.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load_part(const block& of, index_t k,
                                                                       index_t size) noexcept {
    std::byte padded[bytes::size] = {};
    std::memcpy(padded, codes_of(of, k), static_cast<std::size_t>(size));
    return decode(padded);
  }
  /// load, and leaves what it took in 16 bits. With AVX2 f16, by way of memory, which converts faster than
  /// registers, whose halves have to be parted; with AVX-512 bf16, which is shifted to float in less.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> keep(const block& of, index_t k,
                                                                  std::byte* to) noexcept
    requires is_kept
  {
    const std::byte* const codes = codes_of(of, k);
    constexpr std::size_t half = 2 * batch::size;
    if constexpr (is_avx512<batch>) {
      const auto a = e4m3_words<batch>(codes);
      const auto b = e4m3_words<batch>(codes + half);
      store_unaligned(to, a);
      store_unaligned(to + 2 * half, b);
      return of_words(a, b);
    } else {
      store_e4m3_halves<batch>(codes, to);
      store_e4m3_halves<batch>(codes + half, to + 2 * half);
      return load_kept(to);
    }
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> load_kept(const std::byte* from) noexcept
    requires is_kept
  {
    if constexpr (is_avx512<batch>) {
      return of_words(load_unaligned<words>(from), load_unaligned<words>(from + 4 * batch::size));
    } else {
      few<batch, 4> out;
      unroll<4>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
        out[i] = load_halves<batch>(from + 2 * i * batch::size);
      });
      return out;
    }
  }

#if defined(__AVX2__) && defined(__F16C__)
  using wide = xsimd::batch<double, Arch>;
  static constexpr std::size_t doubles_at_once = 4;
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<wide, 4> load_doubles(const std::byte* codes) noexcept
    requires is_kept
  {
    const auto floats = e4m3_shrunk<batch>(codes);
    const auto a = to_doubles(floats[0]);
    const auto b = to_doubles(floats[1]);
    return {{a[0], a[1], b[0], b[1]}};
  }
#endif

  /// Looks for NaN, of which `load` does not tell.
  class watch {
   public:
    template <class Size>
    MPIROUTER_ALWAYS_INLINE void see(const block& of, index_t k, Size size) noexcept {
      std::byte padded[bytes::size] = {};
      const std::byte* codes = codes_of(of, k);
      if constexpr (std::is_same_v<Size, index_t>) {
        std::memcpy(padded, codes, static_cast<std::size_t>(size));
        codes = padded;
      }
      largest_ = xsimd::max(largest_, load_unaligned<bytes>(codes) | bytes(std::uint8_t{0x80}));
    }
    [[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_found() const noexcept {
      return xsimd::any(largest_ == bytes(std::uint8_t{0xff}));
    }

   private:
    bytes largest_ = bytes(std::uint8_t{0});
  };
  /// Whether row f has a NaN.
  [[nodiscard]] static bool has_nan(const fp8_view& a, index_t f) noexcept {
    const block whole_row{row_of(a, f).codes, batch(0.0F)};
    const index_t chunks = a.cols / chunk;
    watch nan;
    for (index_t k = 0; k < chunks; ++k) {
      nan.see(whole_row, k, std::integral_constant<index_t, chunk>{});
    }
    nan.see(whole_row, chunks, a.cols - chunks * chunk);
    return nan.is_found();
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
  /// Each half two registers of words that hold two bf16.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, 4> of_words(const words& a,
                                                                      const words& b) noexcept {
    using bf16_codec = codec<storage_format::bf16>;
    return {{bf16_codec::even<batch>(a), bf16_codec::odd<batch>(a), bf16_codec::even<batch>(b),
             bf16_codec::odd<batch>(b)}};
  }
};

}  // namespace detail::kernels

MPIROUTER_END
