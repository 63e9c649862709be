// MXFP4 in registers: sixteen bytes are 32 columns; a table of the codes' values is scaled once for each
// block. The low halves are the even columns in safetensors files, the first sixteen in ggml's blocks.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// E8M0 of all its codes: a load is all that a scale takes.
inline constexpr auto e8m0_values = [] {
  std::array<float, 256> values{};
  for (std::size_t code = 0; code < values.size(); ++code) {
    values[code] = packed::e8m0(static_cast<std::uint8_t>(code));
  }
  return values;
}();

/// What both layouts share.
template <class Arch>
struct mxfp4_codes {
  using batch = xsimd::batch<float, Arch>;
  static constexpr index_t chunk = 32;
  static constexpr std::size_t count = 32 / batch::size;
  static constexpr bool scales_sums = false;
  static constexpr float divisor = 1;
  static constexpr bool is_kept = !is_avx512<batch>;
  static constexpr index_t kept_bytes = 4;
  using watch = no_watch;
  struct block {
    const std::byte* codes;
    e2m1_table<batch> value;
  };

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open_at(const std::byte* codes,
                                                             const std::byte* scale) noexcept {
    return {codes, e2m1_table<batch>(e8m0_values[packed::read<std::uint8_t>(scale)])};
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static const std::byte* codes_of(const block& of, index_t) noexcept {
    return of.codes;
  }
};

template <class Arch>
struct packed_codes<mxfp4_view, Arch> : packed_format<mxfp4_view>, mxfp4_codes<Arch> {
  using typename mxfp4_codes<Arch>::batch;
  using typename mxfp4_codes<Arch>::block;
  using mxfp4_codes<Arch>::count;
  using order = paired_order<batch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(const row& r, index_t b, index_t) noexcept {
    return mxfp4_codes<Arch>::open_at(r.codes + 16 * b, r.scales + b);
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

template <class Arch>
struct packed_codes<mxfp4_blocks_view, Arch> : packed_format<mxfp4_blocks_view>, mxfp4_codes<Arch> {
  using typename mxfp4_codes<Arch>::batch;
  using typename mxfp4_codes<Arch>::block;
  using mxfp4_codes<Arch>::count;
  using order = natural_order<batch, count>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static block open(row r, index_t b, index_t) noexcept {
    const std::byte* const in = r + b * block_bytes;
    return mxfp4_codes<Arch>::open_at(in + 1, in);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static few<batch, count> load(const block& of, index_t) noexcept {
    few<batch, count> out;
    unroll<count / 2>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const auto pairs = words_of_bytes<batch>(of.codes + i * batch::size);
      out[i] = of.value(pairs);
      out[count / 2 + i] = of.value(pairs >> 4);
    });
    return out;
  }
};

}  // namespace detail::kernels

MPIROUTER_END
