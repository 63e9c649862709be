// In which order the columns of a chunk lie in registers.
#pragma once

#include <mpi_router/backend/simd/narrow_lanes.hpp>

#include <cstddef>
#include <cstring>

MPIROUTER_BEGIN

namespace detail::kernels {

/// As in memory.
template <class Batch, std::size_t Count>
struct natural_order {
  using values = few<Batch, Count>;
  static constexpr std::size_t count = Count;
  static constexpr std::size_t width = Count * Batch::size;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load(const float* x) noexcept {
    values out;
    unroll<Count>(
        [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { out[i] = load_unaligned<Batch>(x + i * Batch::size); });
    return out;
  }
  MPIROUTER_ALWAYS_INLINE static void store(float* x, const values& v) noexcept {
    unroll<Count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { store_unaligned(x + i * Batch::size, v[i]); });
  }
  /// The first `size` columns of a chunk, the others being zero.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load_part(const float* x, index_t size) noexcept {
    float padded[width] = {};
    std::memcpy(padded, x, static_cast<std::size_t>(size) * sizeof *x);
    return load(padded);
  }
  MPIROUTER_ALWAYS_INLINE static void store_part(float* x, index_t size, const values& v) noexcept {
    float padded[width];
    store(padded, v);
    std::memcpy(x, padded, static_cast<std::size_t>(size) * sizeof *x);
  }
};

/// Of each two registers the first holds the even columns, the second the odd ones.
template <class Batch, std::size_t Count>
struct paired_order {
  using values = few<Batch, Count>;
  static constexpr std::size_t count = Count;
  using pair = paired_lanes<typename Batch::arch_type, codec<storage_format::bf16>>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load(const float* x) noexcept {
    values out;
    unroll<Count / 2>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const auto line = pair::load_sums(x + index_t{i} * pair::width);
      out[2 * i] = line.part[0];
      out[2 * i + 1] = line.part[1];
    });
    return out;
  }
  /// Brings a chunk that was summed in this order into that of memory.
  MPIROUTER_ALWAYS_INLINE static void restore(float* u) noexcept {
    unroll<Count / 2>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      float* const at = u + index_t{i} * pair::width;
      pair::store_sums(at, load_line<typename pair::line>(at));
    });
  }
};

}  // namespace detail::kernels

MPIROUTER_END
