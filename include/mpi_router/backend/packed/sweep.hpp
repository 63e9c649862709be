// One read of packed rows: rM = Σ_f ⟨a_f, r⟩ a_f, a few rows at a time, decoded in registers.
//
// A row is needed twice, for a dot and for an axpy. Where registers are wide it is decoded twice, from bytes that
// are in the L1 the second time; where they are narrower decoding costs more than loads do, and what was decoded
// stays in a buffer on the stack, as far as that reaches.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>
#include <mpi_router/backend/simd/groups.hpp>

#include <limits>
#include <type_traits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Bytes that are prefetched ahead of those at work, into the L2.
inline constexpr index_t packed_bytes_ahead = 8192;

/// A few rows [first, first + count) of a packed matrix; missing ones repeat the first.
template <class View, class Arch>
class packed_group {
 public:
  using codes = packed_codes<View, Arch>;
  using batch = typename codes::batch;
  using block = typename codes::block;
  using values = typename codes::order::values;
  static constexpr std::size_t rows = 4;
  static constexpr std::size_t count = codes::order::count;
  /// Chunks of all rows whose weights are kept: 32 KiB of floats.
  static constexpr index_t kept_chunks = is_avx512<batch> ? 0 : 2048 / codes::chunk;

  /// What is kept of one group.
  struct scratch {
    float weight[static_cast<std::size_t>(kept_chunks > 0 ? kept_chunks * codes::chunk : 1) * rows];
  };

  MPIROUTER_ALWAYS_INLINE packed_group(const View& a, index_t first, index_t here, scratch& kept) noexcept
      : a_(a), kept_(kept.weight) {
    for (std::size_t g = 0; g < rows; ++g) {
      row_[g] = first + (static_cast<index_t>(g) < here ? static_cast<index_t>(g) : 0);
    }
  }

  /// y[g] = ⟨row g, x⟩; keeps weights for lift<true>.
  template <bool Keep>
  MPIROUTER_ALWAYS_INLINE void project(const float* x, float (&y)[rows]) const noexcept {
    batch sum[rows];
    unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { sum[g] = batch(0.0F); });
    for_each_chunk([&](const auto& of, index_t d, index_t k, index_t n, auto size)
                       MPIROUTER_DETAIL_INLINE_LAMBDA {
      const values xs = load_vector(x + d, size);
      const bool keeps = Keep && n < kept_chunks;
      unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
        prefetch(codes::codes_of(of[g], k), packed_bytes_ahead);
        const values w = load_codes(of[g], k, size);
        if (keeps) store_kept(n, g, w);
        if constexpr (codes::scales_sums) {
          batch part = w[0] * xs[0];
          unroll<count - 1>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            part = xsimd::fma(w[i + 1], xs[i + 1], part);
          });
          sum[g] = xsimd::fma(part, of[g].scale, sum[g]);
        } else {
          unroll<count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { sum[g] = xsimd::fma(w[i], xs[i], sum[g]); });
        }
      });
    });
    const auto totals = sum_lanes_of(sum);
    for (std::size_t g = 0; g < rows; ++g) {
      y[g] = totals[g] * codes::shrinkage;
    }
  }
};

}  // namespace detail::kernels

MPIROUTER_END
