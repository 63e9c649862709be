// One read of packed rows: rM = Σ_f ⟨a_f, r⟩ a_f, a few rows at a time, decoded in registers.
#pragma once

#include <mpi_router/backend/packed/double_sweep.hpp>
#include <mpi_router/backend/packed/group.hpp>
#include <mpi_router/backend/packed_table.hpp>
#include <mpi_router/backend/simd/rows.hpp>

#include <limits>

MPIROUTER_BEGIN

namespace detail::kernels {

/// Of a packed matrix [F, D]; x and u have D elements, y has F, all contiguous.
template <class View, class Arch>
struct packed_kernels {
  using codes = packed_codes<View, Arch>;
  using group = packed_group<View, Arch>;
  static constexpr std::size_t line = 64;  // of the caches
  static constexpr bool sums_in_double = requires(const std::byte* c) { codes::load_doubles(c); };

  /// u = xM; returns xMxᵀ.
  static float apply(const View& a, const float* x, float* u) noexcept {
    alignas(line) std::byte kept[static_cast<std::size_t>(group::kept_size)];
    fill_zero(u, a.cols);
    float energy = 0;
    for_each_group(a, kept, [&](const group& rows, index_t first, index_t here) {
      float y[group::rows];
      if (rows.template project<true>(x, y)) mark_nan(a, first, here, y);
      energy += leave_group<group::rows, float>(first, here, y, nullptr);
      rows.template lift<true>(y, u);
    });
    group::restore(a, u);
    return energy;
  }

  /// y = A x.
  static void project(const View& a, const float* x, float* y) noexcept {
    for_each_group(a, nullptr, [&](const group& rows, index_t first, index_t here) {
      float dots[group::rows];
      if (rows.template project<false>(x, dots)) mark_nan(a, first, here, dots);
      leave_group<group::rows>(first, here, dots, y);
    });
  }

  /// u = y A.
  static void lift(const View& a, const float* y, float* u) noexcept {
    fill_zero(u, a.cols);
    for_each_group(a, nullptr, [&](const group& rows, index_t first, index_t here) {
      float scale[group::rows] = {};
      for (index_t g = 0; g < here; ++g) {
        scale[g] = y[first + g];
      }
      rows.template lift<false>(scale, u);
    });
    group::restore(a, u);
    if constexpr (may_hide_nan) {
      for (index_t f = 0; f < a.rows; ++f) {
        if (codes::has_nan(a, f)) codes::spread_nan(a, f, u);
      }
    }
  }

  static void images_in_double(const View& a, index_t count, const double* const* x, double* const* u,
                               double* energy) noexcept
    requires sums_in_double
  {
    (count == 1 ? packed_images_in_double<View, Arch, 1> : packed_images_in_double<View, Arch, 2>)(a, x, u,
                                                                                                   energy);
  }
  [[nodiscard]] static constexpr auto in_double() {
    if constexpr (sums_in_double) {
      return &packed_kernels::images_in_double;
    } else {
      return nullptr;
    }
  }

  static constexpr core::packed_kernel_table<View> table{
      .apply = apply, .project = project, .lift = lift, .images_in_double = in_double()};

 private:
  static constexpr bool may_hide_nan = requires(const View& a) { codes::has_nan(a, index_t{}); };

  template <class Use>
  MPIROUTER_ALWAYS_INLINE static void for_each_group(const View& a, std::byte* kept,
                                                     const Use& use) noexcept {
    constexpr auto size = static_cast<index_t>(group::rows);
    for (index_t first = 0; first < a.rows; first += size) {
      const index_t here = std::min(size, a.rows - first);
      use(group(a, first, here, kept), first, here);
    }
  }
  /// A NaN among a row's codes makes its projection one.
  MPIROUTER_ALWAYS_INLINE static void mark_nan(const View& a, index_t first, index_t here,
                                               float (&y)[group::rows]) noexcept {
    if constexpr (may_hide_nan) {
      for (index_t g = 0; g < here; ++g) {
        if (codes::has_nan(a, first + g)) y[g] = std::numeric_limits<float>::quiet_NaN();
      }
    }
  }
};

}  // namespace detail::kernels

MPIROUTER_END
