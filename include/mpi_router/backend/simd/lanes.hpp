// A line of stored weights in one or two vector registers, at most a cache line: loads, stores and shuffles
// over xsimd. How f64 and f32 lie in it; what is narrower is in narrow_lanes.hpp.
#pragma once

#include <mpi_router/core/scalar.hpp>

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <xsimd/xsimd.hpp>

// Kernels are built from small lambdas that must vanish at every level of optimisation.
#if defined(__GNUC__)
#define MPIROUTER_DETAIL_INLINE_LAMBDA __attribute__((always_inline))
#else
#define MPIROUTER_DETAIL_INLINE_LAMBDA
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

/// A few values, in registers where the compiler can. (Not std::array: it is the same type for every
/// instruction set.)
template <class T, std::size_t N>
struct few {
  T value[N];
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE T& operator[](std::size_t i) noexcept { return value[i]; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const T& operator[](std::size_t i) const noexcept { return value[i]; }
};

/// f(0), …, f(N − 1) with constant arguments: arrays indexed by them live in registers.
template <std::size_t N, class F>
MPIROUTER_ALWAYS_INLINE void unroll(F&& f) noexcept {
  [&]<std::size_t... I>(std::index_sequence<I...>) MPIROUTER_DETAIL_INLINE_LAMBDA {
    (f(std::integral_constant<std::size_t, I>{}), ...);
  }(std::make_index_sequence<N>{});
}

/// The batches of S that hold the elements of one line.
template <class S, class Arch, std::size_t Count>
struct line {
  using batch = xsimd::batch<S, Arch>;
  static constexpr std::size_t count = Count;
  batch part[Count];
};

/// As many elements as fill a register, from any address. Not by memcpy: g++ 12 copies 32 bytes in halves, by
/// way of the stack, and the register then waits for both stores.
template <class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch load_unaligned(const void* from) noexcept {
  return Batch::load_unaligned(static_cast<const typename Batch::value_type*>(from));
}
/// Keeps a value that is used twice from being loaded twice, as compilers like to fold loads into
/// instructions.
template <class Batch>
MPIROUTER_ALWAYS_INLINE void keep_in_register(Batch& b) noexcept {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  __asm__("" : "+v"(b.data));
#else
  static_cast<void>(b);
#endif
}
template <class Batch>
MPIROUTER_ALWAYS_INLINE void store_unaligned(void* to, const Batch& b) noexcept {
  b.store_unaligned(static_cast<typename Batch::value_type*>(to));
}

template <std::size_t... I, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch shuffle(const Batch& a, const Batch& b,
                                                    std::index_sequence<I...>) noexcept {
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

/// The lower (Half = 0) or the upper halves of a and b.
template <std::size_t Half, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch halves(const Batch& a, const Batch& b) noexcept {
  constexpr std::size_t h = Batch::size / 2;
  return [&]<std::size_t... I>(std::index_sequence<I...>) MPIROUTER_DETAIL_INLINE_LAMBDA {
    return shuffle(a, b, std::index_sequence<(Half * h + I % h + I / h * Batch::size)...>{});
  }(std::make_index_sequence<Batch::size>{});
}

/// Of a followed by b, in each part of Part elements of both: the chunks of Chunk elements with an even
/// number (First = 0), or an odd one (First = 1).
template <std::size_t First, std::size_t Part, std::size_t Chunk = 1, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch every_other(const Batch& a, const Batch& b) noexcept {
  constexpr auto source = [](std::size_t lane) {
    const std::size_t k = lane % (Part / 2);
    const bool of_b = lane % Part >= Part / 2;
    return lane / Part * Part + (k / Chunk * 2 + First) * Chunk + k % Chunk + (of_b ? Batch::size : 0);
  };
  return [&]<std::size_t... I>(std::index_sequence<I...>) MPIROUTER_DETAIL_INLINE_LAMBDA {
    return shuffle(a, b, std::index_sequence<source(I)...>{});
  }(std::make_index_sequence<Batch::size>{});
}
/// Elements of a and b in turn: the first half of them (Half = 0) or the second; of each part of Part
/// elements.
template <std::size_t Half, std::size_t Part, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch in_turn(const Batch& a, const Batch& b) noexcept {
  return [&]<std::size_t... I>(std::index_sequence<I...>) MPIROUTER_DETAIL_INLINE_LAMBDA {
    return shuffle(
        a, b,
        std::index_sequence<(I / Part * Part + Half * Part / 2 + I % Part / 2 + I % 2 * Batch::size)...>{});
  }(std::make_index_sequence<Batch::size>{});
}

/// out[i] = the sum of the lanes of sums[i], of which so many are added already. All of them at once, by a
/// tree of fixed shape: first within 128 bits, then across, for moving elements across that border is costly.
template <std::size_t Added, std::size_t Count, class S, class Batch>
MPIROUTER_ALWAYS_INLINE void sum_each(const Batch* sums, S* out) noexcept {
  constexpr std::size_t n = Batch::size;
  if constexpr (Added == n) {
    for (std::size_t i = 0; i < Count; ++i) {
      store_unaligned(out + i * n, sums[i]);
    }
  } else {
    constexpr std::size_t within = n < 16 / sizeof(S) ? n : 16 / sizeof(S);
    constexpr std::size_t part = Added < within ? within : n;
    constexpr std::size_t chunk = Added < within ? 1 : within;
    constexpr std::size_t left = Count == 1 ? 1 : Count / 2;
    Batch folded[left];
    unroll<left>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const Batch& a = sums[Count == 1 ? 0 : 2 * i];
      const Batch& b = sums[Count == 1 ? 0 : 2 * i + 1];
      folded[i] = every_other<0, part, chunk>(a, b) + every_other<1, part, chunk>(a, b);
    });
    sum_each<2 * Added, left>(folded, out);
  }
}
template <std::size_t Count, class Batch>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto sum_lanes_of(const Batch (&sums)[Count]) noexcept {
  static_assert(std::has_single_bit(Count));
  using S = typename Batch::value_type;
  few<S, (Count > Batch::size ? Count : Batch::size)> out;
  Batch copies[Count];  // the callers' sums have no address, so that they stay in registers
  unroll<Count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { copies[i] = sums[i]; });
  sum_each<1, Count>(copies, out.value);
  return out;
}

/// A line as it lies: what is adjacent in memory is adjacent in the registers.
template <class Line, class S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE Line load_line(const S* x) noexcept {
  Line v;
  unroll<Line::count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
    v.part[i] = load_unaligned<typename Line::batch>(x + i * Line::batch::size);
  });
  return v;
}
template <class Line, class S>
MPIROUTER_ALWAYS_INLINE void store_line(S* x, const Line& v) noexcept {
  unroll<Line::count>(
      [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { store_unaligned(x + i * Line::batch::size, v.part[i]); });
}

/// An element as kernels see it: float and double as they are, of the rest the bits.
template <storage_format Format>
using stored_element =
    std::conditional_t<Format == storage_format::f64, double,
                       std::conditional_t<Format == storage_format::f32, float,
                                          std::conditional_t<core::bit_layout(Format).bytes() == 2,
                                                             std::uint16_t, std::uint8_t>>>;

/// How a line is read and written: `load` and `store` in the storage format, `load_sums` and `store_sums` of
/// what is summed, in natural order. `in_order`: that order is the order of the lanes. `of_sums`: the lanes
/// of S itself. The general form is in narrow_lanes.hpp.
template <storage_format Format, class S, class Arch>
struct lanes;

/// Lanes whose order is the natural one.
template <class S, class Arch, std::size_t Count>
struct ordered_lanes {
  using batch = xsimd::batch<S, Arch>;
  static constexpr bool in_order = true;
  static constexpr std::size_t count = Count;
  static constexpr auto width = static_cast<index_t>(count * batch::size);
  using line = kernels::line<S, Arch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load_sums(const S* x) noexcept {
    return load_line<line>(x);
  }
  MPIROUTER_ALWAYS_INLINE static void store_sums(S* x, const line& v) noexcept { store_line(x, v); }
};

/// f64 and f32.
template <storage_format Format, class S, class Arch>
  requires(Format == storage_format::f64 || Format == storage_format::f32)
struct lanes<Format, S, Arch> : ordered_lanes<S, Arch, sizeof(xsimd::batch<S, Arch>) < 64 ? 2 : 1> {
  using of_sums = lanes;
  using line = typename lanes::ordered_lanes::line;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    return load_line<line>(static_cast<const S*>(stored));
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    store_line(static_cast<S*>(stored), v);
  }
};

}  // namespace detail::kernels

MPIROUTER_END
