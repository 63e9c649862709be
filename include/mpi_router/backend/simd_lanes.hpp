// One cache line of stored weights in vector registers: loads and stores of every storage format, over xsimd.
//
// xsimd has no batch of 16-bit floats. Two neighbouring ones fill a 32-bit lane, so a line of bf16 splits into its
// even and its odd elements by a shift and a mask, with no lane crossing. Whatever meets those registers, the
// vectors x and u, is brought into the same "lane order"; that costs a few shuffles per line, shared by all the
// rows that a kernel holds at a time.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include <xsimd/xsimd.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

inline constexpr index_t line_bytes = 64;

/// Elements of T in a cache line.
template <class T>
inline constexpr index_t line_width = line_bytes / static_cast<index_t>(sizeof(T));

/// The batches of S that hold the elements of one line.
template <class S, class Arch, std::size_t Count>
struct line {
  using batch = xsimd::batch<S, Arch>;
  static constexpr std::size_t count = Count;
  batch part[Count];
};

template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch load_unaligned(const void* from) noexcept {
  Batch b;
  std::memcpy(&b, from, sizeof(Batch));
  return b;
}
template <class Batch>
MPIROUTER_ALWAYS_INLINE void store_unaligned(void* to, const Batch& b) noexcept {
  std::memcpy(to, &b, sizeof(Batch));
}

template <std::size_t... I, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch shuffle(const Batch& a, const Batch& b, std::index_sequence<I...>) noexcept {
#if defined(__GNUC__)
  return Batch(__builtin_shufflevector(a.data, b.data, static_cast<int>(I)...));
#else
  using S = typename Batch::value_type;
  S in[2 * Batch::size];
  store_unaligned(in, a);
  store_unaligned(in + Batch::size, b);
  const S out[] = {in[I]...};
  return load_unaligned<Batch>(out);
#endif
}

/// The even (First = 0) or odd (First = 1) elements of a followed by b.
template <std::size_t First, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch every_other(const Batch& a, const Batch& b) noexcept {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return shuffle(a, b, std::index_sequence<(2 * I + First)...>{});
  }(std::make_index_sequence<Batch::size>{});
}
/// Elements of a and b in turn: the first half of them (Half = 0) or the second.
template <std::size_t Half, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch in_turn(const Batch& a, const Batch& b) noexcept {
  constexpr std::size_t n = Batch::size;
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return shuffle(a, b, std::index_sequence<(Half * n / 2 + I / 2 + (I % 2) * n)...>{});
  }(std::make_index_sequence<n>{});
}

/// Halves the segments of Segment lanes: each segment of a, then of b, to its lower plus its upper half.
template <std::size_t Segment, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch fold(const Batch& a, const Batch& b) noexcept {
  constexpr std::size_t h = Segment / 2;
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return shuffle(a, b, std::index_sequence<((I / h) * Segment + I % h)...>{}) +
           shuffle(a, b, std::index_sequence<((I / h) * Segment + I % h + h)...>{});
  }(std::make_index_sequence<Batch::size>{});
}

/// out[i] = the sum of the lanes of sums[i]. All of them at once, by a tree of fixed shape.
template <std::size_t Segment, std::size_t Count, class S, class Batch>
MPIROUTER_ALWAYS_INLINE void sum_each(const Batch* sums, S* out) noexcept {
  constexpr std::size_t n = Batch::size;
  if constexpr (Segment == 1) {
    for (std::size_t i = 0; i < Count; ++i) {
      store_unaligned(out + i * n, sums[i]);
    }
  } else if constexpr (Count == 1) {
    const Batch folded = fold<Segment>(sums[0], sums[0]);
    sum_each<Segment / 2, 1>(&folded, out);
  } else {
    Batch folded[Count / 2];
    for (std::size_t i = 0; i < Count / 2; ++i) {
      folded[i] = fold<Segment>(sums[2 * i], sums[2 * i + 1]);
    }
    sum_each<Segment / 2, Count / 2>(folded, out);
  }
}
template <std::size_t Count, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto sum_lanes_of(const Batch (&sums)[Count]) noexcept {
  static_assert(std::has_single_bit(Count));
  using S = typename Batch::value_type;
  std::array<S, (Count > Batch::size ? Count : Batch::size)> out;
  sum_each<Batch::size, Count>(sums, out.data());
  return out;
}

template <storage_format Format, class S, class Arch>
struct lanes;

/// f64 and f32: lane order is the natural one.
template <storage_format Format, class S, class Arch>
  requires(Format == storage_format::f64 || Format == storage_format::f32)
struct lanes<Format, S, Arch> {
  using batch = xsimd::batch<S, Arch>;
  static constexpr index_t width = line_bytes / static_cast<index_t>(sizeof(S));
  static constexpr std::size_t count = static_cast<std::size_t>(width) / batch::size;
  using line = kernels::line<S, Arch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    return load_sums(static_cast<const S*>(stored));
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    store_sums(static_cast<S*>(stored), v);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load_sums(const S* x) noexcept {
    line v;
    for (std::size_t i = 0; i < count; ++i) {
      v.part[i] = load_unaligned<batch>(x + i * batch::size);
    }
    return v;
  }
  MPIROUTER_ALWAYS_INLINE static void store_sums(S* x, const line& v) noexcept {
    for (std::size_t i = 0; i < count; ++i) {
      store_unaligned(x + i * batch::size, v.part[i]);
    }
  }
};

/// Two 16-bit elements in a 32-bit lane: part 2j holds the even, part 2j + 1 the odd elements of the j-th register.
/// Codec supplies even, odd and pair.
template <class Arch, class Codec>
struct paired_lanes {
  using batch = xsimd::batch<float, Arch>;
  using words = xsimd::batch<std::uint32_t, Arch>;
  static constexpr index_t width = 32;
  static constexpr std::size_t count = 32 / batch::size;
  using line = kernels::line<float, Arch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    line v;
    for (std::size_t i = 0; i < count; i += 2) {
      const auto pair = load_unaligned<words>(static_cast<const char*>(stored) + i * sizeof(words) / 2);
      v.part[i] = Codec::template even<batch>(pair);
      v.part[i + 1] = Codec::template odd<batch>(pair);
    }
    return v;
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    for (std::size_t i = 0; i < count; i += 2) {
      store_unaligned(static_cast<char*>(stored) + i * sizeof(words) / 2,
                      Codec::template pair<words>(v.part[i], v.part[i + 1]));
    }
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load_sums(const float* x) noexcept {
    line v;
    for (std::size_t i = 0; i < count; i += 2) {
      const auto a = load_unaligned<batch>(x + i * batch::size);
      const auto b = load_unaligned<batch>(x + (i + 1) * batch::size);
      v.part[i] = every_other<0>(a, b);
      v.part[i + 1] = every_other<1>(a, b);
    }
    return v;
  }
  MPIROUTER_ALWAYS_INLINE static void store_sums(float* x, const line& v) noexcept {
    for (std::size_t i = 0; i < count; i += 2) {
      store_unaligned(x + i * batch::size, in_turn<0>(v.part[i], v.part[i + 1]));
      store_unaligned(x + (i + 1) * batch::size, in_turn<1>(v.part[i], v.part[i + 1]));
    }
  }
};

struct bf16_codec {
  template <class Batch, class Words>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Batch even(const Words& pair) noexcept {
    return std::bit_cast<Batch>(pair << 16);
  }
  template <class Batch, class Words>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Batch odd(const Words& pair) noexcept {
    return std::bit_cast<Batch>(pair & Words(0xffff0000U));
  }
  template <class Words, class Batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Words pair(const Batch& even, const Batch& odd) noexcept {
    return (rounded<Words>(even) >> 16) | (rounded<Words>(odd) & Words(0xffff0000U));
  }

 private:
  // Nearest, ties to even, in the upper half; a NaN is made quiet, as in float_to_bf16.
  template <class Words, class Batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Words rounded(const Batch& x) noexcept {
    const auto bits = std::bit_cast<Words>(x);
    const Words up = bits + Words(0x7fffU) + ((bits >> 16) & Words(1U));
    return xsimd::select((bits & Words(0x7fffffffU)) > Words(0x7f800000U), bits | Words(0x400000U), up);
  }
};

template <class Arch>
struct lanes<storage_format::bf16, float, Arch> : paired_lanes<Arch, bf16_codec> {};

}  // namespace detail::kernels

MPIROUTER_END
