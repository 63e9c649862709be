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
  for (index_t i = 0; i < size; ++i) {
    lane[i % 8] += y[i] * y[i];
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
  project_group<Lanes, Rows, 1>(rows_of<Rows>(part, d, count), in.width, {in.y[Probes - 1]}, mask, dots);
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

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
