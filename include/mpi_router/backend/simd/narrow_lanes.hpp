// Elements narrower than float: their bits to floats and back in the lanes of registers, by the layout of
// their format, and the order that they lie in.
//
// xsimd has no batch of 16-bit floats. Two adjacent ones fill a 32-bit lane, so a register of bf16 splits
// into its even and its odd elements by a shift and a mask, with no lane crossing. Whatever meets those
// registers is brought into the same "lane order": x as it is loaded, by a few shuffles that all the rows of
// a group share; u stays in that order until the last row is added.
#pragma once

#include <mpi_router/backend/simd/lanes.hpp>

#include <bit>
#include <cstdint>
#include <type_traits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// core::widen_bits and core::narrow_bits in the lanes of a register, each element the low bits of a word.
template <storage_format Format>
struct codec {
  static constexpr core::bit_layout format{Format};

  // Two numbers side by side, where float has more exponents: what is subnormal, from its integer.
  template <class Batch, class Words>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Batch widened(const Words& stored) noexcept {
    const Words magnitude = stored & Words(format.sign() - 1);
    const auto subnormal =
        xsimd::to_float(xsimd::batch<std::int32_t, typename Batch::arch_type>(
            std::bit_cast<xsimd::batch<std::int32_t, typename Batch::arch_type>>(magnitude))) *
        Batch(format.smallest());
    const Words shifted = magnitude << format.cut();
    const Words normal = shifted + Words(format.rebase());
    const Words finite = xsimd::select(magnitude < Words(1U << format.significand_bits),
                                       std::bit_cast<Words>(subnormal), normal);
    const Words value =
        xsimd::select(magnitude < Words(format.beyond()), finite, shifted | Words(0x7f800000U));
    return std::bit_cast<Batch>(value | ((stored & Words(format.sign())) << sign_shift));
  }
  // Below the smallest normal number the rounding is that of adding a power of two, whose sum ends there.
  template <class Words, class Batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Words narrowed(const Batch& x) noexcept {
    constexpr auto power = std::bit_cast<std::uint32_t>(format.smallest()) + (23U << 23);
    const auto bits = std::bit_cast<Words>(x);
    const Words magnitude = bits & Words(0x7fffffffU);
    const Words normal = (magnitude + Words((1U << (format.cut() - 1)) - 1U) +
                          ((magnitude >> format.cut()) & Words(1U)) - Words(format.rebase())) >>
                         format.cut();
    const Words subnormal =
        std::bit_cast<Words>(std::bit_cast<Batch>(magnitude) + std::bit_cast<Batch>(Words(power))) -
        Words(power);
    const Words finite = xsimd::select(magnitude < Words(format.rebase() + 0x800000U), subnormal, normal);
    const Words number = xsimd::select(finite < Words(format.beyond()), finite, Words(format.beyond()));
    return xsimd::select(magnitude > Words(0x7f800000U), Words(format.quiet_nan()), number) |
           ((bits >> sign_shift) & Words(format.sign()));
  }

  template <class Batch, class Words>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Batch even(const Words& pair) noexcept {
    return widened<Batch>(pair & Words(0xffffU));
  }
  template <class Batch, class Words>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Batch odd(const Words& pair) noexcept {
    return widened<Batch>(pair >> 16);
  }
  template <class Words, class Batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Words pair(const Batch& even, const Batch& odd) noexcept {
    return narrowed<Words>(even) | (narrowed<Words>(odd) << 16);
  }

 private:
  static constexpr unsigned sign_shift = 31 - format.exponent_bits - format.significand_bits;
};

/// bf16 is the upper half of a float.
template <>
struct codec<storage_format::bf16> {
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
  // Nearest, ties to even, in the upper half; a NaN is made quiet, as by narrow<bf16>.
  template <class Words, class Batch>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static Words rounded(const Batch& x) noexcept {
    const auto bits = std::bit_cast<Words>(x);
    const Words up = bits + Words(0x7fffU) + ((bits >> 16) & Words(1U));
    return xsimd::select((bits & Words(0x7fffffffU)) > Words(0x7f800000U), bits | Words(0x400000U), up);
  }
};

/// Two 16-bit elements in a 32-bit lane: part 0 holds the even, part 1 the odd elements.
template <class Arch, class Codec>
struct paired_lanes {
  using batch = xsimd::batch<float, Arch>;
  using words = xsimd::batch<std::uint32_t, Arch>;
  using of_sums = lanes<storage_format::f32, float, Arch>;
  static constexpr bool in_order = false;
  static constexpr std::size_t count = 2;
  static constexpr auto width = static_cast<index_t>(count * batch::size);
  using line = kernels::line<float, Arch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    auto pair = load_unaligned<words>(stored);
    keep_in_register(pair);
    return {{Codec::template even<batch>(pair), Codec::template odd<batch>(pair)}};
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    store_unaligned(stored, Codec::template pair<words>(v.part[0], v.part[1]));
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load_sums(const float* x) noexcept {
    auto a = load_unaligned<batch>(x);
    auto b = load_unaligned<batch>(x + batch::size);
    keep_in_register(a);
    keep_in_register(b);
    if constexpr (by_halves) {
      const batch lower = halves<0>(a, b);
      const batch upper = halves<1>(a, b);
      return {{every_other<0, batch::size / 2>(lower, upper), every_other<1, batch::size / 2>(lower, upper)}};
    } else {
      return {{every_other<0, batch::size>(a, b), every_other<1, batch::size>(a, b)}};
    }
  }
  MPIROUTER_ALWAYS_INLINE static void store_sums(float* x, const line& v) noexcept {
    if constexpr (by_halves) {
      const batch lower = in_turn<0, batch::size / 2>(v.part[0], v.part[1]);
      const batch upper = in_turn<1, batch::size / 2>(v.part[0], v.part[1]);
      store_unaligned(x, halves<0>(lower, upper));
      store_unaligned(x + batch::size, halves<1>(lower, upper));
    } else {
      store_unaligned(x, in_turn<0, batch::size>(v.part[0], v.part[1]));
      store_unaligned(x + batch::size, in_turn<1, batch::size>(v.part[0], v.part[1]));
    }
  }

 private:
  // With AVX, single elements move across the middle of a register at three times the cost of whole halves.
  static constexpr bool by_halves = sizeof(batch) == 32;
};

/// Elements of 8 bits, each widened to a word, in natural order.
template <class Arch, class Codec>
struct spread_lanes : ordered_lanes<float, Arch, 2> {
  using of_sums = lanes<storage_format::f32, float, Arch>;
  using batch = typename spread_lanes::ordered_lanes::batch;
  using words = xsimd::batch<std::uint32_t, Arch>;
  using line = typename spread_lanes::ordered_lanes::line;
  using spread_lanes::ordered_lanes::count;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static line load(const void* stored) noexcept {
    std::uint32_t wide[count * batch::size];
    for (std::size_t i = 0; i < count * batch::size; ++i) {
      wide[i] = static_cast<const std::uint8_t*>(stored)[i];
    }
    line v;
    unroll<count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      v.part[i] = Codec::template widened<batch>(load_unaligned<words>(wide + i * batch::size));
    });
    return v;
  }
  MPIROUTER_ALWAYS_INLINE static void store(void* stored, const line& v) noexcept {
    std::uint32_t wide[count * batch::size];
    unroll<count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      store_unaligned(wide + i * batch::size, Codec::template narrowed<words>(v.part[i]));
    });
    for (std::size_t i = 0; i < count * batch::size; ++i) {
      static_cast<std::uint8_t*>(stored)[i] = static_cast<std::uint8_t>(wide[i]);
    }
  }
};

/// Whatever has no form of its own, by the layout of its bits.
template <storage_format Format, class S, class Arch>
struct lanes : std::conditional_t<core::bit_layout(Format).bytes() == 2, paired_lanes<Arch, codec<Format>>,
                                  spread_lanes<Arch, codec<Format>>> {
  static_assert(std::is_same_v<S, float> && core::bit_layout(Format).bytes() <= 2);
};

}  // namespace detail::kernels

MPIROUTER_END
