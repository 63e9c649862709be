// Numbers on the device: 16 bytes of storage as floats and back, powers of two.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mpi_router/core/scalar.hpp>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// Bytes of an element of rows, images and gradients; 0 where device code has no word for the format.
/// (Weights may be of any.)
[[nodiscard]] constexpr int bytes_of(storage_format format) {
  switch (format) {
    case storage_format::f64: return 8;
    case storage_format::f32: return 4;
    case storage_format::bf16:
    case storage_format::f16: return 2;
  }
  return 0;
}
template <class T>
constexpr bool is_stored_here = bytes_of(storage_traits<T>::format) == sizeof(T);

template <class T>
constexpr int vector_width = static_cast<int>(16 / sizeof(T));

/// What has no form of its own, as its traits say.
template <class T>
__device__ __forceinline__ float to_float(T x) {
  return storage_traits<T>::widen(x);
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(double x) { return static_cast<float>(x); }
template <class T>
__device__ __forceinline__ double to_double(T x) {
  return static_cast<double>(to_float(x));
}
template <>
__device__ __forceinline__ double to_double(double x) {
  return x;
}

template <class T>
__device__ __forceinline__ T from_double(double x) {
  return storage_traits<T>::narrow(static_cast<float>(x));
}
template <>
__device__ __forceinline__ double from_double<double>(double x) {
  return x;
}
template <>
__device__ __forceinline__ float from_double<float>(double x) {
  return static_cast<float>(x);
}
template <>
__device__ __forceinline__ bf16 from_double<bf16>(double x) {
  bf16 y;
  y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(x)));
  return y;
}
template <>
__device__ __forceinline__ f16 from_double<f16>(double x) {
  f16 y;
  y.bits = __half_as_ushort(__float2half_rn(static_cast<float>(x)));
  return y;
}

/// 16 bytes to vector_width<T> floats.
template <class T>
__device__ __forceinline__ void unpack(const uint4& v, float (&out)[vector_width<T>]) {
  const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      out[i] = __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, bf16>) {
      out[2 * i] = __uint_as_float(words[i] << 16);
      out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000U);
    } else {
      static_assert(std::is_same_v<T, f16>);
      const float2 pair =
          __half22float2(__halves2half2(__ushort_as_half(static_cast<unsigned short>(words[i])),
                                        __ushort_as_half(static_cast<unsigned short>(words[i] >> 16))));
      out[2 * i] = pair.x;
      out[2 * i + 1] = pair.y;
    }
  }
}

/// vector_width<T> floats to 16 bytes, rounded to nearest even.
template <class T>
__device__ __forceinline__ uint4 pack(const float* in) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      words[i] = __float_as_uint(in[i]);
    } else if constexpr (std::is_same_v<T, bf16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(in[2 * i + 1]), "f"(in[2 * i]));
    } else {
      static_assert(std::is_same_v<T, f16>);
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[i]) : "f"(in[2 * i + 1]), "f"(in[2 * i]));
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// The first `count` of the elements at `p` (any alignment), the rest zero: 16 bytes.
template <class T>
__device__ __forceinline__ uint4 gather_vector(const T* p, int count) {
  unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < vector_width<T>; ++i) {
    if (i < count) {
      if constexpr (std::is_same_v<T, float>) {
        words[i] = __float_as_uint(p[i]);
      } else {
        static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
        words[i / 2] |= static_cast<unsigned>(p[i].bits) << (16 * (i % 2));
      }
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
/// |x| as bits, in which NaN is above infinity and all numbers are in order.
__device__ __forceinline__ unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffU; }

/// 2^e, or zero where float holds no normal 2^e. e ≤ 127.
__device__ __forceinline__ float power_of_two(int e) {
  return e < -126 ? 0.0F : __int_as_float((min(e, 127) + 127) << 23);
}
/// 2^e for any e: infinite or zero where double holds no normal 2^e.
__device__ __forceinline__ double wide_power_of_two(int e) {
  return e > 1023    ? __longlong_as_double(0x7ff0000000000000LL)
         : e < -1022 ? 0.0
                     : __longlong_as_double(static_cast<long long>(e + 1023) << 52);
}

/// x · 2^e for any e that leaves the result in range.
__device__ __forceinline__ float scale_by(float x, int e) {
  return x * power_of_two(e / 2) * power_of_two(e - e / 2);
}

/// Likewise; a factor alone may leave the range where the result does not.
__device__ __forceinline__ double scale_by(double x, int e) {
  return x * wide_power_of_two(e / 2) * wide_power_of_two(e - e / 2);
}

__device__ __forceinline__ bool aligned_to_16(const void* p, long long stride_bytes, long long extent_bytes) {
  return ((reinterpret_cast<unsigned long long>(p) | static_cast<unsigned long long>(stride_bytes) |
           static_cast<unsigned long long>(extent_bytes)) &
          15ULL) == 0;
}

template <int n>
__device__ __forceinline__ void multiply(float (&values)[n], float factor) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    values[i] *= factor;
  }
}
template <int n>
__device__ __forceinline__ void clear(float (&values)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) {
    values[i] = 0.0F;
  }
}

MPIROUTER_CUDA_DETAIL_END
