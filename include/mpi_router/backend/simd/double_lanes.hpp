// Weights stored in fewer bits, as the doubles of a register: for sums in double of A as it lies. By
// intrinsics, for xsimd widens no floats; there are none for other processors.
#pragma once

#include <mpi_router/backend/simd/f16.hpp>

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

#if defined(__AVX2__) && defined(__F16C__)

/// The formats that are widened to double.
template <storage_format Format>
inline constexpr bool widens_to_double =
    Format == storage_format::f32 || Format == storage_format::bf16 || Format == storage_format::f16;

/// Eight or four floats.
template <storage_format Format>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto load_floats(const void* stored, lane_count<8>) noexcept {
  if constexpr (Format == storage_format::f32) {
    return _mm256_loadu_ps(static_cast<const float*>(stored));
  } else if constexpr (Format == storage_format::bf16) {
    const __m128i bits = _mm_loadu_si128(static_cast<const __m128i_u*>(stored));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  } else {
    return widen_f16(stored, lane_count<8>{});
  }
}
template <storage_format Format>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto load_floats(const void* stored, lane_count<4>) noexcept {
  if constexpr (Format == storage_format::f32) {
    return _mm_loadu_ps(static_cast<const float*>(stored));
  } else if constexpr (Format == storage_format::bf16) {
    const __m128i bits = _mm_loadl_epi64(static_cast<const __m128i_u*>(stored));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
  } else {
    return widen_f16(stored, lane_count<4>{});
  }
}
#if defined(__AVX512F__)
[[nodiscard]] MPIROUTER_ALWAYS_INLINE __m512d to_doubles(const __m256& x) noexcept {
  return _mm512_cvtps_pd(x);
}
#endif
[[nodiscard]] MPIROUTER_ALWAYS_INLINE __m256d to_doubles(const __m128& x) noexcept {
  return _mm256_cvtps_pd(x);
}

/// In natural order.
template <storage_format Format, class Arch>
  requires widens_to_double<Format>
struct lanes<Format, double, Arch>
    : ordered_lanes<double, Arch, sizeof(xsimd::batch<double, Arch>) < 64 ? 2 : 1> {
  using of_sums = lanes<storage_format::f64, double, Arch>;
  using batch = typename lanes::ordered_lanes::batch;
  using line = typename lanes::ordered_lanes::line;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    const auto* from = static_cast<const stored_element<Format>*>(stored);
    line v;
    unroll<line::count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      v.part[i] = batch(to_doubles(load_floats<Format>(from + i * batch::size, lane_count<batch::size>{})));
    });
    return v;
  }
};

#else

template <storage_format>
inline constexpr bool widens_to_double = false;

#endif

}  // namespace detail::kernels

MPIROUTER_END
