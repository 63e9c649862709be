// Elements that lie two apart, such as the gate's where gate and up are interleaved: read 16 bytes at a time
// together with those between them, which are left alone.
#pragma once

#include <mpi_router/cuda/detail/device/batch.cuh>
#include <mpi_router/cuda/detail/device/number.cuh>

#include <cstdint>
#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// An element and the one after it. A pointer to pairs points at the first element, which may be either half
/// of the words that vectors are made of.
template <class T>
struct pair_of {
  T element;
  T other;
};
template <class T>
constexpr bool is_pair = false;
template <class T>
constexpr bool is_pair<pair_of<T>> = true;

/// A batch whose columns lie two apart, as one of pairs; strides are even.
template <class T,
          class P = std::conditional_t<std::is_const_v<T>, const pair_of<std::remove_const_t<T>>, pair_of<T>>>
[[nodiscard]] batch<P> in_pairs(const batch<T>& b) {
  batch<P> pairs;
  pairs.data = reinterpret_cast<P*>(b.data);
  pairs.table = reinterpret_cast<P* const*>(b.table);
  pairs.expert = b.expert / 2;
  pairs.ffn = b.ffn / 2;
  pairs.hidden = b.hidden / 2;
  return pairs;
}

/// Where the vectors begin that elements from `first` on lie in: there, or at the element before it.
template <class T>
[[nodiscard]] __device__ __forceinline__ T* vector_start(T* first) {
  if constexpr (is_pair<std::remove_const_t<T>>) {
    return reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(first) & ~std::uintptr_t{sizeof(T) - 1});
  } else {
    return first;
  }
}

/// 16 bytes of T as floats. Of pairs: which halves of the words they are, the first element says.
template <class T>
class decoder {
 public:
  decoder() = default;
  __device__ __forceinline__ explicit decoder(const T*) {}
  __device__ __forceinline__ void operator()(const uint4& v, float (&out)[vector_width<T>]) const {
    unpack<T>(v, out);
  }
};
template <class T>
class decoder<pair_of<T>> {
 public:
  static constexpr int width = vector_width<pair_of<T>>;

  decoder() = default;
  __device__ __forceinline__ explicit decoder(const pair_of<T>* first)
      : upper_((reinterpret_cast<std::uintptr_t>(first) & sizeof(T)) != 0) {}
  __device__ __forceinline__ void operator()(const uint4& v, float (&out)[width]) const {
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        out[i] = __uint_as_float(upper_ ? words[2 * i + 1] : words[2 * i]);
      } else {  // to the upper half of a word, which is a float where the element is a bf16
        const unsigned word = __byte_perm(words[i], 0, upper_ ? 0x3244U : 0x1044U);
        out[i] = std::is_same_v<T, bf16>
                     ? __uint_as_float(word)
                     : __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
      }
    }
  }
  /// v with these elements, and the bits between them as they were.
  [[nodiscard]] __device__ __forceinline__ uint4 with(const uint4& v, const float (&in)[width]) const {
    unsigned words[4] = {v.x, v.y, v.z, v.w};
    if constexpr (std::is_same_v<T, float>) {
#pragma unroll
      for (int i = 0; i < width; ++i) {
        words[2 * i] = upper_ ? words[2 * i] : __float_as_uint(in[i]);
        words[2 * i + 1] = upper_ ? __float_as_uint(in[i]) : words[2 * i + 1];
      }
    } else {
      const float all[vector_width<T>] = {in[0], in[1], in[2], in[3]};
      const uint4 packed = pack<T>(all);
      const unsigned both[2] = {packed.x, packed.y};
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const unsigned lower = i % 2 == 0 ? 0x3254U : 0x3276U;
        const unsigned upper = i % 2 == 0 ? 0x5410U : 0x7610U;
        words[i] = __byte_perm(words[i], both[i / 2], upper_ ? upper : lower);
      }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }

 private:
  bool upper_ = false;
};

/// 16 bytes of the first `count` pairs from `p` on (any alignment), the rest zero: in either half.
template <class T>
__device__ __forceinline__ uint4 gather_vector(const pair_of<T>* p, int count) {
  unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < vector_width<pair_of<T>>; ++i) {
    if (i < count) {
      const T* const element = reinterpret_cast<const T*>(p + i);
      if constexpr (std::is_same_v<T, float>) {
        words[2 * i] = words[2 * i + 1] = __float_as_uint(*element);
      } else {
        words[i] = static_cast<unsigned>(element->bits) * 0x10001U;
      }
    }
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Writes the first `left` of `width` elements one by one, or adds them, and touches nothing between them.
template <class G, int width, bool add>
__device__ __forceinline__ void write_pairs_rarely(pair_of<G>* to, int left, const float (&value)[width]) {
#pragma unroll
  for (int i = 0; i < width; ++i) {
    if (i < left) {
      G* const element = reinterpret_cast<G*>(to + i);
      *element = from_double<G>(static_cast<double>(add ? to_float(*element) + value[i] : value[i]));
    }
  }
}

MPIROUTER_CUDA_DETAIL_END
