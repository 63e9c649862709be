// Q4_K of ggml in registers: in 32 bytes the low halves are 32 columns, the high halves the next 32, each
// with a scale and a minimum of its own.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// scale · q − minimum of the lowest four bits of each word; `Alone`: the others are zero.
template <class Batch>
class q4_line {
 public:
  MPIROUTER_ALWAYS_INLINE q4_line(const Batch& scale, const Batch& minimum) noexcept {
    if constexpr (is_avx512<Batch>) {
      scale_ = xsimd::fms(load_unaligned<Batch>(numbers), scale, minimum);  // sixteen lanes: all there are
    } else {
      scale_ = scale;
      minimum_ = minimum;
    }
  }
  template <bool Alone>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE Batch at(const words_of<Batch>& codes) const noexcept {
    if constexpr (is_avx512<Batch>) {
      return look_up(scale_, codes);
    } else {
      const auto q = std::bit_cast<integers_of<Batch>>(Alone ? codes : codes & words_of<Batch>(15U));
      return xsimd::fms(xsimd::to_float(q), scale_, minimum_);
    }
  }

 private:
  static constexpr float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Batch scale_;
  Batch minimum_;
};

template <class Arch>
struct packed_codes<q4_k_view, Arch> : packed_format<q4_k_view> {
  using batch = xsimd::batch<float, Arch>;
  static constexpr index_t chunk = 64;
  static constexpr std::size_t count = 64 / batch::size;
  using order = natural_order<batch, count>;
  static constexpr bool scales_sums = false;
  static constexpr float divisor = 1;
  static constexpr bool is_kept = !is_avx512<batch>;
  static constexpr index_t kept_bytes = 4;
  using watch = no_watch;
  struct block {
    const std::byte* codes;
    float factor[16];  // d · sc of each 32 columns, then dmin · mn
  };

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(row r, index_t b, index_t) noexcept {
    const std::byte* const in = r + b * block_bytes;
    const packed::k_scales parts(in + 4);
    const auto d = broadcast_f16<batch>(in);
    const auto dmin = broadcast_f16<batch>(in + 2);
    block of;
    of.codes = in + 16;
    unroll<16 / batch::size>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      constexpr std::size_t first = i * batch::size;
      const batch unit = batch::size == 16 ? halves<0>(d, dmin) : first < 8 ? d : dmin;
      store_unaligned(of.factor + first, float_of_int8<batch>(parts.number + first) * unit);
    });
    return of;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of,
                                                                         index_t k) noexcept {
    return of.codes + 32 * k;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, count> load(const block& of, index_t k) noexcept {
    const q4_line<batch> low(batch(of.factor[2 * k]), batch(of.factor[8 + 2 * k]));
    const q4_line<batch> high(batch(of.factor[2 * k + 1]), batch(of.factor[9 + 2 * k]));
    few<batch, count> out;
    unroll<count / 2>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const auto pairs = words_of_bytes<batch>(codes_of(of, k) + i * batch::size);
      out[i] = low.template at<false>(pairs);
      out[count / 2 + i] = high.template at<true>(pairs >> 4);
    });
    return out;
  }
};

}  // namespace detail::kernels

MPIROUTER_END
