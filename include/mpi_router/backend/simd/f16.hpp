// Half precision in vector registers, where the machine can convert it. By intrinsics: xsimd cannot.
#pragma once

#include <mpi_router/backend/simd/narrow_lanes.hpp>

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

#if defined(__F16C__) || defined(__aarch64__)

template <std::size_t Lanes>
struct lane_count {};

#if defined(__F16C__)
#if defined(__AVX512F__)
MPIROUTER_ALWAYS_INLINE __m512 widen_f16(const void* stored, lane_count<16>) noexcept {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i_u*>(stored)));
}
MPIROUTER_ALWAYS_INLINE void narrow_f16(void* stored, const __m512& x) noexcept {
  _mm256_storeu_si256(static_cast<__m256i_u*>(stored), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#endif
MPIROUTER_ALWAYS_INLINE __m256 widen_f16(const void* stored, lane_count<8>) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i_u*>(stored)));
}
MPIROUTER_ALWAYS_INLINE void narrow_f16(void* stored, const __m256& x) noexcept {
  _mm_storeu_si128(static_cast<__m128i_u*>(stored), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
MPIROUTER_ALWAYS_INLINE __m128 widen_f16(const void* stored, lane_count<4>) noexcept {
  return _mm_cvtph_ps(_mm_loadl_epi64(static_cast<const __m128i_u*>(stored)));
}
MPIROUTER_ALWAYS_INLINE void narrow_f16(void* stored, const __m128& x) noexcept {
  _mm_storel_epi64(static_cast<__m128i_u*>(stored), _mm_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
MPIROUTER_ALWAYS_INLINE float32x4_t widen_f16(const void* stored, lane_count<4>) noexcept {
  return vcvt_f32_f16(vld1_f16(static_cast<const float16_t*>(stored)));
}
MPIROUTER_ALWAYS_INLINE void narrow_f16(void* stored, const float32x4_t& x) noexcept {
  vst1_f16(static_cast<float16_t*>(stored), vcvt_f16_f32(x));
}
#endif

/// f16 by conversion instructions.
template <class Arch>
struct lanes<storage_format::f16, float, Arch> : ordered_lanes<float, Arch, 2> {
  using of_sums = lanes<storage_format::f32, float, Arch>;
  using batch = typename lanes::ordered_lanes::batch;
  using line = typename lanes::ordered_lanes::line;
  using lanes::ordered_lanes::count;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    line v;
    for (std::size_t i = 0; i < count; ++i) {
      v.part[i] =
          batch(widen_f16(static_cast<const char*>(stored) + i * batch::size * 2, lane_count<batch::size>{}));
    }
    return v;
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      narrow_f16(static_cast<char*>(stored) + i * batch::size * 2, v.part[i].data);
    }
  }
};

#endif

}  // namespace detail::kernels

MPIROUTER_END
