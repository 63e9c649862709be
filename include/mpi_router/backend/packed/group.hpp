// A few packed rows: projected, then lifted.
//
// A row is needed twice, for a dot and for an axpy. Where decoding costs less than a store and a load it is
// decoded twice, from bytes that are in the L1 the second time; elsewhere what was decoded stays in a buffer
// on the stack, as far as that reaches.
#pragma once

#include <mpi_router/backend/packed/codes.hpp>
#include <mpi_router/backend/simd/groups.hpp>

#include <algorithm>
#include <type_traits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Bytes that are prefetched ahead of those at work.
inline constexpr index_t packed_bytes_ahead = 8192;

/// The rows [first, first + here) of a packed matrix; missing ones repeat the first.
template <class View, class Arch>
class packed_group {
 public:
  using codes = packed_codes<View, Arch>;
  using batch = typename codes::batch;
  using block = typename codes::block;
  using order = typename codes::order;
  using values = typename order::values;
  static constexpr std::size_t count = order::count;
  static constexpr std::size_t rows = 4;
  /// Columns whose weights are kept, and bytes of them in all rows.
  static constexpr index_t kept_cols = codes::is_kept ? 2048 : 0;
  static constexpr index_t kept_size = std::max<index_t>(kept_cols * rows * codes::kept_bytes, 1);

  /// `kept`: scratch of kept_size bytes.
  MPIROUTER_ALWAYS_INLINE packed_group(const View& a, index_t first, index_t here, std::byte* kept) noexcept
      : a_(a), kept_(kept) {
    for (std::size_t g = 0; g < rows; ++g) {
      row_[g] = codes::row_of(a, first + (static_cast<index_t>(g) < here ? static_cast<index_t>(g) : 0));
      if constexpr (may_share_scales) share_scales_ = share_scales_ && row_[g].scales == row_[0].scales;
    }
  }

  /// y[g] = ⟨row g, x⟩. Keep: for lift<true>. Returns whether there are NaN that the sums do not tell of.
  template <bool Keep>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE bool project(const float* x, float (&y)[rows]) const noexcept {
    sums all;
    unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { all.of_row[g] = batch(0.0F); });
    for_each_run([&](index_t b, index_t d, auto width, index_t n) MPIROUTER_DETAIL_INLINE_LAMBDA {
      if (Keep && is_kept(n, width)) {
        project_run<codes::is_kept>(x, all, b, d, width, n);
      } else {
        project_run<false>(x, all, b, d, width, n);
      }
    });
    const auto totals = sum_lanes_of(all.of_row);
    for (std::size_t g = 0; g < rows; ++g) {
      y[g] = totals[g] * codes::divisor;
    }
    return all.nan.is_found();
  }

  /// u += Σ_g y[g] row g, in the order of the codes. Kept: project<true> was called before.
  template <bool Kept>
  MPIROUTER_ALWAYS_INLINE void lift(const float (&y)[rows], float* u) const noexcept {
    few<batch, rows> ys;
    unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { ys[g] = batch(y[g] * codes::divisor); });
    for_each_run([&](index_t b, index_t d, auto width, index_t n) MPIROUTER_DETAIL_INLINE_LAMBDA {
      if (Kept && is_kept(n, width)) {
        lift_run<codes::is_kept>(ys, u, b, d, width, n);
      } else {
        lift_run<false>(ys, u, b, d, width, n);
      }
    });
  }

  /// Brings what was lifted into the order of memory.
  static void restore(const View& a, float* u) noexcept {
    if constexpr (requires { order::restore(u); }) {
      for_each_run_of(a, [&](index_t, index_t d, auto width, index_t) MPIROUTER_DETAIL_INLINE_LAMBDA {
        for_each_chunk(width, [&](index_t k, auto size) MPIROUTER_DETAIL_INLINE_LAMBDA {
          if constexpr (std::is_same_v<decltype(size), whole>) order::restore(u + d + k * codes::chunk);
        });
      });
    }
  }

 private:
  using in_place = natural_order<batch, count>;
  static constexpr bool keeps_floats = codes::kept_bytes == sizeof(float);
  static constexpr bool has_parts = !requires { codes::block_cols; };
  static constexpr bool may_share_scales =
      requires(block of, typename codes::row row) { codes::open_beside(of, row, index_t{}); };
  struct sums {
    batch of_row[rows];
    typename codes::watch nan;
  };

  /// at(b, d, width, n): the columns [d, d + width) lie in block b, behind n chunks.
  template <class At>
  MPIROUTER_ALWAYS_INLINE void for_each_run(At&& at) const noexcept {
    for_each_run_of(a_, at);
  }
  template <class At>
  MPIROUTER_ALWAYS_INLINE static void for_each_run_of(const View& a, At&& at) noexcept {
    if constexpr (has_parts) {
      constexpr index_t longest = 16 * codes::chunk;
      const index_t across = std::min(a.block_cols, a.cols);
      index_t n = 0;
      for (index_t b = 0, first = 0; first < a.cols; ++b, first += across) {
        const index_t end = std::min(first + across, a.cols);
        for (index_t d = first; d < end; d += longest) {
          const index_t width = std::min(longest, end - d);
          at(b, d, width, n);
          n += chunks_of(width);
        }
      }
    } else {
      constexpr std::integral_constant<index_t, codes::block_cols> width;
      for (index_t b = 0; b * width < a.cols; ++b) {
        at(b, b * width, width, b * chunks_of(width));
      }
    }
  }
  /// at(k, size) of each chunk of a run; size: of a part, or a constant.
  template <class Width, class At>
  MPIROUTER_ALWAYS_INLINE static void for_each_chunk(Width width, At&& at) noexcept {
    index_t k = 0;
    for (; (k + 1) * codes::chunk <= width; ++k) {
      at(k, whole{});
    }
    if constexpr (has_parts) {
      if (k * codes::chunk < width) {
        at(k, width - k * codes::chunk);
      }
    }
  }
  using whole = std::integral_constant<index_t, codes::chunk>;

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr index_t chunks_of(index_t width) noexcept {
    return (width + codes::chunk - 1) / codes::chunk;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr bool is_kept(index_t n, index_t width) noexcept {
    return kept_cols > 0 && n + chunks_of(width) <= kept_cols / codes::chunk;
  }
  /// Null where nothing is kept: there may be no memory for it.
  template <bool Keep>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE std::byte* kept_at(index_t n, std::size_t g) const noexcept {
    if constexpr (!Keep) return nullptr;
    return kept_ +
           (n * static_cast<index_t>(rows) + static_cast<index_t>(g)) * codes::chunk * codes::kept_bytes;
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE few<block, rows> open(index_t b, index_t d) const noexcept {
    few<block, rows> of;
    of[0] = codes::open(row_[0], b, d);
    if constexpr (may_share_scales) {
      if (share_scales_) {
        unroll<rows - 1>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          of[g + 1] = codes::open_beside(of[0], row_[g + 1], d);
        });
        return of;
      }
    }
    unroll<rows - 1>([&](auto g)
                         MPIROUTER_DETAIL_INLINE_LAMBDA { of[g + 1] = codes::open(row_[g + 1], b, d); });
    return of;
  }
  template <class Size>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load_weights(const block& of, index_t k,
                                                                   Size size) noexcept {
    if constexpr (std::is_same_v<Size, whole>) {
      return codes::load(of, k);
    } else {
      return codes::load_part(of, k, size);
    }
  }
  /// The same, and leaves a whole chunk at `to`: as floats, or as the codes like it better.
  template <bool Keep, class Size>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values keep_weights(const block& of, index_t k, Size size,
                                                                   [[maybe_unused]] std::byte* to) noexcept {
    if constexpr (!Keep || !std::is_same_v<Size, whole>) {
      return load_weights(of, k, size);
    } else if constexpr (!keeps_floats) {
      return codes::keep(of, k, to);
    } else {
      const values w = codes::load(of, k);
      in_place::store(reinterpret_cast<float*>(to), w);
      return w;
    }
  }
  template <bool Kept, class Size>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load_kept(
      const block& of, index_t k, Size size, [[maybe_unused]] const std::byte* from) noexcept {
    if constexpr (!Kept || !std::is_same_v<Size, whole>) {
      return load_weights(of, k, size);
    } else if constexpr (!keeps_floats) {
      return codes::load_kept(from);
    } else {
      return in_place::load(reinterpret_cast<const float*>(from));
    }
  }
  template <class Order, class Size>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static values load_vector(const float* x, Size size) noexcept {
    if constexpr (std::is_same_v<Size, whole>) {
      return Order::load(x);
    } else {
      return in_place::load_part(x, size);
    }
  }

  template <bool Keep, class Width>
  MPIROUTER_ALWAYS_INLINE void project_run(const float* x, sums& all, index_t b, index_t d, Width width,
                                           index_t n) const noexcept {
    const auto of = open(b, d);
    few<batch, rows> part;
    unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { part[g] = batch(0.0F); });
    for_each_chunk(width, [&](index_t k, auto size) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const values xs = load_vector<order>(x + d + k * codes::chunk, size);
      unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
        prefetch(codes::codes_of(of[g], k), packed_bytes_ahead);
        all.nan.see(of[g], k, size);
        const values w = keep_weights<Keep>(of[g], k, size, kept_at<Keep>(n + k, g));
        if constexpr (!codes::scales_sums) {
          add_products<0>(w, xs, all.of_row[g]);
        } else if constexpr (has_parts) {
          add_products<0>(w, xs, part[g]);
        } else {  // a block is a chunk
          part[g] = w[0] * xs[0];
          add_products<1>(w, xs, part[g]);
          all.of_row[g] = xsimd::fma(part[g], of[g].scale, all.of_row[g]);
        }
      });
    });
    if constexpr (codes::scales_sums && has_parts) {
      unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
        all.of_row[g] = xsimd::fma(part[g], of[g].scale, all.of_row[g]);
      });
    }
  }
  template <std::size_t First>
  MPIROUTER_ALWAYS_INLINE static void add_products(const values& w, const values& x, batch& sum) noexcept {
    unroll<count - First>(
        [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { sum = xsimd::fma(w[First + i], x[First + i], sum); });
  }

  template <bool Kept, class Width>
  MPIROUTER_ALWAYS_INLINE void lift_run(const few<batch, rows>& y, float* u, index_t b, index_t d,
                                        Width width, index_t n) const noexcept {
    few<block, rows> of;
    few<batch, rows> factor = y;
    if constexpr (!Kept || codes::scales_sums || has_parts) of = open(b, d);
    if constexpr (codes::scales_sums) {
      unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { factor[g] = y[g] * of[g].scale; });
    }
    for_each_chunk(width, [&](index_t k, auto size) MPIROUTER_DETAIL_INLINE_LAMBDA {
      float* const at = u + d + k * codes::chunk;
      values sum = load_vector<in_place>(at, size);
      unroll<rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
        const values w = load_kept<Kept>(of[g], k, size, kept_at<Kept>(n + k, g));
        unroll<count>([&](auto i)
                          MPIROUTER_DETAIL_INLINE_LAMBDA { sum[i] = xsimd::fma(factor[g], w[i], sum[i]); });
      });
      if constexpr (std::is_same_v<decltype(size), whole>) {
        in_place::store(at, sum);
      } else {
        in_place::store_part(at, size, sum);
      }
    });
  }

  const View& a_;
  std::byte* kept_;
  typename codes::row row_[rows];
  bool share_scales_ = true;  ///< all rows of the group
};

}  // namespace detail::kernels

MPIROUTER_END
