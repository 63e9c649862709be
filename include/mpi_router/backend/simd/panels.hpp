// One read of A, stored by columns ([N, D, F]): panels of adjacent columns, walked by the stored rows.
//
// The projections of a panel need all D stored rows before its first image can be taken, so a panel is walked
// twice: from memory, then back, from what the caches still hold. Panels are as wide as memory wants its
// reads to be, and so may fill more than the L2.
#pragma once

#include <mpi_router/backend/simd/rows.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Elements of a stored row in a panel: what short pieces of rows, each on another page, lose is more than
/// what wide ones do, whose second walk finds less in the caches. And rows whose distance is a power of two
/// share the sets of a cache, so that the narrower a panel is, the less of the cache it can use.
template <class S>
inline constexpr index_t panel_width = 8192 / static_cast<index_t>(sizeof(S));

/// The projections of one panel, and where it is. The last one takes what is left after it where that is less
/// than a line, hence the spare line.
template <class S, std::size_t Probes>
struct panel {
  S y[Probes][panel_width<S> + 32];
  index_t first = 0;
  index_t width = 0;
};

/// The width of the panel that begins at a column which `left` columns are left from.
template <class Lanes, class S>
[[nodiscard]] constexpr index_t width_of_panel(index_t left) noexcept {
  return left < panel_width<S> + Lanes::width ? left : panel_width<S>;
}

template <class S, std::size_t Probes>
void enter_panel(panel<S, Probes>& p, index_t first, index_t width) noexcept {
  p.first = first;
  p.width = width;
  for (auto& y : p.y) {
    fill_zero(y, width);
  }
}

/// Brings the projections of a panel into natural order.
template <class Lanes, class S, std::size_t Probes>
void leave_panel(panel<S, Probes>& p) noexcept {
  for (auto& y : p.y) {
    leave_lane_order<Lanes>(y, p.width);
  }
}

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
                                           const few<const S*, Probes>& probe, panel<S, Probes>& out,
                                           const S* mask) noexcept {
  const stored_rows<const T> part{a.data + out.first, a.rows, out.width, a.stride};
  const auto row = rows_of<Rows>(part, d, count);
  unroll<Probes>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
    S x[Rows] = {};
    for (index_t g = 0; g < count; ++g) {
      x[g] = probe[p][d + g];
    }
    lift_group<Lanes, prefetched_rows<Lanes, Rows>::of_panel>(row, out.width, x, out.y[p], mask,
                                                              static_cast<index_t>(Rows) * a.stride);
  });
}

/// image[d] += ⟨row d, y⟩ over a panel, and the gradient over it.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S, class G>
MPIROUTER_ALWAYS_INLINE void lift_panel(const stored_rows<const T>& a, index_t d, index_t count,
                                        const panel<S, Probes>& in, const sweep<S, Probes>& work,
                                        const gradient_rows<G>& gradient, const S* mask,
                                        const S* gradient_mask) noexcept {
  const stored_rows<const T> part{a.data + in.first, a.rows, in.width, a.stride};
  S dots[1][Rows];
  project_group<Lanes, prefetched_rows<Lanes, Rows>::of_panel, Rows, 1>(
      rows_of<Rows>(part, d, count), in.width, {in.y[Probes - 1]}, mask, dots,
      -static_cast<index_t>(Rows) * a.stride);
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
    update_rows<lanes_of_gradient<Lanes, S, G>>(piece, gradient.accumulate, d, count, c, {in.y[0], in.y[1]},
                                                gradient_mask);
  }
}

/// As sweep_rows, for A the transpose of `a`: probes and image have a.rows elements, projections a.cols.
/// Needs a.cols ≥ one line.
template <class Lanes, std::size_t Rows, std::size_t Probes, class T, class S, class G>
S sweep_panels(const stored_rows<const T>& a, const sweep<S, Probes>& work,
               const gradient_rows<G>& gradient) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  const index_t last_group = (a.rows - 1) / group * group;
  // Only the last panel ends within a line.
  const tail_mask<S, Lanes::width> mask(a.cols);
  const tail_mask<S, lanes_of_gradient<Lanes, S, G>::width> gradient_mask(a.cols);
  panel<S, Probes> p;
  S energy{0};
  fill_zero(work.image, a.rows);
  for (index_t first = 0; first < a.cols; first += p.width) {
    enter_panel(p, first, width_of_panel<Lanes, S>(a.cols - first));
    for (index_t d = 0; d <= last_group; d += group) {
      project_panel<Lanes, Rows>(a, d, a.rows - d < group ? a.rows - d : group, work.probe, p, mask.value);
    }
    leave_panel<Lanes>(p);
    for (index_t d = last_group; d >= 0; d -= group) {
      lift_panel<Lanes, Rows>(a, d, a.rows - d < group ? a.rows - d : group, p, work, gradient, mask.value,
                              gradient_mask.value);
    }
    for (std::size_t k = 0; k < Probes; ++k) {
      for (index_t i = 0; i < p.width && work.projection[k] != nullptr; ++i) {
        work.projection[k][p.first + i] = p.y[k][i];
      }
    }
    energy += sum_of_squares(p.y[Probes - 1], p.width);
  }
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
  constexpr bool many = sizeof(typename Lanes::batch) == 64;
  constexpr std::size_t lines = 8 / Lanes::count;  // eight sums at least, so that additions do not wait
  index_t c = 0;
  const auto by = [&](auto count, auto chains) MPIROUTER_DETAIL_INLINE_LAMBDA {
    for (constexpr index_t step = index_t{count} * Lanes::width; c + step <= a.cols; c += step) {
      lift_lines<Lanes, count, chains>(a, y, image, c);
    }
  };
  by(line_count<lines>{}, line_count<many ? 2 : 1>{});
  by(line_count<lines / 2>{}, line_count<many ? 4 : 2>{});
  by(line_count<1>{}, line_count<4>{});
  if (c < a.cols) {
    lift_lines<Lanes, 1, 4>(a, y, image, a.cols - Lanes::width);  // and once more what overlaps
  }
}

/// The same for a matrix in cache that is one panel: it is walked twice, with nothing to hide.
template <class Lanes, std::size_t Rows, class T, class S>
S sweep_panel_in_cache(const stored_rows<const T>& a, const S* x, S* image) noexcept {
  panel<S, 1> p;
  lift_cached_rows<Lanes>(a, x, p.y[0]);
  project_rows<Lanes, Rows>(a, p.y[0], image);
  return sum_of_squares(p.y[0], a.cols);
}

}  // namespace detail::kernels

MPIROUTER_END
