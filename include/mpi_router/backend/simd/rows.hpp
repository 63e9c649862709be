// One read of A, stored by rows ([N, F, D]): rM = Σ_f ⟨a_f, r⟩ a_f, a few stored rows at a time.
//
// A group of rows is projected and then lifted. Meanwhile rows after it are prefetched, so that loads from
// memory pause little; with the hardware prefetchers alone, which follow what is loaded, they would.
#pragma once

#include <mpi_router/backend/simd/groups.hpp>

MPIROUTER_BEGIN

namespace detail::kernels {

/// What one read of A is for. The image and the energy are those of the last probe.
template <class S, std::size_t Probes>
struct sweep {
  few<const S*, Probes> probe{};  ///< vectors that A is multiplied with
  few<S*, Probes> projection{};   ///< A probe, or null
  S* image = nullptr;             ///< (A last probe) A
};

/// The gradient = or += y qᵀ + w pᵀ, where p, q are two probes and y, w their projections, stored as A is.
/// Null rows: none.
template <class G>
struct gradient_rows {
  stored_rows<G> rows;
  bool accumulate = false;
};

template <class S>
void fill_zero(S* x, index_t size) noexcept {
  for (index_t i = 0; i < size; ++i) {
    x[i] = S{0};
  }
}

/// Hands out the projections of a group to one probe, zeroes those of missing rows, and returns their energy.
template <std::size_t Rows, class S>
MPIROUTER_ALWAYS_INLINE S leave_group(index_t first, index_t count, S (&y)[Rows], S* projection) noexcept {
  S energy{0};
  for (index_t g = 0; g < static_cast<index_t>(Rows); ++g) {
    if (g >= count) {
      y[g] = S{0};
    } else if (projection != nullptr) {
      projection[first + g] = y[g];
    }
    energy += y[g] * y[g];
  }
  return energy;
}

/// Where A is before it is read: only from memory is it worth prefetching the next rows.
enum class source { memory, cache };

/// The prefetch distance, in rows.
inline constexpr index_t rows_ahead = 8;

/// One read of A, and of the gradient if there is one. Returns the energy. Needs a.cols ≥ one line.
template <class Lanes, std::size_t Rows, source From = source::memory, std::size_t Probes, class T, class S,
          class G>
S sweep_rows(const stored_rows<const T>& a, const sweep<S, Probes>& work,
             const gradient_rows<G>& gradient) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  using gradient_lanes = lanes_of_gradient<Lanes, S, G>;
  const tail_mask<S, Lanes::width> mask(a.cols);
  const tail_mask<S, gradient_lanes::width> gradient_mask(a.cols);
  fill_zero(work.image, a.cols);
  S energy{0};
  for (index_t first = 0; first < a.rows; first += group) {
    const index_t count = a.rows - first < group ? a.rows - first : group;
    const auto row = rows_of<Rows>(a, first, count);
    S y[Probes][Rows];
    using prefetched = prefetched_rows<Lanes, Rows>;
    constexpr bool prefetches = From == source::memory;
    project_group<Lanes, prefetches ? prefetched::projecting : 0>(row, a.cols, work.probe, mask.value, y,
                                                                  rows_ahead * a.stride);
    S group_energy{0};
    for (std::size_t p = 0; p < Probes; ++p) {
      group_energy = leave_group<Rows>(first, count, y[p], work.projection[p]);
    }
    energy += group_energy;
    lift_group<Lanes, prefetches ? prefetched::lifting : 0>(row, a.cols, y[Probes - 1], work.image,
                                                            mask.value, rows_ahead * a.stride);
    if constexpr (Probes == 2) {
      if (gradient.rows.data != nullptr) {
        update_rows<gradient_lanes>(gradient.rows, gradient.accumulate, first, count, y,
                                    {work.probe[1], work.probe[0]}, gradient_mask.value);
      }
    }
  }
  leave_lane_order<Lanes>(work.image, a.cols);
  return energy;
}

/// Two images and their energies in one read of A.
template <class Lanes, std::size_t Rows, class T, class S>
void sweep_two(const stored_rows<const T>& a, const few<const S*, 2>& x, const few<S*, 2>& u,
               S* energy) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  using prefetched = prefetched_rows<Lanes, Rows>;
  const tail_mask<S, Lanes::width> mask(a.cols);
  few<S, 2> sum{};
  unroll<2>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA { fill_zero(u[p], a.cols); });
  for (index_t first = 0; first < a.rows; first += group) {
    const index_t count = a.rows - first < group ? a.rows - first : group;
    const auto row = rows_of<Rows>(a, first, count);
    S y[2][Rows];
    project_group<Lanes, prefetched::projecting>(row, a.cols, x, mask.value, y, rows_ahead * a.stride);
    unroll<2>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
      sum[p] += leave_group<Rows>(first, count, y[p], static_cast<S*>(nullptr));
    });
    lift_group<Lanes, prefetched::lifting>(row, a.cols, few<const S*, 2>{{y[0], y[1]}}, u, mask.value,
                                           rows_ahead * a.stride);
  }
  unroll<2>([&](auto p) MPIROUTER_DETAIL_INLINE_LAMBDA {
    leave_lane_order<Lanes>(u[p], a.cols);
    energy[p] = sum[p];
  });
}

/// y = A x.
template <class Lanes, std::size_t Rows, class T, class S>
void project_rows(const stored_rows<const T>& a, const S* x, S* y) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  const tail_mask<S, Lanes::width> mask(a.cols);
  for (index_t first = 0; first < a.rows; first += group) {
    const index_t count = a.rows - first < group ? a.rows - first : group;
    S dots[1][Rows];
    project_group<Lanes, 0, Rows, 1>(rows_of<Rows>(a, first, count), a.cols, {x}, mask.value, dots);
    for (index_t g = 0; g < count; ++g) {
      y[first + g] = dots[0][g];
    }
  }
}

/// image = y A.
template <class Lanes, std::size_t Rows, class T, class S>
void lift_rows(const stored_rows<const T>& a, const S* y, S* image) noexcept {
  constexpr auto group = static_cast<index_t>(Rows);
  const tail_mask<S, Lanes::width> mask(a.cols);
  fill_zero(image, a.cols);
  for (index_t first = 0; first < a.rows; first += group) {
    const index_t count = a.rows - first < group ? a.rows - first : group;
    S scale[Rows] = {};
    for (index_t g = 0; g < count; ++g) {
      scale[g] = y[first + g];
    }
    lift_group<Lanes>(rows_of<Rows>(a, first, count), a.cols, scale, image, mask.value);
  }
  leave_lane_order<Lanes>(image, a.cols);
}

}  // namespace detail::kernels

MPIROUTER_END
