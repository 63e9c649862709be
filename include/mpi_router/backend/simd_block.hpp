// Several vectors per read of A: U = XM for a block of rows X.
#pragma once

#include <mpi_router/backend/simd_panels.hpp>

// g++ 12 believes that its own AVX-512 headers use what they leave undefined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

MPIROUTER_BEGIN

namespace detail::kernels {

/// Row j of a block of vectors at data + j stride.
template <class S>
struct vector_block {
  S* data = nullptr;
  index_t count = 0;
  index_t stride = 0;
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S* operator[](index_t j) const noexcept { return data + j * stride; }
};

/// f(first, how many) over the vectors of a block: four at a time, then singly.
template <class F>
MPIROUTER_ALWAYS_INLINE void for_each_chunk(index_t count, F&& f) noexcept {
  index_t j = 0;
  for (; j + 4 <= count; j += 4) {
    f(j, std::integral_constant<std::size_t, 4>{});
  }
  for (; j < count; ++j) {
    f(j, std::integral_constant<std::size_t, 1>{});
  }
}

template <std::size_t Count, class S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE few<const S*, Count> vectors_of(const vector_block<const S>& x,
                                                                      index_t first) noexcept {
  few<const S*, Count> out;
  unroll<Count>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA { out[p] = x[first + index_t{p}]; });
  return out;
}

/// u_j = x_j M and energy[j] = x_j M x_jᵀ, A stored by rows. A group of rows serves all vectors while it is
/// in the first cache.
template <class Lanes, std::size_t Rows, class T, class S>
void sweep_rows_block(const stored_rows<const T>& a, const vector_block<const S>& x, const vector_block<S>& u,
                      S* energy, index_t energy_stride) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  const tail_mask<S, Lanes::width> mask(a.cols);
  for (index_t j = 0; j < x.count; ++j) {
    fill_zero(u[j], a.cols);
    energy[j * energy_stride] = S{0};
  }
  for (index_t first = 0; first < a.rows; first += group) {
    const index_t count = a.rows - first < group ? a.rows - first : group;
    const auto row = rows_of<Rows>(a, first, count);
    for_each_chunk(x.count, [&](index_t j, auto vectors) MPIROUTER_DETAIL_INLINE_LAMBDA {
      S y[vectors][Rows];
      project_group<Lanes>(row, a.cols, vectors_of<vectors>(x, j), mask.value, y);
      for (index_t v = 0; v < static_cast<index_t>(vectors()); ++v) {
        energy[(j + v) * energy_stride] += leave_group<Rows>(first, count, y[v], static_cast<S*>(nullptr));
        lift_group<Lanes>(row, a.cols, y[v], u[j + v], mask.value);
      }
    });
  }
  for (index_t j = 0; j < x.count; ++j) {
    leave_lane_order<Lanes>(u[j], a.cols);
  }
}

/// The same, A stored by columns: a panel serves all vectors while it is in cache.
template <class Lanes, std::size_t Rows, class T, class S>
void sweep_panels_block(const stored_rows<const T>& a, const vector_block<const S>& x,
                        const vector_block<S>& u, S* energy, index_t energy_stride) noexcept {
  for (index_t j = 0; j < x.count; ++j) {
    fill_zero(u[j], a.rows);
    energy[j * energy_stride] = S{0};
  }
  constexpr auto group = static_cast<index_t>(Rows);
  const tail_mask<S, Lanes::width> mask(a.cols);
  for (index_t first = 0; first < a.cols;) {
    const index_t width = width_of_panel<Lanes, S>(a.cols - first);
    for_each_chunk(x.count, [&](index_t j, auto vectors) MPIROUTER_DETAIL_INLINE_LAMBDA {
      panel<S, vectors> p;
      enter_panel(p, first, width);
      const auto probe = vectors_of<vectors>(x, j);
      for (index_t d = 0; d < a.rows; d += group) {
        project_panel<Lanes, Rows>(a, d, a.rows - d < group ? a.rows - d : group, probe, p, mask.value);
      }
      leave_panel<Lanes>(p);
      const stored_rows<const T> part{a.data + first, a.rows, width, a.stride};
      for (index_t d = 0; d < a.rows; d += group) {
        const index_t count = a.rows - d < group ? a.rows - d : group;
        few<const S*, vectors> y;
        unroll<vectors>([&](auto v) MPIROUTER_DETAIL_INLINE_LAMBDA { y[v] = p.y[v]; });
        S dots[vectors][Rows];
        project_group<Lanes>(rows_of<Rows>(part, d, count), width, y, mask.value, dots);
        for (index_t v = 0; v < static_cast<index_t>(vectors()); ++v) {
          for (index_t g = 0; g < count; ++g) {
            u[j + v][d + g] += dots[v][g];
          }
        }
      }
      for (index_t v = 0; v < static_cast<index_t>(vectors()); ++v) {
        energy[(j + v) * energy_stride] += sum_of_squares(p.y[v], width);
      }
    });
    first += width;
  }
}

}  // namespace detail::kernels

MPIROUTER_END

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
