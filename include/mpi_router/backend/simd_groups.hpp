// The three things that a few stored rows are good for while they are in the first cache: projecting a vector
// (dots), lifting one (axpys), and a rank-2 update of as many rows of a gradient.
#pragma once

#include <mpi_router/backend/simd_f16.hpp>
#include <mpi_router/backend/simd_lanes.hpp>

#include <cstdint>

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

/// A matrix as it lies in memory: `rows` runs of `cols` neighbours, `stride` elements apart.
template <class T>
struct stored_rows {
  T* data = nullptr;
  index_t rows = 0;
  index_t cols = 0;
  index_t stride = 0;
};

/// Asks for the line at base + offset, which may lie outside the matrix: it is only a hint.
template <bool Write = false, class T>
MPIROUTER_ALWAYS_INLINE void prefetch(const T* base, index_t offset) noexcept {
#if defined(__GNUC__)
  const auto address =
      reinterpret_cast<std::uintptr_t>(base) + static_cast<std::uintptr_t>(offset) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address), Write ? 1 : 0, 3);
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
template <class Line>
MPIROUTER_ALWAYS_INLINE void add_dot(typename Line::batch& sum, const Line& a, const Line& b) noexcept {
  unroll<Line::count>([&](auto i)
                          MPIROUTER_DETAIL_INLINE_LAMBDA { sum = xsimd::fma(a.part[i], b.part[i], sum); });
}

/// The last line of a row ends with the row and so overlaps the line before it: zeros there, ones where it is
/// new.
template <class S, index_t Width>
struct tail_mask {
  S value[Width];
  explicit tail_mask(index_t cols) noexcept {
    const index_t overlap = (Width - cols % Width) % Width;
    for (index_t i = 0; i < Width; ++i) {
      value[i] = i < overlap ? S{0} : S{1};
    }
  }
};

/// y[p][g] = ⟨row g, probe p⟩.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S>
MPIROUTER_ALWAYS_INLINE void project_group(const few<const T*, Rows>& row, index_t cols,
                                           const few<const S*, Probes>& probe, const S* mask,
                                           S (&y)[Probes][Rows]) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  batch sums[Probes * Rows];
  unroll<Probes * Rows>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA { sums[i] = batch(S{0}); });
  const auto at = [&](index_t c, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
    line x[Probes];
    unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
      x[p] = Lanes::load_sums(probe[p] + c);
      if constexpr (masked) multiply(x[p], Lanes::load_sums(mask));
    });
    unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
      const line a = Lanes::load(row[g] + c);
      unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA { add_dot(sums[p * Rows + g], a, x[p]); });
    });
  };
  index_t c = 0;
  for (; c + Lanes::width <= cols; c += Lanes::width) {
    at(c, std::false_type{});
  }
  if (c < cols) {
    at(cols - Lanes::width, std::true_type{});
  }
  const auto totals = sum_lanes_of(sums);
  for (std::size_t p = 0; p < Probes; ++p) {
    for (std::size_t g = 0; g < Rows; ++g) {
      y[p][g] = totals[p * Rows + g];
    }
  }
}

/// at(c, lines, masked) for every line of a row: `Lines` at a time, then singly, then what is left.
template <class Lanes, std::size_t Lines, class At>
MPIROUTER_ALWAYS_INLINE void for_each_line(index_t cols, At&& at) noexcept {
  constexpr index_t step = static_cast<index_t>(Lines) * Lanes::width;
  index_t c = 0;
  for (; c + step <= cols; c += step) {
    at(c, std::integral_constant<std::size_t, Lines>{}, std::false_type{});
  }
  if constexpr (Lines > 1) {
    for (; c + Lanes::width <= cols; c += Lanes::width) {
      at(c, std::integral_constant<std::size_t, 1>{}, std::false_type{});
    }
  }
  if (c < cols) {
    at(cols - Lanes::width, std::integral_constant<std::size_t, 1>{}, std::true_type{});
  }
}

/// As many lines at a time as fill `Registers` registers.
template <class Lanes, std::size_t Registers>
inline constexpr std::size_t lines_in =
    Lanes::count < Registers ? (Registers < 8 ? Registers : std::size_t{8}) / Lanes::count : 1;

/// image += Σ_g y[g] row g; asks for the rows `ahead` elements further on.
template <class Lanes, std::size_t Rows, class T, class S>
MPIROUTER_ALWAYS_INLINE void lift_group(const few<const T*, Rows>& row, index_t cols, const S (&y)[Rows],
                                        S* image, const S* mask, index_t ahead) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  batch scale[Rows];
  unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA { scale[g] = batch(y[g]); });
  for_each_line<Lanes, lines_in<Lanes, 32 / Rows>>(
      cols, [&](index_t c, auto lines, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
        line u[lines];
        unroll<lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          u[i] = Lanes::load_sums(image + c + index_t{i} * Lanes::width);
        });
        unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          unroll<lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            const index_t k = c + index_t{i} * Lanes::width;
            prefetch(row[g] + k, ahead);
            line a = Lanes::load(row[g] + k);
            if constexpr (masked) multiply(a, Lanes::load_sums(mask));
            add_product(u[i], scale[g], a);
          });
        });
        unroll<lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          Lanes::store_sums(image + c + index_t{i} * Lanes::width, u[i]);
        });
      });
}

/// How a line of the gradient, of element type G, is read and written: as sums, or in the format of A.
template <class Lanes, class S, class G>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE typename Lanes::line load_gradient(const G* g) noexcept {
  if constexpr (std::is_same_v<G, S>) {
    return Lanes::load_sums(g);
  } else {
    return Lanes::load(g);
  }
}
template <class Lanes, class S, class G>
MPIROUTER_ALWAYS_INLINE void store_gradient(G* g, const typename Lanes::line& v) noexcept {
  if constexpr (std::is_same_v<G, S>) {
    Lanes::store_sums(g, v);
  } else {
    Lanes::store(g, v);
  }
}

/// gradient_g (+)= c[0][g] v[0] + c[1][g] v[1], added where Accumulate says so.
template <class Lanes, bool Accumulate, std::size_t Rows, class S, class G>
MPIROUTER_ALWAYS_INLINE void update_group(const few<G*, Rows>& gradient, index_t cols, const S (&c)[2][Rows],
                                          const few<const S*, 2>& v, const S* mask, index_t ahead) noexcept {
  using batch = typename Lanes::batch;
  using line = typename Lanes::line;
  for_each_line<Lanes, lines_in<Lanes, 4>>(
      cols, [&](index_t first, auto lines, auto masked) MPIROUTER_DETAIL_INLINE_LAMBDA {
        line v_0[lines];
        line v_1[lines];
        unroll<lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
          v_0[i] = Lanes::load_sums(v[0] + first + index_t{i} * Lanes::width);
          v_1[i] = Lanes::load_sums(v[1] + first + index_t{i} * Lanes::width);
        });
        unroll<Rows>([&](auto g) MPIROUTER_DETAIL_INLINE_LAMBDA {
          const batch c_0(c[0][g]);
          const batch c_1(c[1][g]);
          unroll<lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
            G* const at = gradient[g] + first + index_t{i} * Lanes::width;
            prefetch<true>(at, ahead);
            line old{};
            line value;
            if constexpr (Accumulate || masked) old = load_gradient<Lanes, S>(at);
            unroll<Lanes::count>([&](auto n) MPIROUTER_DETAIL_INLINE_LAMBDA {
              value.part[n] = xsimd::fma(c_0, v_0[i].part[n], c_1 * v_1[i].part[n]);
              if constexpr (Accumulate) value.part[n] = old.part[n] + value.part[n];
            });
            if constexpr (masked) {  // what the line before has done stays as it is
              const line is_new = Lanes::load_sums(mask);
              unroll<Lanes::count>([&](auto n) MPIROUTER_DETAIL_INLINE_LAMBDA {
                value.part[n] = xsimd::select(is_new.part[n] != batch(S{0}), value.part[n], old.part[n]);
              });
            }
            store_gradient<Lanes, S>(at, value);
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

/// update_group for a group that may lack rows: a row of the gradient must not be updated twice.
template <class Lanes, bool Accumulate, std::size_t Rows, class S, class G>
MPIROUTER_ALWAYS_INLINE void update_rows(const stored_rows<G>& gradient, index_t first, index_t count,
                                         const S (&c)[2][Rows], const few<const S*, 2>& v,
                                         const S* mask) noexcept {
  if (count == static_cast<index_t>(Rows)) {
    update_group<Lanes, Accumulate>(rows_of<Rows>(gradient, first, count), gradient.cols, c, v, mask,
                                    count * gradient.stride);
    return;
  }
  for (index_t g = 0; g < count; ++g) {
    const S alone[2][1] = {{c[0][g]}, {c[1][g]}};
    update_group<Lanes, Accumulate>(rows_of<1>(gradient, first + g, 1), gradient.cols, alone, v, mask,
                                    gradient.stride);
  }
}

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
