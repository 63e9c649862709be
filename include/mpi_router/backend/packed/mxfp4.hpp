// MXFP4 in registers: sixteen bytes are 32 columns, the low halves the even ones; a table of the codes'
// values is scaled once for each block.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

template <class Arch>
struct packed_codes<mxfp4_view, Arch> : packed_format<mxfp4_view> {
  using batch = xsimd::batch<float, Arch>;
  static constexpr index_t chunk = 32;
  static constexpr std::size_t count = 32 / batch::size;
  using order = paired_order<batch, count>;
  static constexpr bool scales_sums = false;
  static constexpr float divisor = 1;
  static constexpr bool is_kept = !is_avx512<batch>;
  static constexpr index_t kept_bytes = 4;
  using watch = no_watch;
  struct block {
    const std::byte* codes;
    e2m1_table<batch> value;
  };

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(const row& r, index_t b, index_t) noexcept {
    return {r.codes + 16 * b, e2m1_table<batch>(packed::e8m0(packed::read<std::uint8_t>(r.scales, b)))};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of, index_t) noexcept {
    return of.codes;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, count> load(const block& of, index_t) noexcept {
    few<batch, count> out;
    unroll<count / 2>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const auto pairs = words_of_bytes<batch>(of.codes + i * batch::size);
      out[2 * i] = of.value(pairs);
      out[2 * i + 1] = of.value(pairs >> 4);
    });
    return out;
  }
};

}  // namespace detail::kernels

MPIROUTER_END
