// Codes to floats in the lanes of a register, where xsimd cannot: by instructions of x86, elsewhere by loops.
#pragma once

#include <mpi_router/backend/simd/narrow_lanes.hpp>
#include <mpi_router/core/small_numbers.hpp>

#include <array>
#include <cstddef>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

template <class Batch>
using words_of = xsimd::batch<std::uint32_t, typename Batch::arch_type>;
template <class Batch>
using integers_of = xsimd::batch<std::int32_t, typename Batch::arch_type>;

// For which registers there are instructions.
#if defined(__AVX512F__) && defined(__AVX512BW__)
template <class Batch>
inline constexpr bool is_avx512 = sizeof(Batch) == 64;
#else
template <class Batch>
inline constexpr bool is_avx512 = false;
#endif
#if defined(__AVX2__) && defined(__F16C__)
template <class Batch>
inline constexpr bool is_avx2 = sizeof(Batch) == 32;
#else
template <class Batch>
inline constexpr bool is_avx2 = false;
#endif

/// E2M1 of all its codes.
inline constexpr auto e2m1_levels = [] {
  std::array<float, 16> levels{};
  for (std::size_t code = 0; code < levels.size(); ++code) {
    levels[code] = packed::e2m1(static_cast<std::uint8_t>(code));
  }
  return levels;
}();

#if defined(__AVX2__) && defined(__F16C__)
/// The floats of a register as doubles, in order.
template <class Batch>
using doubles_of = few<xsimd::batch<double, typename Batch::arch_type>, 2>;
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE doubles_of<Batch> to_doubles(const Batch& x) noexcept {
#if defined(__AVX512F__)
  if constexpr (is_avx512<Batch>) {
    const __m512d halves = _mm512_castps_pd(x);
    return {{_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
             _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(halves, 1)))}};
  } else
#endif
  {
    return {{_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))}};
  }
}
#endif

/// value(i) in lane i.
template <class Batch, class Value>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch each_lane(const Value& value) noexcept {
  typename Batch::value_type out[Batch::size];
  for (std::size_t i = 0; i < Batch::size; ++i) {
    out[i] = value(i);
  }
  return load_unaligned<Batch>(out);
}

// NOLINTBEGIN(bugprone-branch-clone): the branches of other instruction sets are empty

/// As many signed bytes as there are lanes.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch float_of_int8(const std::byte* at) noexcept {
  if constexpr (is_avx512<Batch>) {
#if defined(__AVX512F__)
    const auto* const bytes = reinterpret_cast<const __m128i_u*>(at);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
#endif
  } else if constexpr (is_avx2<Batch>) {
#if defined(__AVX2__)
    const auto* const bytes = reinterpret_cast<const __m128i_u*>(at);
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)));
#endif
  } else {
    return each_lane<Batch>(
        [at](std::size_t i) { return static_cast<float>(static_cast<std::int8_t>(at[i])); });
  }
}

/// As many bytes as there are lanes, each a word.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE words_of<Batch> words_of_bytes(const std::byte* at) noexcept {
  if constexpr (is_avx512<Batch>) {
#if defined(__AVX512F__)
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(at)));
#endif
  } else if constexpr (is_avx2<Batch>) {
#if defined(__AVX2__)
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(at)));
#endif
  } else {
    return each_lane<words_of<Batch>>([at](std::size_t i) { return static_cast<std::uint32_t>(at[i]); });
  }
}

/// An f16 number in every lane.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch broadcast_f16(const std::byte* at) noexcept {
  if constexpr (is_avx512<Batch>) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_set1_epi16(packed::read<std::int16_t>(at)));
#endif
  } else if constexpr (is_avx2<Batch>) {
#if defined(__AVX2__) && defined(__F16C__)
    return _mm256_cvtph_ps(_mm_set1_epi16(packed::read<std::int16_t>(at)));
#endif
  } else {
    return Batch(packed::read_f16(at));
  }
}

/// What e4m3_shrunk divides by.
inline constexpr float e4m3_divisor = 256;

#if defined(__AVX2__)
/// Sixteen E4M3 codes as f16, divided by 256.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE __m256i e4m3_halves(const std::byte* at) noexcept {
  const __m256i spread = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(at)));
  const __m256i sign_and_magnitude = _mm256_set1_epi16(static_cast<std::int16_t>(-0x4080));  // 0xbf80
  return _mm256_and_si256(_mm256_slli_epi16(spread, 7), sign_and_magnitude);
}
#endif
/// They are stored, of registers that hold half as many floats.
template <class Batch>
MPIROUTER_ALWAYS_INLINE void store_e4m3_halves([[maybe_unused]] const std::byte* at,
                                               [[maybe_unused]] std::byte* to) noexcept {
  static_assert(is_avx2<Batch>);
#if defined(__AVX2__)
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(to), e4m3_halves(at));
#endif
}
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch load_halves([[maybe_unused]] const std::byte* from) noexcept {
  static_assert(is_avx2<Batch>);
#if defined(__AVX2__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from)));
#endif
}

/// Twice as many E4M3 codes as there are lanes, divided by 256. NaN need not come out as such. By way of f16,
/// whose exponents are eight less than those of E4M3, so that no float on the way is subnormal.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE few<Batch, 2> e4m3_shrunk(const std::byte* at) noexcept {
  if constexpr (is_avx512<Batch>) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512i spread = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(at)));
    const __m512i sign_and_magnitude = _mm512_set1_epi16(static_cast<std::int16_t>(-0x4080));  // 0xbf80
    const __m512i halves = _mm512_and_si512(_mm512_slli_epi16(spread, 7), sign_and_magnitude);
    return {{_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
             _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))}};
#endif
  } else if constexpr (is_avx2<Batch>) {
#if defined(__AVX2__) && defined(__F16C__)
    const __m256i halves = e4m3_halves(at);
    return {{_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
             _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))}};
#endif
  } else {
    const auto part = [](const std::byte* from) {
      return each_lane<Batch>([from](std::size_t i) {
        return packed::e4m3fn(static_cast<std::uint8_t>(from[i])) / e4m3_divisor;
      });
    };
    return {{part(at), part(at + Batch::size)}};
  }
}

/// What is not in the bits of an E4M3 code, moved to where bf16 has them: of one that is subnormal, by its
/// last bits, and, of all others, the difference of the exponents. Divided by 256.
template <class Batch>
struct e4m3_words_parts {
  static constexpr std::uint16_t normal = 0x3800;
  static constexpr auto subnormal = [] {
    few<std::uint16_t, 32> bits{};
    for (unsigned code = 0; code < 8; ++code) {
      const float value = packed::e4m3fn(static_cast<std::uint8_t>(code)) / e4m3_divisor;
      bits.value[code] =
          static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) >> 16) ^ (code << 4));
    }
    return bits;
  }();
};
/// Four times as many E4M3 codes as there are bytes in a word, for each word: two bf16, in order.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE words_of<Batch> e4m3_words(
    [[maybe_unused]] const std::byte* at) noexcept {
  static_assert(is_avx512<Batch>);
#if defined(__AVX512F__) && defined(__AVX512BW__)
  using parts = e4m3_words_parts<Batch>;
  const __m512i spread = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(at)));
  const __mmask32 is_subnormal = _mm512_testn_epi16_mask(spread, _mm512_set1_epi16(0x78));
  const __m512i rest = _mm512_mask_permutexvar_epi16(_mm512_set1_epi16(parts::normal), is_subnormal, spread,
                                                     _mm512_loadu_si512(parts::subnormal.value));
  const __m512i sign_and_magnitude = _mm512_set1_epi16(static_cast<std::int16_t>(-0x7810));  // 0x87f0
  return words_of<Batch>(_mm512_ternarylogic_epi32(_mm512_slli_epi16(spread, 4), sign_and_magnitude, rest,
                                                   0x6a));  // (a & b) ^ c
#endif
}

/// table[lowest four bits of each word]: sixteen lanes hold a table of sixteen.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch look_up([[maybe_unused]] const Batch& table,
                                                    [[maybe_unused]] const words_of<Batch>& codes) noexcept {
  static_assert(is_avx512<Batch>);
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps(codes.data, table.data);
#endif
}

/// E2M1 in the lowest four bits of each word, times a scale.
template <class Batch>
class e2m1_table {
 public:
  e2m1_table() = default;
  MPIROUTER_ALWAYS_INLINE explicit e2m1_table(float scale) noexcept
      : scaled_(load_unaligned<Batch>(e2m1_levels.data()) * Batch(scale)), scale_(scale) {
    if constexpr (is_avx2<Batch>) {
      scaled_ = scaled_ ^ std::bit_cast<Batch>(load_unaligned<words_of<Batch>>(upper));
    }
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch operator()(const words_of<Batch>& codes) const noexcept {
    if constexpr (is_avx512<Batch>) {
      return look_up(scaled_, codes);
    } else if constexpr (is_avx2<Batch>) {
#if defined(__AVX2__)
      // The fourth bit becomes the sign; the three below it, which come along, are in the table once more.
      return Batch(_mm256_permutevar8x32_ps(scaled_.data, codes.data)) ^ std::bit_cast<Batch>(codes << 28);
#endif
    } else {
      std::uint32_t code[Batch::size];
      store_unaligned(code, codes);
      return each_lane<Batch>([&](std::size_t i) { return e2m1_levels[code[i] & 15U] * scale_; });
    }
  }

 private:
  static constexpr std::uint32_t upper[8] = {0U << 28, 1U << 28, 2U << 28, 3U << 28,
                                             4U << 28, 5U << 28, 6U << 28, 7U << 28};
  Batch scaled_;
  float scale_ = 0;
};

// NOLINTEND(bugprone-branch-clone)

}  // namespace detail::kernels

MPIROUTER_END
