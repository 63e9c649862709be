// The three things that a few stored rows are good for while they are in the L1: projecting a vector (dots),
// lifting one (axpys), and a rank-2 update of as many rows of a gradient.
#pragma once

#include <mpi_router/backend/kernel_table.hpp>
#include <mpi_router/backend/simd/f16.hpp>
#include <mpi_router/backend/simd/lanes.hpp>

#include <cstdint>

MPIROUTER_BEGIN

namespace detail::kernels {

using core::stored_rows;

/// Prefetches the line at base + offset, which may lie outside the matrix: it is only a hint. Into the L2:
/// the L1 has few fill buffers, and the lines at work need them.
template <class T>
MPIROUTER_ALWAYS_INLINE void prefetch(const T* base, index_t offset) noexcept {
#if defined(__GNUC__)
  const auto address =
      reinterpret_cast<std::uintptr_t>(base) + static_cast<std::uintptr_t>(offset) * sizeof(T);
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
#else
  static_cast<void>(base);
  static_cast<void>(offset);
#endif
}

/// a += b c for every part of a line.
template <class Line>
MPIROUTER_ALWAYS_INLINE void add_product(Line& a, const typename Line::batch& b, const Line& c) noexcept {
  unroll<Line::count>(
      [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { a.part[i] = xsimd::fma(b, c.part[i], a.part[i]); });
}
template <class Line>
MPIROUTER_ALWAYS_INLINE void multiply(Line& a, const Line& b) noexcept {
  unroll<Line::count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { a.part[i] = a.part[i] * b.part[i]; });
}
/// The last line of a row ends with the row and so overlaps the line before it: zeros there, ones where it is
/// new.
template <class S, index_t Width>
struct tail_mask {
  S value[static_cast<std::size_t>(Width)];
  explicit tail_mask(index_t cols) noexcept {
    const index_t overlap = (Width - cols % Width) % Width;
    for (index_t i = 0; i < Width; ++i) {
      value[i] = i < overlap ? S{0} : S{1};
    }
  }
};

/// How many of the rows ahead are prefetched while a group is projected, and while it is lifted.
///
/// Processors with AVX-512 have buffers for lines on their way to the L2: there everything is prefetched,
/// evenly, so that memory waits for neither half of the arithmetic. On others (measured: Zen 3) a prefetch
/// takes one of the few fill buffers of the L1, and the hardware prefetchers, which follow eight rows at a
/// time very well, are faster: they need help only while so many are lifted and they have nothing to follow.
template <class Lanes, std::size_t Rows>
struct prefetched_rows {
  static constexpr bool all = sizeof(typename Lanes::batch) == 64;
  static constexpr std::size_t projecting = all ? Rows / 2 : 0;
  static constexpr std::size_t lifting = all ? Rows - Rows / 2 : (Rows < 8 ? 0 : 3);
  static constexpr std::size_t of_panel = all ? Rows : 0;
  static constexpr bool of_gradient = all;
};

template <std::size_t N>
using line_count = std::integral_constant<std::size_t, N>;

/// at(c, line_count<N>, masked) for every line of a row: `Lines` at a time, then singly, then what is left.
template <class Lanes, std::size_t Lines, class At>
MPIROUTER_ALWAYS_INLINE void for_each_line(index_t cols, At&& at) noexcept {
  constexpr index_t step = static_cast<index_t>(Lines) * Lanes::width;
  index_t c = 0;
  for (; c + step <= cols; c += step) {
    at(c, line_count<Lines>{}, std::false_type{});
  }
  if constexpr (Lines > 1) {
    for (; c + Lanes::width <= cols; c += Lanes::width) {
      at(c, line_count<1>{}, std::false_type{});
    }
  }
  if (c < cols) {
    at(cols - Lanes::width, line_count<1>{}, std::true_type{});
  }
}

/// Σ over the chains and the lanes of each sum.
template <class Batch, std::size_t Sums, std::size_t Chains>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto totals_of(const Batch (&chain)[Sums][Chains]) noexcept {
  Batch sums[Sums];
  unroll<Sums>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
    sums[i] = chain[i][0];
    unroll<Chains - 1>([&](auto n) MPIROUTER_DETAIL_INLINE_LAMBDA { sums[i] = sums[i] + chain[i][n + 1]; });
  });
  return sum_lanes_of(sums);
}

/// y[p][g] = ⟨row g, probe p⟩; prefetches the first `Prefetched` of the rows `ahead` elements further on.
template <class Lanes, std::size_t Prefetched = 0, std::size_t Rows, std::size_t Probes, class T, class S>
MPIROUTER_ALWAYS_INLINE void project_group(const few<const T*, Rows>& row, index_t cols,
                                           const few<const S*, Probes>& probe, const S* mask,
                                           S (&y)[Probes][Rows], index_t ahead = 0) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  // A sum for each part of a line where there are registers for it: additions that do not wait for each
  // other.
  constexpr std::size_t registers = sizeof(batch) == 64 ? 16 : 8;
  constexpr std::size_t chains = Probes * Rows * Lanes::count <= registers ? Lanes::count : 1;
  batch chain[Probes * Rows][chains];
  unroll<Probes * Rows * chains>(
      [&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { chain[i / chains][i % chains] = batch(S{0}); });
  for_each_line<Lanes, 1>(cols, [&](index_t c, auto, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
    line x[Probes];
    unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
      x[p] = Lanes::load_sums(probe[p] + c);
      if constexpr (masked) multiply(x[p], Lanes::load_sums(mask));
    });
    unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
      if constexpr (g < Prefetched) prefetch(row[g] + c, ahead);
      const line a = Lanes::load(row[g] + c);
      unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
        unroll<Lanes::count>([&](auto n) MPIROUTER_DETAIL_INLINE_LAMBDA {
          batch& sum = chain[p * Rows + g][n % chains];
          sum = xsimd::fma(a.part[n], x[p].part[n], sum);
        });
      });
    });
  });
  const auto totals = totals_of(chain);
  for (std::size_t p = 0; p < Probes; ++p) {
    for (std::size_t g = 0; g < Rows; ++g) {
      y[p][g] = totals[p * Rows + g];
    }
  }
}

/// As many lines at a time as fill `Registers` registers.
template <class Lanes, std::size_t Registers>
inline constexpr std::size_t lines_in =
    Lanes::count < Registers ? (Registers < 8 ? Registers : std::size_t{8}) / Lanes::count : 1;

/// image[p] += Σ_g y[p][g] row g; prefetches the last `Prefetched` of the rows `ahead` elements further on.
/// The images are in lane order until leave_lane_order; their last line, where that overlaps the one before,
/// in natural order.
template <class Lanes, std::size_t Prefetched = 0, std::size_t Rows, std::size_t Images, class T, class S>
MPIROUTER_ALWAYS_INLINE void lift_group(const few<const T*, Rows>& row, index_t cols,
                                        const few<const S*, Images>& y, const few<S*, Images>& image,
                                        const S* mask, index_t ahead = 0) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  batch scale[Images][Rows];
  unroll<Images * Rows>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
    scale[i / Rows][i % Rows] = batch(y[i / Rows][i % Rows]);
  });
  constexpr std::size_t registers = (sizeof(batch) == 64 ? 64 : 32) / (Images * Rows);
  for_each_line<Lanes, lines_in<Lanes, registers>>(
      cols, [&]<std::size_t N>(index_t c, line_count<N>, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
        line u[Images][N];
        unroll<Images * N>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          S* const from = image[i / N] + c + index_t{i % N} * Lanes::width;
          u[i / N][i % N] = masked ? Lanes::load_sums(from) : load_line<line>(from);
        });
        unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          unroll<N>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            const index_t k = c + index_t{i} * Lanes::width;
            if constexpr (g + Prefetched >= Rows) prefetch(row[g] + k, ahead);
            line a = Lanes::load(row[g] + k);
            if constexpr (masked) multiply(a, Lanes::load_sums(mask));
            unroll<Images>([&](auto p)
                               MPIROUTER_DETAIL_INLINE_LAMBDA { add_product(u[p][i], scale[p][g], a); });
          });
        });
        unroll<Images * N>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          S* const to = image[i / N] + c + index_t{i % N} * Lanes::width;
          masked ? Lanes::store_sums(to, u[i / N][i % N]) : store_line(to, u[i / N][i % N]);
        });
      });
}
/// The same of one image.
template <class Lanes, std::size_t Prefetched = 0, std::size_t Rows, class T, class S>
MPIROUTER_ALWAYS_INLINE void lift_group(const few<const T*, Rows>& row, index_t cols, const S (&y)[Rows],
                                        S* image, const S* mask, index_t ahead = 0) noexcept {
  lift_group<Lanes, Prefetched>(row, cols, few<const S*, 1>{{y}}, few<S*, 1>{{image}}, mask, ahead);
}

/// Brings an image that lift_group has summed into natural order.
template <class Lanes, class S>
void leave_lane_order(S* image, index_t cols) noexcept {
  if constexpr (!Lanes::in_order) {
    for (index_t c = 0; c + Lanes::width <= cols; c += Lanes::width) {
      Lanes::store_sums(image + c, load_line<typename Lanes::line>(image + c));
    }
  }
}

/// The lanes of a gradient of element type G, which is that of the sums or that of A.
template <class Lanes, class S, class G>
using lanes_of_gradient = std::conditional_t<std::is_same_v<G, S>, typename Lanes::of_sums, Lanes>;

/// gradient_g += c[0][g] v[0] + c[1][g] v[1]; prefetches the rows `ahead` elements further on.
template <class Lanes, std::size_t Rows, class S, class G>
MPIROUTER_ALWAYS_INLINE void update_group(const few<G*, Rows>& gradient, index_t cols, const S (&c)[2][Rows],
                                          const few<const S*, 2>& v, const S* mask, index_t ahead) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  for_each_line<Lanes, lines_in<Lanes, 4>>(
      cols, [&]<std::size_t N>(index_t first, line_count<N>, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
        line v_0[N];
        line v_1[N];
        unroll<N>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          v_0[i] = Lanes::load_sums(v[0] + first + index_t{i} * Lanes::width);
          v_1[i] = Lanes::load_sums(v[1] + first + index_t{i} * Lanes::width);
        });
        unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          const batch c_0(c[0][g]);
          const batch c_1(c[1][g]);
          unroll<N>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            G* const at = gradient[g] + first + index_t{i} * Lanes::width;
            if constexpr (prefetched_rows<Lanes, Rows>::of_gradient) prefetch(at, ahead);
            line value = Lanes::load(at);
            unroll<Lanes::count>([&](auto n) MPIROUTER_DETAIL_INLINE_LAMBDA {
              const batch sum = value.part[n] + xsimd::fma(c_0, v_0[i].part[n], c_1 * v_1[i].part[n]);
              if constexpr (masked) {  // what the line before has done stays as it is
                const batch is_new = Lanes::load_sums(mask).part[n];
                value.part[n] = xsimd::select(is_new != batch(S{0}), sum, value.part[n]);
              } else {
                value.part[n] = sum;
              }
            });
            Lanes::store(at, value);
          });
        });
      });
}

/// The rows [first, first + count) of a group: missing ones repeat the first.
template <std::size_t Rows, class T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE few<T*, Rows> rows_of(const stored_rows<T>& a, index_t first,
                                                            index_t count) noexcept {
  few<T*, Rows> row;
  unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
    row[g] = a.data + (first + (index_t{g} < count ? index_t{g} : 0)) * a.stride;
  });
  return row;
}

/// The rows [first, first + count) of the gradient: = or += c[0] v[0] + c[1] v[1]. Not by repeated rows, for
/// none must be updated twice.
template <class Lanes, std::size_t Rows, class S, class G>
MPIROUTER_ALWAYS_INLINE void update_rows(const stored_rows<G>& gradient, bool accumulate, index_t first,
                                         index_t count, const S (&c)[2][Rows], const few<const S*, 2>& v,
                                         const S* mask) noexcept {
  for (index_t g = 0; g < count && !accumulate; ++g) {
    std::memset(static_cast<void*>(gradient.data + (first + g) * gradient.stride), 0,
                static_cast<std::size_t>(gradient.cols) * sizeof(G));
  }
  if (count == static_cast<index_t>(Rows)) {
    update_group<Lanes>(rows_of<Rows>(gradient, first, count), gradient.cols, c, v, mask,
                        count * gradient.stride);
    return;
  }
  for (index_t g = 0; g < count; ++g) {
    const S alone[2][1] = {{c[0][g]}, {c[1][g]}};
    update_group<Lanes>(rows_of<1>(gradient, first + g, 1), gradient.cols, alone, v, mask, gradient.stride);
  }
}

}  // namespace detail::kernels

MPIROUTER_END
