// Q8_0 of ggml in registers: the scale of a block is multiplied with what its columns sum up to.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

template <class Arch>
struct packed_codes<q8_0_view, Arch> : packed_format<q8_0_view> {
  using batch = xsimd::batch<float, Arch>;
  static constexpr index_t chunk = 32;
  static constexpr std::size_t count = 32 / batch::size;
  using order = natural_order<batch, count>;
  static constexpr bool scales_sums = true;
  static constexpr float divisor = 1;
  static constexpr bool is_kept = false;
  static constexpr index_t kept_bytes = 4;
  using watch = no_watch;
  struct block {
    const std::byte* codes;
    batch scale;
  };

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(row r, index_t b, index_t) noexcept {
    const std::byte* const in = r + b * block_bytes;
    return {in + 2, broadcast_f16<batch>(in)};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of, index_t) noexcept {
    return of.codes;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, count> load(const block& of, index_t) noexcept {
    few<batch, count> out;
    unroll<count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      out[i] = float_of_int8<batch>(of.codes + i * batch::size);
    });
    return out;
  }
};

}  // namespace detail::kernels

MPIROUTER_END
