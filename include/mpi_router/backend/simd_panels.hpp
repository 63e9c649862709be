// One read of A, stored by columns ([N, D, F]): panels of neighbouring columns, walked by the stored rows.
//
// The projections of a panel need all D stored rows before its first image can be taken, so a panel is walked
// twice: from memory, then from cache. Both walks share one loop, a panel apart: while one panel is
// projected, the panel before it is lifted. Panels are as wide as memory wants its reads to be, and so may
// fill more than the second cache.
#pragma once

#include <mpi_router/backend/simd_rows.hpp>

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

/// Bytes of a stored row in a panel. Narrower, and memory delivers less: each piece lies on another page.
/// Wider, and a panel is lost before its second walk.
inline constexpr index_t panel_bytes = 2048;

template <class T>
inline constexpr index_t panel_width = panel_bytes / static_cast<index_t>(sizeof(T));

/// The projections of one panel, and where it is. The last one takes what is left after it where that is less
/// than a line, hence the spare line.
template <class T, class S, std::size_t Probes>
struct panel {
  S y[Probes][panel_width<T> + 64 / static_cast<index_t>(sizeof(T))];
  index_t first = 0;
  index_t width = 0;
};

/// In eight fixed lanes, as the compiler may not reorder a sum.
template <class S>
[[nodiscard]] S sum_of_squares(const S* y, index_t size) noexcept {
  S lane[8] = {};
  index_t i = 0;
  for (; i + 8 <= size; i += 8) {
    for (index_t k = 0; k < 8; ++k) {
      lane[k] += y[i + k] * y[i + k];
    }
  }
  for (index_t k = 0; i + k < size; ++k) {
    lane[k] += y[i + k] * y[i + k];
  }
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/// Adds `Rows` stored rows, of which `count` exist, to the projections of a panel.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S>
MPIROUTER_ALWAYS_INLINE void project_panel(const stored_rows<const T>& a, index_t d, index_t count,
                                           const few<const S*, Probes>& probe, panel<T, S, Probes>& out,
                                           const S* mask) noexcept {
  const stored_rows<const T> part{a.data + out.first, a.rows, out.width, a.stride};
  const auto row = rows_of<Rows>(part, d, count);
  unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
    S x[Rows] = {};
    for (index_t g = 0; g < count; ++g) {
      x[g] = probe[p][d + g];
    }
    lift_group<Lanes>(row, out.width, x, out.y[p], mask, static_cast<index_t>(Rows) * a.stride);
  });
}

/// image[d] += ⟨row d, y⟩ over a panel, and the gradient over it.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S, class G>
MPIROUTER_ALWAYS_INLINE void lift_panel(const stored_rows<const T>& a, index_t d, index_t count,
                                        const panel<T, S, Probes>& in, const sweep<S, Probes>& work,
                                        const gradient_rows<G>& gradient, const S* mask) noexcept {
  const stored_rows<const T> part{a.data + in.first, a.rows, in.width, a.stride};
  S dots[1][Rows];
  project_group<Lanes, Rows, Rows, 1>(rows_of<Rows>(part, d, count), in.width, {in.y[Probes - 1]}, mask, dots,
                                      static_cast<index_t>(Rows) * a.stride);
  for (index_t g = 0; g < count; ++g) {
    work.image[d + g] += dots[0][g];
  }
  if constexpr (Probes == 2) {
    if (gradient.rows.data == nullptr) return;
    S c[2][Rows] = {};
    for (index_t g = 0; g < count; ++g) {
      c[0][g] = work.probe[1][d + g];
      c[1][g] = work.probe[0][d + g];
    }
    const auto& all = gradient.rows;
    const stored_rows<G> piece{all.data + in.first, all.rows, in.width, all.stride};
    update_rows<Lanes>(piece, gradient.accumulate, d, count, c, {in.y[0], in.y[1]}, mask);
  }
}

/// As sweep_rows, for A the transpose of `a`: probes and image have a.rows elements, projections a.cols.
/// Needs a.cols ≥ one line.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S, class G>
S sweep_panels(const stored_rows<const T>& a, const sweep<S, Probes>& work,
               const gradient_rows<G>& gradient) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  constexpr index_t width = panel_width<T>;
  const tail_mask<S, Lanes::width> mask(a.cols);  // only the last panel ends within a line
  panel<T, S, Probes> two[2];
  index_t turn = 0;
  S energy{0};
  fill_zero(work.image, a.rows);
  const auto enter = [&](panel<T, S, Probes>& p, index_t first) {
    p.first = first;
    p.width = a.cols - first < width + Lanes::width ? a.cols - first : width;
    for (auto& y : p.y) {
      fill_zero(y, p.width);
    }
  };
  const auto leave = [&](const panel<T, S, Probes>& p) {
    for (std::size_t k = 0; k < Probes; ++k) {
      for (index_t i = 0; i < p.width && work.projection[k] != nullptr; ++i) {
        work.projection[k][p.first + i] = p.y[k][i];
      }
    }
    energy += sum_of_squares(p.y[Probes - 1], p.width);
  };
  const auto walk = [&](auto&& at) MPIROUTER_DETAIL_INLINE_LAMBDA {
    for (index_t d = 0; d < a.rows; d += group) {
      at(d, a.rows - d < group ? a.rows - d : group);
    }
  };
  enter(two[0], 0);
  walk([&](index_t d, index_t count) MPIROUTER_DETAIL_INLINE_LAMBDA {
    project_panel<Lanes, Rows>(a, d, count, work.probe, two[0], mask.value);
  });
  leave(two[0]);
  while (two[turn].first + two[turn].width < a.cols) {
    const auto& last = two[turn];
    auto& next = two[1 - turn];
    enter(next, last.first + last.width);
    walk([&](index_t d, index_t count) MPIROUTER_DETAIL_INLINE_LAMBDA {
      project_panel<Lanes, Rows>(a, d, count, work.probe, next, mask.value);
      lift_panel<Lanes, Rows>(a, d, count, last, work, gradient, mask.value);
    });
    leave(next);
    turn = 1 - turn;
  }
  walk([&](index_t d, index_t count) MPIROUTER_DETAIL_INLINE_LAMBDA {
    lift_panel<Lanes, Rows>(a, d, count, two[turn], work, gradient, mask.value);
  });
  return energy;
}

/// `Lines` lines of image = y A, from column c on, in registers over all rows: `Chains` sums each, of every
/// so many rows, so that additions do not wait for each other.
template <class Lanes, std::size_t Lines, std::size_t Chains, class T, class S>
MPIROUTER_ALWAYS_INLINE void lift_lines(const stored_rows<const T>& a, const S* y, S* image,
                                        index_t c) noexcept {
  using batch = typename Lanes::batch;
  typename Lanes::line sums[Chains][Lines];
  const auto for_parts = [&](auto&& f) MPIROUTER_DETAIL_INLINE_LAMBDA {
    unroll<Lines * Lanes::count>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      unroll<Chains>([&](auto k) MPIROUTER_DETAIL_INLINE_LAMBDA {
        f(sums[k][i / Lanes::count].part[i % Lanes::count], sums[0][i / Lanes::count].part[i % Lanes::count],
          k);
      });
    });
  };
  for_parts([](batch& sum, batch&, auto) MPIROUTER_DETAIL_INLINE_LAMBDA { sum = batch(S{0}); });
  const auto add = [&](auto chain, index_t row) MPIROUTER_DETAIL_INLINE_LAMBDA {
    const batch scale(y[row]);
    unroll<Lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
      add_product(sums[chain][i], scale,
                  Lanes::load(a.data + row * a.stride + c + index_t{i} * Lanes::width));
    });
  };
  index_t row = 0;
  for (; row + index_t{Chains} <= a.rows; row += index_t{Chains}) {
    unroll<Chains>([&](auto k) MPIROUTER_DETAIL_INLINE_LAMBDA { add(k, row + index_t{k}); });
  }
  for (; row < a.rows; ++row) {
    add(std::integral_constant<std::size_t, 0>{}, row);
  }
  for_parts([](const batch& sum, batch& total, auto k) MPIROUTER_DETAIL_INLINE_LAMBDA {
    if constexpr (k > 0) total = total + sum;
  });
  unroll<Lines>([&](auto i) MPIROUTER_DETAIL_INLINE_LAMBDA {
    Lanes::store_sums(image + c + index_t{i} * Lanes::width, sums[0][i]);
  });
}

/// image = y A for A in cache, as many columns at a time as there are registers for.
template <class Lanes, class T, class S>
void lift_cached_rows(const stored_rows<const T>& a, const S* y, S* image) noexcept {
  constexpr std::size_t registers = sizeof(typename Lanes::batch) == 64 ? 16 : 8;
  constexpr std::size_t most = registers / 2 / Lanes::count;
  index_t c = 0;
  const auto by = [&](auto lines, auto chains) MPIROUTER_DETAIL_INLINE_LAMBDA {
    for (constexpr index_t step = index_t{lines} * Lanes::width; c + step <= a.cols; c += step) {
      lift_lines<Lanes, lines, chains>(a, y, image, c);
    }
  };
  by(std::integral_constant<std::size_t, most>{}, std::integral_constant<std::size_t, 2>{});
  if constexpr (most > 2) {
    by(std::integral_constant<std::size_t, most / 2>{}, std::integral_constant<std::size_t, 4>{});
  }
  by(std::integral_constant<std::size_t, 1>{}, std::integral_constant<std::size_t, 4>{});
  if (c < a.cols) {
    lift_lines<Lanes, 1, 4>(a, y, image, a.cols - Lanes::width);  // and once more what overlaps
  }
}

/// The same for a matrix in cache that is one panel: it is walked twice, with nothing to hide.
template <class Lanes, std::size_t Rows, class T, class S>
S sweep_panel_in_cache(const stored_rows<const T>& a, const S* x, S* image) noexcept {
  panel<T, S, 1> p;
  lift_cached_rows<Lanes>(a, x, p.y[0]);
  project_rows<Lanes, Rows>(a, p.y[0], image);
  return sum_of_squares(p.y[0], a.cols);
}

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
