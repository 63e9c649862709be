// How a thread writes its columns of a row of the gradient Ā, or adds them to what is there.
#pragma once

#include <mpi_router/cuda/detail/device/number.cuh>

#include <cstdint>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Writes the first `count` of `width` values, or adds them to what is there, one by one: by a call, for it
/// is rare.
template <class G, int width, bool add>
__device__ __noinline__ void write_elements(G* to, int count, float4 first, float4 second) {
  const float value[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
#pragma unroll
  for (int i = 0; i < width; ++i) {
    if (i < count) {
      to[i] = from_double<G>(static_cast<double>(add ? to_float(to[i]) + value[i] : value[i]));
    }
  }
}

/// The same, all loads first, and two elements of 16 bits together where they are a word. The call takes a
/// few registers more, which cost the kernels over rows 2 %.
template <class G, int width, bool add>
__device__ __noinline__ void write_words(G* to, int count, float4 first, float4 second) {
  float value[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
  if constexpr (add) {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      value[i] += i < count ? to_float(to[i]) : 0.0F;
    }
  }
  if constexpr (sizeof(G) == 2) {
    const bool in_words = (reinterpret_cast<std::uintptr_t>(to) & 3U) == 0;
    const uint4 packed = pack<G>(value);
    const unsigned words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < width; i += 2) {
      if (in_words && i + 1 < count) {
        *reinterpret_cast<unsigned*>(to + i) = words[i / 2];
      } else {
#pragma unroll
        for (int k = i; k < i + 2; ++k) {
          if (k < count) {
            to[k].bits = static_cast<unsigned short>(words[i / 2] >> (k % 2 * 16));
          }
        }
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (i < count) {
        to[i] = from_double<G>(static_cast<double>(value[i]));
      }
    }
  }
}

/// How columns that are no whole vectors are written.
enum class unaligned { by_element, by_word };

/// This thread's `width` columns of one row of the gradient, `left` of which there are: values, or the values
/// in `old` plus these. `aligned`: rows of whole vectors.
template <class G, int width, bool add, unaligned otherwise = unaligned::by_element>
__device__ __forceinline__ void write_gradient(G* to, bool aligned, int left, const void* old,
                                               float (&value)[width]) {
  if (left <= 0) {
    return;
  }
  if (!aligned) [[unlikely]] {
    const float* const second = value + width - 4;
    const auto of = [](const float* x) { return make_float4(x[0], x[1], x[2], x[3]); };
    if constexpr (otherwise == unaligned::by_word) {
      write_words<G, width, add>(to, left, of(value), of(second));
    } else {
      write_elements<G, width, add>(to, left, of(value), of(second));
    }
    return;
  }
  // 16-bit gradients of f32 weights come in half vectors.
  using unit = std::conditional_t<(vector_width<G> > width), uint2, uint4>;
  constexpr int step = static_cast<int>(sizeof(unit) / sizeof(G));
#pragma unroll
  for (int i = 0; i < width; i += step) {
    if (i < left) {
      float x[vector_width<G>] = {};
      if constexpr (add) {
        const unit bits = *reinterpret_cast<const unit*>(static_cast<const G*>(old) + i);
        if constexpr (sizeof(unit) == 16) {
          unpack<G>(bits, x);
        } else {
          unpack<G>(make_uint4(bits.x, bits.y, 0, 0), x);
        }
      }
#pragma unroll
      for (int k = 0; k < step; ++k) {
        x[k] = add ? x[k] + value[i + k] : value[i + k];
      }
      const uint4 packed = pack<G>(x);
      if constexpr (sizeof(unit) == 16) {
        __stcs(reinterpret_cast<unit*>(to + i), packed);
      } else {
        __stcs(reinterpret_cast<unit*>(to + i), make_uint2(packed.x, packed.y));
      }
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
